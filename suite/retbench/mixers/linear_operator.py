"""Operation counts of the linear operator o_t = q_t S_t, S_t = decay S_{t-1} + k_t^T v_t, shared by its mixers."""

from retbench.mixers.mixer import causal_pairs

SEGMENT = 1024
"""Tokens of a prompt that the parallel form takes as one chunk: those of a segment, `costs.PREFILL_SEGMENT`."""


def counted_chunk(form: str, chunk_size: int | None) -> int | None:
    """Return the chunk that a form's operations are counted by: 1 for the recurrent, None for the parallel."""
    return {"parallel": None, "recurrent": 1}.get(form, chunk_size)


def step_flops(num_heads: int, key_dim: int, value_dim: int) -> int:
    """Return the operations of one token: decay and rank-one update (3 for each state value), the read-out (2)."""
    return 5 * num_heads * key_dim * value_dim


def training_flops(num_heads: int, key_dim: int, value_dim: int, context_len: int, chunk: int | None) -> int:
    """Return the products of a forward pass over one sequence that starts without a state.

    Args:
        num_heads: H.
        key_dim: K.
        value_dim: V.
        context_len: Tokens.
        chunk: See `counted_chunk`; None is the parallel form, counted causal like attention.
    """
    if chunk is None:
        return num_heads * (key_dim + value_dim) * causal_pairs(context_len)
    whole, rest = divmod(context_len, chunk)
    inside = 2 * (whole * chunk**2 + rest**2) * (key_dim + value_dim)
    written = context_len - (rest or chunk)  # tokens of all chunks but the last
    read = max(0, context_len - chunk)  # and of all but the first
    return num_heads * (inside + 2 * (written + read) * key_dim * value_dim)


def prefill_flops(
    num_heads: int, key_dim: int, value_dim: int, context_len: int, chunk: int | None, *, last_only: bool
) -> int:
    """Return the products of one prompt; the blocks on the diagonal are counted whole, as they are computed.

    Arguments as of `training_flops`; with `last_only` only the last token has an output.
    """
    update = 2 * key_dim * value_dim  # and as much for a read-out of the state
    if last_only:
        return num_heads * (context_len + 1) * update
    inside = 2 * min(chunk or SEGMENT, SEGMENT, context_len) * (key_dim + value_dim)
    return num_heads * context_len * (inside + 2 * update)
