"""Closed forms, without torch: parameters, bytes and floating-point operations of a model.

A multiply and an add are two operations. Norms, activations, rotations and softmax are left out of the operation
counts; everything that moves through memory once a step is in the byte counts. Tests hold each form equal to what
the real model has.
"""

from retbench.architectures import ModelConfig, RetNetConfig, TransformerConfig
from retbench.config import DTYPE_BYTES

STATE_BYTES_PER_VALUE = {"float64": 8, "float32": 4, "bfloat16": 4, "float16": 4}
"""The retention state is held in the wider of float32 and the model's dtype."""


def layer_params(config: ModelConfig) -> int:
    """Parameters of one block: mixer, feed-forward and norms."""
    d, f = config.d_model, config.ffn_dim
    ffn_and_norms = 3 * d * f + 2 * d
    match config:
        case RetNetConfig():
            head_norm = config.value_head_dim if config.variant == "fla" else 0
            return 2 * d * d + 3 * d * config.value_dim + head_norm + ffn_and_norms
        case TransformerConfig():
            return 2 * d * d + 2 * d * config.num_kv_heads * config.head_dim + ffn_and_norms


def num_params_nonembedding(config: ModelConfig) -> int:
    """Parameters without the embedding table and the output head."""
    return config.num_layers * layer_params(config) + config.d_model


def num_params(config: ModelConfig) -> int:
    """All parameters; the embedding table and the output head are separate (untied)."""
    return num_params_nonembedding(config) + 2 * config.vocab_size * config.d_model


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all parameters."""
    return num_params(config) * DTYPE_BYTES[dtype]


def state_bytes(config: ModelConfig, dtype: str, batch_size: int, capacity: int) -> int:
    """Bytes that inference carries between tokens: retention state, or a KV cache of `capacity` tokens."""
    match config:
        case RetNetConfig():
            per_layer = (
                config.num_heads * config.head_dim * config.value_head_dim * STATE_BYTES_PER_VALUE[dtype]
            )
        case TransformerConfig():
            per_layer = 2 * capacity * config.num_kv_heads * config.head_dim * DTYPE_BYTES[dtype]
    return batch_size * config.num_layers * per_layer


def decode_bytes(config: ModelConfig, dtype: str, batch_size: int, context_len: int) -> int:
    """Bytes that one decode step at depth `context_len` must move at the least.

    All weights once (of the embedding table only the rows of the tokens), the retention state read and
    written, or the keys and values of the context and the new token read and the new token's written.
    """
    table_rows_unread = config.vocab_size - batch_size
    weights = (num_params(config) - table_rows_unread * config.d_model) * DTYPE_BYTES[dtype]
    match config:
        case RetNetConfig():
            return weights + 2 * state_bytes(config, dtype, batch_size, 0)
        case TransformerConfig():
            return weights + state_bytes(config, dtype, batch_size, context_len + 2)


def _matmul_params(config: ModelConfig) -> int:
    """Parameters of the blocks that take part in a matrix product with every token."""
    d, f = config.d_model, config.ffn_dim
    match config:
        case RetNetConfig():
            mixer = 2 * d * d + 3 * d * config.value_dim
        case TransformerConfig():
            mixer = 2 * d * d + 2 * d * config.num_kv_heads * config.head_dim
    return config.num_layers * (mixer + 3 * d * f)


def decode_flops(config: ModelConfig, batch_size: int, context_len: int) -> int:
    """Operations of one decode step at depth `context_len`, output head included."""
    products = 2 * (_matmul_params(config) + config.vocab_size * config.d_model)
    match config:
        case RetNetConfig():
            # Decay, rank-one update (3 a state value), then the read-out (2).
            mixing = config.num_layers * 5 * config.num_heads * config.head_dim * config.value_head_dim
        case TransformerConfig():
            mixing = config.num_layers * 4 * config.d_model * (context_len + 1)
    return batch_size * (products + mixing)


def prefill_flops(config: ModelConfig, batch_size: int, context_len: int, chunk_size: int) -> int:
    """Operations to process a prompt and give the logits of its last token.

    Args:
        config: The model.
        batch_size: Sequences.
        context_len: Tokens of each prompt.
        chunk_size: Chunk of the chunkwise form; does not matter to a Transformer. Attention is counted causal
            (half the square); the chunkwise form's blocks on the diagonal are counted whole, as they are
            computed.
    """
    products = 2 * (_matmul_params(config) * context_len + config.vocab_size * config.d_model)
    match config:
        case RetNetConfig():
            chunk = min(chunk_size, context_len)
            widths = config.head_dim + config.value_head_dim
            inside = 2 * chunk * widths
            across = 4 * config.head_dim * config.value_head_dim
            mixing = config.num_layers * config.num_heads * context_len * (inside + across)
        case TransformerConfig():
            mixing = config.num_layers * 2 * config.d_model * context_len * (context_len + 1)
    return batch_size * (products + mixing)
