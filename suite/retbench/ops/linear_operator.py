"""The linear recurrence in its forms: pure functions of one signature, equal to rounding at any length and state.

    S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t
    out_t = q_t S_t                                    inclusive read-out
    out_t = q_t (S_{t-1} + diag(bonus) k_t^T v_t)      exclusive read-out with a bonus for the own token

Shapes: q, k (B, T, G, K); v (B, T, H, V); state (B, H, K, V). Each of the G heads of q and k serves H / G neighbouring
heads. `log_decay` is None (linear attention), (H,) if fixed (RetNet), (B, T, H) if data-dependent (gated retention,
Mamba-2), or (B, T, H, K) per channel (GLA, RWKV). `Readout` selects the read-out and a normaliser. Queries or keys are
scaled, mapped and rotated by the caller. No form applies a further scale, so no later norm has to cancel a
difference.

The state, the decay and every exponent are in the wider of float32 and the input's dtype. No form divides by a power of
the decay, so nothing overflows at any length. Factors below half the exponent range are set to zero, and those of a
decay per channel below a quarter of it: they are below rounding, and their products would be denormal numbers, which
are many times slower on a CPU. Products are in the wide dtype too, except those of the chunkwise form, which are in the
input's dtype as attention's are. The forms disable autocast, which would round the factors of every product. The decode
steps do not, since decoding never uses it.

Sources: Sun et al., arXiv:2307.08621, Eq. 5 (parallel), Eq. 6 (recurrent), Eq. 7 (chunkwise); Sun et al.,
arXiv:2405.05254, Eq. 4-7 for a data-dependent decay; Yang et al., arXiv:2312.06635, Sec. 4 for a decay per channel;
Peng et al., arXiv:2404.05892, Eq. 19 for the exclusive read-out; Katharopoulos et al., arXiv:2006.16236, Eq. 9 for the
normaliser.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from retbench.ops.chunk_decay import (
    exp_decay,
    split_decay,
    split_head_decay,
    sum_decay,
    tokens_at_once,
    unbind_decay,
)
from retbench.ops.chunk_outputs import ChunkOutputs
from retbench.ops.linear_chunk import (
    ChunkTerms,
    attend_chunk,
    chunk_terms,
    read_own,
    repeat_heads,
)
from retbench.ops.precision import cast, wide_dtype
from retbench.ops.shared_heads import attend_shared

LinearForm = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]

DEFAULT_CHUNK_SIZE = 128


class Readout(NamedTuple):
    """Read-out of outputs from the states: with or before the own token, divided by the sum of their weights or not."""

    bonus: Tensor | None = None
    """Weight of the own token, (H,) or (H, K), in an exclusive read-out; None is the inclusive read-out."""
    eps: float | None = None
    """Divide each output by the sum of its weights plus eps; None does not divide.

    The sum is one more column of the state, (B, H, K, V + 1), whose values are ones."""


INCLUSIVE = Readout()


def linear_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
    *,
    readout: Readout = INCLUSIVE,
) -> tuple[Tensor, Tensor]:
    """Compute the recurrence token by token, by its definition: O(1) work and memory per token.

    Args:
        q: Queries, (B, T, G, K).
        k: Keys, (B, T, G, K).
        v: Values, (B, T, H, V).
        log_decay: Logarithm of the decay, finite and at most 0: (H,), (B, T, H) or (B, T, H, K). None does not decay.
        state: State after the previous tokens, (B, H, K, V) in the wide dtype, or (B, H, K, V + 1) with a normaliser;
            None is zero. Not changed.
        readout: Inclusive or exclusive, with or without a normaliser.

    Returns:
        out: (B, T, H, V) in the dtype of v.
        state: State after the last token, in the wide dtype.

    Raises:
        ValueError: shapes disagree.
    """
    check_shapes(q, k, v, log_decay, state, readout)
    heads, wide = v.shape[2], wide_dtype(v.dtype)
    values = _extend(v, readout, wide).to(wide)
    q, k = (repeat_heads(x.to(wide).transpose(1, 2), heads) for x in (q, k))  # (B, H, T, K)
    state = _state_or_zeros(k, values, state)
    decay = None if log_decay is None else _per_state(exp_decay(log_decay, wide))
    outs = []
    with torch.autocast(q.device.type, enabled=False):
        for t in range(q.shape[2]):
            added = k[:, :, t, :, None] * values[:, t, :, None, :]  # (B, H, K, V)
            if readout.bonus is not None:
                read = state + readout.bonus.to(wide).view(heads, -1, 1) * added
            if decay is not None:
                state = (decay if decay.dim() == 3 else decay[:, t]) * state
            state = state + added
            if readout.bonus is None:
                read = state
            outs.append((q[:, :, t, None, :] @ read).squeeze(-2))  # (B, H, V)
    out = torch.stack(outs, dim=1) if outs else torch.empty_like(values)
    return _finish(out, v, readout), state


def linear_step_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    *,
    readout: Readout = INCLUSIVE,
) -> Tensor:
    """Compute one token of the recurrent form for decoding, and update the state in place. No gradients.

    Args:
        q: Query, (B, 1, G, K).
        k: Key, (B, 1, G, K).
        v: Value, (B, 1, H, V).
        log_decay: None, (H,), (B, 1, H) or (B, 1, H, K).
        state: (B, H, K, V) in the wide dtype, V + 1 columns with a normaliser; holds the new state afterwards.
        readout: Inclusive or exclusive, with or without a normaliser.

    Returns:
        (B, 1, H, V) in the dtype of v.
    """
    decay = None if log_decay is None else exp_decay(log_decay, state.dtype)
    return linear_decayed_step_(q, k, v, decay, state, readout=readout)


def linear_decayed_step_(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor, *, readout: Readout = INCLUSIVE
) -> Tensor:
    """Compute `linear_step_` from the decay itself, so that a fixed decay is computed only once.

    Arguments and returns as there, except `decay`, exp(log_decay): None, (H,), (B, 1, H) or (B, 1, H, K) in the wide
    dtype.
    """
    heads, wide = v.shape[2], state.dtype
    wide_q, wide_k = _share_heads(cast(q, wide), heads), _share_heads(cast(k, wide), heads)
    value = cast(_extend(v, readout, wide), wide)
    if readout.bonus is not None:  # before the state is decayed
        out = _read(wide_q, state) + read_own(wide_q, wide_k, readout.bonus)[..., None] * value
    if decay is not None:
        state.mul_(decay.view(-1, heads, decay.shape[-1] if decay.dim() == 4 else 1, 1))
    state.addcmul_(wide_k.view(-1, heads, wide_k.shape[3], 1), value.view(-1, heads, 1, value.shape[3]))
    if readout.bonus is None:
        out = _read(wide_q, state)
    return _finish(out, v, readout)


def _share_heads(x: Tensor, heads: int) -> Tensor:
    """Give every head its query or key, (B, 1, G, K) to (B, 1, H, K): one of all heads is not copied."""
    return x.expand(-1, -1, heads, -1) if x.shape[2] == 1 else repeat_heads(x, heads, dim=2)


def _read(q: Tensor, state: Tensor) -> Tensor:
    """Multiply one query per sequence and head, (B, 1, H, K), by states (B, H, K, V): (B, 1, H, V)."""
    batch, heads, key_dim, value_dim = state.shape
    out = torch.bmm(q.reshape(-1, 1, key_dim), state.flatten(0, 1))  # (B H, 1, V)
    return out.view(batch, 1, heads, value_dim)


def linear_last(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
    *,
    readout: Readout = INCLUSIVE,
) -> tuple[Tensor, Tensor]:
    """Compute the output of the last token only: O(T) work and no scores, since out_T = q_T S_T.

    Arguments, returns and errors as of `linear_recurrent`, with one token in q and the output, (B, 1, ., .).
    """
    check_shapes(q.expand_as(k), k, v, log_decay, state, readout)
    if readout.bonus is None:
        values = _extend(v, readout, wide_dtype(v.dtype))
        state = _fold(k, values, log_decay, state)
        wide_q = repeat_heads(q.transpose(1, 2).to(state.dtype), v.shape[2])
        with torch.autocast(q.device.type, enabled=False):
            out = (wide_q @ state).transpose(1, 2)  # (B, 1, H, V)
        return _finish(out, v, readout), state
    past_decay = last_decay = log_decay
    if log_decay is not None and log_decay.dim() > 1:
        past_decay, last_decay = log_decay[:, :-1], log_decay[:, -1:]
    if k.shape[1] > 1:  # the last query reads the state before its own token
        state = _fold(k[:, :-1], _extend(v[:, :-1], readout, wide_dtype(v.dtype)), past_decay, state)
    return linear_recurrent(q, k[:, -1:], v[:, -1:], last_decay, state, readout=readout)


def _fold(k: Tensor, values: Tensor, log_decay: Tensor | None, state: Tensor | None) -> Tensor:
    """Return the state after all tokens, (B, H, K, V) in the wide dtype."""
    wide = wide_dtype(values.dtype)
    k, values = k.transpose(1, 2).to(wide), values.transpose(1, 2).to(wide)
    k = repeat_heads(k, values.shape[1])
    if log_decay is None:
        log_decay = k.new_zeros(k.shape[1])
    summed = sum_decay(log_decay, k.shape[2])  # (B or 1, H, T) or (B, H, K, T)
    end = summed[..., -1:]
    until_end, total = exp_decay(end - summed, wide), exp_decay(end, wide)
    is_vector = log_decay.dim() == 4
    with torch.autocast(k.device.type, enabled=False):
        added = (k * (until_end.mT if is_vector else until_end[..., None])).mT @ values  # (B, H, K, V)
        return added if state is None else (total if is_vector else total[..., None]) * state + added


def linear_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
    *,
    readout: Readout = INCLUSIVE,
) -> tuple[Tensor, Tensor]:
    """Compute all tokens at once, (q k^T * D) v: O(T^2) work, no sequential dependence.

    Arguments, returns and errors as of `linear_recurrent`. It is the chunkwise form with one chunk and wide products.
    """
    chunk_size = max(1, q.shape[1])
    return linear_chunkwise(
        q, k, v, log_decay, state, readout=readout, chunk_size=chunk_size, wide_products=True
    )


def linear_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
    *,
    readout: Readout = INCLUSIVE,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    wide_products: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute the recurrence in chunks, parallel inside a chunk and recurrent between chunks: O(T) work and memory.

    Arguments, returns and errors as of `linear_recurrent`; the last chunk may be shorter than `chunk_size`.

    With 16-bit values the products take 16-bit factors and accumulate in float32, as in fla's kernels
    (`fla/ops/simple_gla/chunk.py`) and in fused attention; decays and the state between chunks stay in float32.

    `wide_products` takes the factors in the wide dtype instead. With a decay per channel, chunks whose size is a power
    of two do no work in vain.
    """
    check_shapes(q, k, v, log_decay, state, readout)
    length, heads, wide = q.shape[1], v.shape[2], wide_dtype(v.dtype)
    products = wide if wide_products else v.dtype
    if log_decay is None:
        log_decay = torch.zeros(heads, dtype=wide, device=q.device)
    values = _extend(v, readout, products)
    shares = q.shape[2] < heads and products == wide and readout.bonus is None and log_decay.dim() < 4
    with torch.autocast(q.device.type, enabled=False):
        if shares:
            tokens = tokens_at_once(log_decay, length, chunk_size)
            by_head = split_head_decay(log_decay, length, chunk_size, wide)
            out, state = attend_shared(q, k, values, by_head, tokens, state)
        else:
            # Split instead of slices: the gradient of a slice has the length of the sequence.
            parts = [x.transpose(1, 2).split(chunk_size, dim=2) for x in (q, k, values)]
            exclusive = readout.bonus is not None
            decays = split_decay(log_decay, length, chunk_size, wide, exclusive=exclusive)
            terms = (
                chunk_terms(q_chunk, k_chunk, decay, heads, readout.bonus, products)
                for q_chunk, k_chunk, decay in zip(*parts[:2], unbind_decay(decays), strict=True)
            )
            out, state = _attend_each(terms, parts[2], length, state)
    return _finish(out, v, readout), state


def _attend_each(
    terms: Iterable[ChunkTerms], values: Iterable[Tensor], length: int, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute all chunks by `attend_chunk`: outputs (B, T, H, V), and the state after the last."""
    outs = ChunkOutputs(length)
    for chunk, v in zip(terms, values, strict=True):
        out, state = attend_chunk(chunk, v, state)
        outs.add(out)
    assert state is not None
    return outs.join(), state


def _extend(v: Tensor, readout: Readout, dtype: torch.dtype) -> Tensor:
    """Return values with a column of ones in `dtype` where outputs are divided; else the values as they are."""
    if readout.eps is None:
        return v
    return torch.cat([cast(v, dtype), v.new_ones(*v.shape[:-1], 1, dtype=dtype)], dim=-1)


def _finish(out: Tensor, v: Tensor, readout: Readout) -> Tensor:
    """Return outputs (B, T, H, V) in the dtype of v, divided by their last column where the read-out says so."""
    if readout.eps is not None:
        out = cast(out, wide_dtype(v.dtype))
        out = out[..., :-1] / (out[..., -1:] + readout.eps)
    return cast(out, v.dtype)


def _per_state(decay: Tensor) -> Tensor:
    """Give a decay the axes of a state: (H, 1, 1), (B, T, H, 1, 1) or (B, T, H, K, 1)."""
    return decay[..., None] if decay.dim() == 4 else decay[..., None, None]


def _state_or_zeros(k: Tensor, values: Tensor, state: Tensor | None) -> Tensor:
    """Return the given state, or a zero state for k (B, H, T, K) and values (B, T, H, V)."""
    if state is not None:
        return state
    batch, heads, _, key_dim = k.shape
    return values.new_zeros(batch, heads, key_dim, values.shape[-1])


def check_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    readout: Readout = INCLUSIVE,
) -> None:
    """Raise ValueError if the shapes disagree."""
    if (
        q.dim() != 4
        or k.shape != q.shape
        or v.dim() != 4
        or v.shape[:2] != q.shape[:2]
        or v.shape[2] % q.shape[2]
    ):
        raise ValueError(
            "q and k must be (B, T, G, K) and v (B, T, H, V), where G divides H, got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    (batch, length, _, key_dim), (heads, value_dim) = q.shape, v.shape[2:]
    decays = (heads,), (batch, length, heads), (batch, length, heads, key_dim)
    if log_decay is not None and tuple(log_decay.shape) not in decays:
        raise ValueError(f"log_decay must be None or {_either(decays)}, got {tuple(log_decay.shape)}")
    bonuses = (heads,), (heads, key_dim)
    if readout.bonus is not None and tuple(readout.bonus.shape) not in bonuses:
        raise ValueError(f"bonus must be None or {_either(bonuses)}, got {tuple(readout.bonus.shape)}")
    columns = value_dim + (readout.eps is not None)
    if state is not None and tuple(state.shape) != (batch, heads, key_dim, columns):
        raise ValueError(f"state must be {(batch, heads, key_dim, columns)}, got {tuple(state.shape)}")


def _either(shapes: tuple[tuple[int, ...], ...]) -> str:
    """Return shapes as text: (2,), (1, 5, 2) or (1, 5, 2, 4)."""
    *first, last = map(str, shapes)
    return f"{', '.join(first)} or {last}"
