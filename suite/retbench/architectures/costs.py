"""Closed forms, without torch: parameters, bytes and floating-point operations of a model.

A multiply and an add are two operations. Norms, activations, rotations and softmax are left out of the operation
counts; everything that moves through memory once a step is in the byte counts. Tests hold each form equal to what
the real model has.
"""

from retbench.architectures.configs import ModelConfig, RetNetConfig, TransformerConfig
from retbench.config.experiment import DTYPE_BYTES

STATE_BYTES_PER_VALUE = {"float64": 8, "float32": 4, "bfloat16": 4, "float16": 4}
"""The retention state is held in the wider of float32 and the model's dtype."""

PREFILL_SEGMENT = 1024
"""Tokens of each prompt that are in flight at once: longer ones are taken in segments."""


def layer_params(config: ModelConfig) -> int:
    """Parameters of one block: mixer, feed-forward and norms."""
    head_norm = 0
    if isinstance(config, RetNetConfig) and config.head_norm and config.traits.head_norm == "rms_affine":
        head_norm = config.value_head_dim
    return _layer_matmul_params(config) + head_norm + 2 * _norm_params(config)


def _layer_matmul_params(config: ModelConfig) -> int:
    """Parameters of one block that take part in a matrix product with every token."""
    query, kv, rest = _mixer_matmul_params(config)
    matrices = 3 if config.traits.ffn == "swiglu" else 2
    return query + kv + rest + matrices * config.d_model * config.ffn_dim


def _mixer_matmul_params(config: ModelConfig) -> tuple[int, int, int]:
    """The same of one mixer: the queries', the keys' and values' (with a gated decay's), and the rest."""
    d = config.d_model
    match config:
        case RetNetConfig():
            decay = d * config.num_heads if config.decay == "gated" else 0
            gate_and_out = (2 if config.swish_gate else 1) * d * config.value_dim
            return d * d, d * d + d * config.value_dim + decay, gate_and_out
        case TransformerConfig():
            return d * d, 2 * d * config.num_kv_heads * config.head_dim, d * d


def _norm_params(config: ModelConfig) -> int:
    """Parameters of a norm over the width of the model."""
    return (1 if config.traits.block_norm == "rms" else 2) * config.d_model


def num_params_nonembedding(config: ModelConfig) -> int:
    """Parameters without the embedding table and the output head."""
    return config.num_layers * layer_params(config) + _norm_params(config)


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


def decode_workspace_bytes(config: ModelConfig, dtype: str, batch_size: int) -> int:
    """Most bytes of temporaries that are alive at once in a decode step: in a mixer, a feed-forward or at the logits.

    Attention is taken to stream its cache and to hold no scores, as fused kernels do: torch's `math` kernel and the
    backend `reference` copy the keys and values of one layer, and `products` holds its scores. Buffers within an
    operator are left out, and so are the packed weights of a compiled step.
    """
    d, ffn = config.d_model, config.ffn_dim
    activated = 4 * ffn if config.traits.ffn == "swiglu" else 2 * ffn
    values = max(2 * d + _mixer_workspace(config, dtype), 4 * d + activated, 2 * d + config.vocab_size)
    return batch_size * values * DTYPE_BYTES[dtype]


def _mixer_workspace(config: ModelConfig, dtype: str) -> int:
    """Values of the model's dtype that a mixer has alive at once for one token, beside its input and the residual."""
    d, wide = config.d_model, STATE_BYTES_PER_VALUE[dtype] // DTYPE_BYTES[dtype]
    match config:
        case RetNetConfig():
            values = config.value_dim
            # The projections; queries and keys rotated, and the keys scaled.
            held = 2 * d + (2 if config.swish_gate else 1) * values + 3 * d
            # Queries, keys, values and the read-out in the state's dtype, where that is a wider one.
            widened = 2 * wide * (d + values) if wide > 1 else 0
            # The read-out after its norm; what the gate makes of it.
            gating = 3 if config.swish_gate else 2 if config.head_norm else 1
            return held + max(values + widened, gating * values)
        case TransformerConfig():
            kv = config.num_kv_heads * config.head_dim
            # The projections; queries and keys as they are rotated, in halves and joined.
            return d + 2 * kv + 2 * wide * (d + kv)


def largest_batch(config: ModelConfig, dtype: str, memory_bytes: int, context_len: int) -> int:
    """Sequences for which weights, state and workspace of a decode step at depth `context_len` fit into memory."""
    sequence = state_bytes(config, dtype, 1, context_len + 1) + decode_workspace_bytes(config, dtype, 1)
    return max(0, (memory_bytes - weight_bytes(config, dtype)) // sequence)


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


def prefill_bytes(config: ModelConfig, dtype: str, batch_size: int, context_len: int) -> int:
    """Bytes that a prompt must move at the least.

    All weights once (of the embedding table no more rows than there are tokens), and the state that it leaves written.
    """
    table_rows_unread = max(0, config.vocab_size - batch_size * context_len)
    weights = (num_params(config) - table_rows_unread * config.d_model) * DTYPE_BYTES[dtype]
    return weights + state_bytes(config, dtype, batch_size, context_len)


def decode_flops(config: ModelConfig, batch_size: int, context_len: int) -> int:
    """Operations of one decode step at depth `context_len`, output head included."""
    products = 2 * (config.num_layers * _layer_matmul_params(config) + config.vocab_size * config.d_model)
    match config:
        case RetNetConfig():
            # Decay, rank-one update (3 a state value), then the read-out (2).
            mixing = config.num_layers * 5 * config.num_heads * config.head_dim * config.value_head_dim
        case TransformerConfig():
            mixing = config.num_layers * 4 * config.d_model * (context_len + 1)
    return batch_size * (products + mixing)


def training_flops(
    config: ModelConfig,
    batch_size: int,
    context_len: int,
    chunk_size: int | None,
    *,
    recomputed: bool = False,
) -> int:
    """Operations of the products of a training step: forward, and twice as many backward.

    Every token has a logit for every word. The optimiser, like all that is done value by value, is left out. Attention
    is counted causal, and its scores once, though fused kernels compute them again for the gradients.

    Args:
        config: The model.
        batch_size: Sequences.
        context_len: Tokens of each.
        chunk_size: Chunk of the chunkwise form, 1 for the recurrent form, None for the parallel form, which is counted
            causal like attention; does not matter to a Transformer.
        recomputed: Whether the blocks run forward once more (activation checkpointing), up to their last product, which
            no gradient needs.
    """
    block = 2 * _layer_matmul_params(config) * context_len + _training_mixing(config, context_len, chunk_size)
    head = 2 * config.vocab_size * config.d_model * context_len
    again = block - 2 * config.ffn_dim * config.d_model * context_len if recomputed else 0
    return batch_size * (config.num_layers * (3 * block + again) + 3 * head)


def _training_mixing(config: ModelConfig, context_len: int, chunk_size: int | None) -> int:
    """Operations of one mixer's products between tokens, forward, for one sequence that starts without a state."""
    pairs = context_len * (context_len + 1)  # twice the pairs of a query and a key not after it
    match config:
        case RetNetConfig():
            if chunk_size is None:
                return config.num_heads * (config.head_dim + config.value_head_dim) * pairs
            whole, rest = divmod(context_len, chunk_size)
            inside = 2 * (whole * chunk_size**2 + rest**2) * (config.head_dim + config.value_head_dim)
            written = context_len - (rest or chunk_size)  # tokens of all chunks but the last
            read = max(0, context_len - chunk_size)  # and of all but the first
            across = 2 * (written + read) * config.head_dim * config.value_head_dim
            return config.num_heads * (inside + across)
        case TransformerConfig():
            return 2 * config.d_model * pairs


def prefill_flops(config: ModelConfig, batch_size: int, context_len: int, chunk_size: int) -> int:
    """Operations to process a prompt and give the logits of its last token.

    In the last block only keys, values and state are computed for all tokens, and the rest for the last one.

    Args:
        config: The model.
        batch_size: Sequences.
        context_len: Tokens of each prompt, taken in one segment.
        chunk_size: Chunk of the chunkwise form; does not matter to a Transformer. Attention is counted causal
            (half the square); the chunkwise form's blocks on the diagonal are counted whole, as they are
            computed.
    """
    _, kv, _ = _mixer_matmul_params(config)
    whole = _layer_matmul_params(config)
    last = kv * context_len + whole - kv
    products = 2 * ((config.num_layers - 1) * whole * context_len + last + config.vocab_size * config.d_model)
    match config:
        case RetNetConfig():
            chunk = min(chunk_size, context_len)
            inside = 2 * chunk * (config.head_dim + config.value_head_dim)
            update = 2 * config.head_dim * config.value_head_dim  # and as much for a read-out of the state
            every = context_len * (inside + 2 * update)
            mixing = config.num_heads * ((config.num_layers - 1) * every + (context_len + 1) * update)
        case TransformerConfig():
            every = 2 * config.d_model * context_len * (context_len + 1)
            mixing = (config.num_layers - 1) * every + 4 * config.d_model * context_len
    return batch_size * (products + mixing)
