"""Analytical costs, without torch: parameters, bytes and floating-point operations of a model, summed over its blocks.

A multiply and an add are two operations. Norms, activations, rotations and softmax are left out of the operation
counts; everything that moves through memory once a step is in the byte counts. Tests compare each with the real model.
"""

from typing import NamedTuple

from retbench.architectures.configs import ModelConfig, form_of
from retbench.mixers.feed_forward import ChannelMixer
from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, Mixer

PREFILL_SEGMENT = 1024
"""Tokens of each prompt that are in flight at once: longer ones are taken in segments."""


def missing_reason(config: ModelConfig) -> str | None:
    """Return why a model has no analytical costs but its parameters; None if it has them."""
    return "the model is not matched, and its costs are measured only" if config.whole_model else None


def block_params(config: ModelConfig) -> int:
    """Return the parameters of all blocks: mixers, channel mixers and norms."""
    num_params = 0
    for block in config.blocks:
        norms = (2 if block.ffn else 1) * _norm_params(config)
        others = block.mixer.other_params + (block.ffn.other_params if block.ffn else 0)
        num_params += block.count * (_product_params(block.mixer, block.ffn) + others + norms)
    return num_params


def mixer_params(mixer: Mixer) -> int:
    """Return the parameters of one mixer."""
    return mixer.streamed_params + mixer.local_params + mixer.other_params


def _product_params(mixer: Mixer, ffn: ChannelMixer | None) -> int:
    """Return the parameters of one block that take part in a product with every token."""
    return mixer.streamed_params + mixer.local_params + (ffn.num_params if ffn else 0)


def _norm_params(config: ModelConfig) -> int:
    """Return the parameters of a norm over the width of the model."""
    return (1 if config.norm == "rms" else 2) * config.d_model


def num_params_nonembedding(config: ModelConfig) -> int:
    """Return the parameters without the embedding table and the output head."""
    if config.whole_model is not None:
        return config.whole_model.num_params_nonembedding
    return block_params(config) + (2 if config.embedding_norm else 1) * _norm_params(config)


def num_params(config: ModelConfig) -> int:
    """Return all parameters; in a matched model the embedding table and the output head are separate (untied)."""
    if config.whole_model is not None:
        return config.whole_model.num_params
    return num_params_nonembedding(config) + 2 * config.vocab_size * config.d_model


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Return the bytes of all parameters."""
    return num_params(config) * DTYPE_BYTES[dtype]


def state_bytes(config: ModelConfig, dtype: str, batch_size: int, capacity: int) -> int:
    """Return the bytes that inference carries between tokens, with room for `capacity` tokens where it grows.

    A window has room for min(capacity, window) tokens; see `StateTensor.num_tokens`.
    """
    sequence = sum(
        block.count * one.num_bytes(dtype, one.num_tokens(capacity))
        for block in config.blocks
        for one in block.state
    )
    return batch_size * sequence


def decode_workspace_bytes(
    config: ModelConfig, dtype: str, batch_size: int, context_len: int | None = None
) -> int:
    """Return the most bytes of temporaries alive at once in a decode step: in a mixer, a feed-forward or at the logits.

    Attention is taken to stream its cache and to hold no scores, as fused kernels do: torch's `math` kernel and the
    backend `reference` copy the keys and values of one layer, and `products` holds its scores. Buffers within an
    operator are left out, and so are the packed weights of a compiled step.

    Args:
        config: The model.
        dtype: Dtype of the weights.
        batch_size: Number of sequences.
        context_len: Depth of the step. It is needed only where a cache is concatenated: its earlier copy is alive too.

    Raises:
        ValueError: a cache is concatenated, and no depth is given.
    """
    if config.concatenates and context_len is None:
        raise ValueError(
            "the workspace of a concatenated cache depends on the context length; give context_len"
        )
    d = config.d_model
    # The logits, and the normed token that they are computed from: the residual is freed before.
    values = d + config.vocab_size
    for block in config.blocks:
        values = max(values, 2 * d + block.mixer.decode_workspace(dtype))
        values = max(values, 2 * d + block.mixer.append_workspace(context_len or 0))
        if block.ffn:
            values = max(values, 4 * d + block.ffn.activated_values)
    return batch_size * values * DTYPE_BYTES[dtype]


def prefill_workspace_bytes(config: ModelConfig, dtype: str, num_tokens: int, batch_size: int) -> int:
    """Return roughly the bytes of a prompt's temporaries: the widest block for each token, and the logits."""
    width = max(
        max(block.mixer.prefill_workspace(), 3 * block.ffn.ffn_dim if block.ffn else 0)
        for block in config.blocks
    )
    return (num_tokens * (config.d_model + width) + batch_size * config.vocab_size) * DTYPE_BYTES[dtype]


def largest_batch(config: ModelConfig, dtype: str, memory_bytes: int, context_len: int) -> int:
    """Return the sequences for which weights, state and workspace of a decode step at a depth fit into memory."""
    workspace = decode_workspace_bytes(config, dtype, 1, context_len)
    sequence = state_bytes(config, dtype, 1, context_len + 1) + workspace
    return max(0, (memory_bytes - weight_bytes(config, dtype)) // sequence)


class Traffic(NamedTuple):
    """The bytes that one decode step must move at the least, by what they hold; see `StateTensor.bytes_moved`."""

    weights: int
    """All weights once; of the embedding table no more rows than there are tokens."""
    caches: int
    """Entries for tokens: keys and values."""
    states: int
    """Tensors of a fixed size, read and written."""
    shared: int = 0
    """Reads of the state of another layer, once per layer that reads it."""

    @property
    def footprint(self) -> int:
        """The different bytes among them: a state is read and written in place, and a shared one counted once."""
        return self.weights + self.caches + self.states // 2


def decode_traffic(config: ModelConfig, dtype: str, batch_size: int, context_len: int) -> Traffic:
    """Return the bytes that one decode step at depth `context_len` must move at the least."""
    table_rows_unread = max(0, config.vocab_size - batch_size)
    weights = (num_params(config) - table_rows_unread * config.d_model) * DTYPE_BYTES[dtype]
    moved, shared = {True: 0, False: 0}, 0
    for block in config.blocks:
        for one in block.state:
            moved[one.kind == "fixed"] += block.count * one.bytes_moved(dtype, context_len)
        for one in block.mixer.source.state if block.mixer.source else ():
            shared += block.count * one.bytes_read(dtype, context_len)
    return Traffic(weights, batch_size * moved[False], batch_size * moved[True], batch_size * shared)


def decode_bytes(config: ModelConfig, dtype: str, batch_size: int, context_len: int) -> int:
    """Return the sum of `decode_traffic`."""
    return sum(decode_traffic(config, dtype, batch_size, context_len))


def prefill_bytes(config: ModelConfig, dtype: str, batch_size: int, context_len: int) -> int:
    """Return the bytes that a prompt must move at the least.

    All weights once (of the embedding table no more rows than there are tokens), and the state that it leaves written.
    """
    table_rows_unread = max(0, config.vocab_size - batch_size * context_len)
    weights = (num_params(config) - table_rows_unread * config.d_model) * DTYPE_BYTES[dtype]
    return weights + state_bytes(config, dtype, batch_size, context_len)


def decode_flops(config: ModelConfig, batch_size: int, context_len: int) -> int:
    """Return the operations of one decode step at depth `context_len`, output head included."""
    flops = 2 * config.vocab_size * config.d_model
    for block in config.blocks:
        products = 2 * _product_params(block.mixer, block.ffn)
        flops += block.count * (products + block.mixer.decode_flops(context_len))
    return batch_size * flops


class SharedKeys(NamedTuple):
    """Costs of the attention of one decode step where so many queries share each key."""

    num_queries: int
    num_bytes: int
    """Reads of these keys and values, once per layer that reads them; part of `decode_traffic`."""
    flops: int
    """Operations of all queries; part of `decode_flops`."""


def shared_keys(config: ModelConfig, dtype: str, batch_size: int, context_len: int) -> list[SharedKeys]:
    """Return the costs of attention at depth `context_len` of each kind of block where queries share keys."""
    found = []
    for block in config.blocks:
        source, mixer = block.mixer.source, block.mixer
        held = [one for one in (source.state if source else block.state) if one.kind == "per_token"]
        num_queries = mixer.num_heads // held[0].shape[0] if held else 1
        if num_queries > 1:
            times = batch_size * block.count
            num_bytes = times * sum(one.bytes_read(dtype, context_len) for one in held)
            found.append(SharedKeys(num_queries, num_bytes, times * mixer.decode_flops(context_len)))
    return found


def training_flops(
    config: ModelConfig,
    batch_size: int,
    context_len: int,
    backend: str,
    chunk_size: int | None,
    *,
    recomputed: bool = False,
) -> int:
    """Return the operations of the products of a training step: forward, and backward twice as many.

    A product with a constant has as many backward as forward: nothing trains the constant. Every token has a logit for
    every word. The optimiser, like all that is done value by value, is left out. Attention is counted causal, and its
    scores once, though fused kernels compute them again for the gradients.

    Args:
        config: The model.
        batch_size: Sequences.
        context_len: Tokens of each.
        backend: The form that runs; each mixer says what it does by it.
        chunk_size: Chunk of a chunkwise form; the mixer's default when None.
        recomputed: Whether the blocks run forward once more (activation checkpointing), up to their last product, which
            no gradient needs.
    """
    flops = 3 * 2 * config.vocab_size * config.d_model * context_len
    for block in config.blocks:
        mixing = block.mixer.training_flops(context_len, form_of(block.mixer, backend), chunk_size)
        forward = 2 * _product_params(block.mixer, block.ffn) * context_len + mixing
        last = 2 * block.ffn.last_product_params * context_len if block.ffn else 0
        backward = 2 * forward - block.mixer.constant_flops(context_len)
        flops += block.count * (forward + backward + (forward - last if recomputed else 0))
    return batch_size * flops


def prefill_flops(
    config: ModelConfig, batch_size: int, context_len: int, backend: str, chunk_size: int | None
) -> int:
    """Return the operations to process a prompt and give the logits of its last token.

    In the last block with a state only what later tokens need (keys, values, state) is computed for all tokens, and the
    rest, with all blocks after it, for the last one; a channel mixer with a state needs all outputs of the mixer.
    Attention is counted causal (half the square).

    Args:
        config: The model.
        batch_size: Sequences.
        context_len: Tokens of each prompt, taken in segments of `PREFILL_SEGMENT`.
        backend: The form that runs.
        chunk_size: Chunk of a chunkwise form; the mixer's default when None.
    """
    flops = 2 * config.vocab_size * config.d_model
    last = config.last_stateful
    for index, block in enumerate(config.layers):
        mixer, last_only = block.mixer, index >= last
        # A channel mixer that reads earlier tokens needs their outputs of the mixer.
        mixes_last_only = last_only and not (block.ffn and block.ffn.state)
        flops += 2 * mixer.streamed_params * context_len
        flops += 2 * mixer.local_params * (1 if mixes_last_only else context_len)
        flops += 2 * (block.ffn.num_params if block.ffn else 0) * (1 if last_only else context_len)
        flops += mixer.prefill_flops(
            context_len, form_of(mixer, backend), chunk_size, last_only=mixes_last_only
        )
    return batch_size * flops


def training_memory_bytes(
    config: ModelConfig, dtype: str, batch_size: int, context_len: int, backend: str, *, checkpointing: bool
) -> int:
    """Return roughly what a training step holds at its peak.

    Weights, gradients and two averages of them, what the blocks keep for the gradients, and the logits. With activation
    checkpointing each block keeps its input, and one block at a time the rest.
    """
    narrow, wide = DTYPE_BYTES[dtype], WIDE_BYTES[dtype]
    kept, widest, scores, most_scores = 0, 0, 0, 0
    for block in config.blocks:
        values = block.mixer.kept_for_gradients(form_of(block.mixer, backend))
        ffn_values = block.ffn.activated_values if block.ffn else 0
        one = (values.narrow + ffn_values) * narrow + values.wide * wide
        kept, widest = kept + block.count * one, max(widest, one)
        matrix = values.scores * block.mixer.num_heads * context_len**2 * wide
        scores, most_scores = scores + block.count * matrix, max(most_scores, matrix)
    if checkpointing:
        kept, scores = widest, most_scores
    inputs = config.num_layers * config.d_model * narrow
    logits = config.vocab_size * (narrow + 2 * wide)
    scores += 2 * most_scores  # two more while gradients are computed
    activations = batch_size * ((inputs + kept + logits) * context_len + scores)
    return 4 * weight_bytes(config, dtype) + activations
