"""Retention in three forms: pure functions of one signature, equal to rounding at any length and from any state.

    out_t = q_t S_t        S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t

Shapes: q, k (B, T, H, K); v (B, T, H, V); state (B, H, K, V). `log_decay` is (H,) if fixed (RetNet) or (B, T, H) if
data-dependent (gated retention); zero is linear attention. Queries or keys are scaled and rotated by the caller. No
form applies a scale of its own, so no later norm has to cancel a difference.

The state, the decay and every exponent are in the wider of float32 and the input's dtype. No form divides by a power of
the decay, so nothing overflows at any length. Factors below half the exponent range are set to zero: they are far below
rounding, and their products would be denormal numbers, which are many times slower on a CPU. Products are in the wide
dtype too, except those of the chunkwise form, which are in the input's dtype as attention's are. The forms disable
autocast, which would round the factors of every product. `retention_step_` does not, since decoding never uses it.

Source: Sun et al., arXiv:2307.08621, Eq. 5 (parallel), Eq. 6 (recurrent), Eq. 7 (chunkwise); Sun et al.,
arXiv:2405.05254, Eq. 4-7 for a data-dependent decay.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RetentionForm = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]

DEFAULT_CHUNK_SIZE = 128


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of state and decay: the wider of float32 and `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def retention_recurrent(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute retention token by token, by its definition: O(1) work and memory per token.

    Args:
        q: Queries, (B, T, H, K).
        k: Keys, (B, T, H, K).
        v: Values, (B, T, H, V).
        log_decay: Logarithm of the decay, (H,) or (B, T, H), at most 0.
        state: State after the previous tokens, (B, H, K, V) in the wide dtype; None is zero. Not changed.

    Returns:
        out: (B, T, H, V) in the dtype of v.
        state: State after the last token, (B, H, K, V) in the wide dtype.

    Raises:
        ValueError: shapes disagree.
    """
    check_shapes(q, k, v, log_decay, state)
    wide = wide_dtype(v.dtype)
    state = _state_or_zeros(k, v, state)
    decay = _exp(log_decay, wide)[..., None, None]  # (H, 1, 1) or (B, T, H, 1, 1)
    q, k, wide_v = q.to(wide), k.to(wide), v.to(wide)
    outs = []
    with torch.autocast(q.device.type, enabled=False):
        for t in range(q.shape[1]):
            decay_t = decay[:, t] if log_decay.dim() == 3 else decay
            state = decay_t * state + k[:, t, :, :, None] * wide_v[:, t, :, None, :]
            outs.append((q[:, t, :, None, :] @ state).squeeze(-2))  # (B, H, V)
    return _stack_tokens(outs, v), state


def retention_step_(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> Tensor:
    """Compute one token of the recurrent form for decoding, and update the state in place. No gradients.

    Args:
        q: Query, (B, 1, H, K).
        k: Key, (B, 1, H, K).
        v: Value, (B, 1, H, V).
        log_decay: (H,) or (B, 1, H).
        state: (B, H, K, V) in the wide dtype; holds the new state afterwards.

    Returns:
        (B, 1, H, V) in the dtype of v.
    """
    return retention_decayed_step_(q, k, v, _exp(log_decay, state.dtype), state)


def retention_decayed_step_(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    """Compute `retention_step_` from the decay itself, so that a fixed decay is computed only once.

    Arguments and returns as there, except `decay`, exp(log_decay): (H,) or (B, 1, H) in the wide dtype.
    """
    decay = decay.view(-1, decay.shape[-1], 1, 1)  # (1 or B, H, 1, 1)
    q, k, wide_v = q.to(state.dtype), k.to(state.dtype), v.to(state.dtype)
    state.mul_(decay).addcmul_(k.squeeze(1).unsqueeze(-1), wide_v.squeeze(1).unsqueeze(-2))
    out = torch.bmm(q.reshape(-1, 1, q.shape[-1]), state.flatten(0, 1))  # (B H, 1, V)
    return out.view(v.shape).to(v.dtype)


def retention_last(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute retention of the last token only: O(T) work and no scores, since out_T = q_T S_T.

    Arguments, returns and errors as of `retention_recurrent`, with one token in q and the output, (B, 1, H, .).
    """
    check_shapes(q.expand_as(k), k, v, log_decay, state)
    wide = wide_dtype(v.dtype)
    summed = _summed(log_decay, k.shape[1])
    k, wide_v = k.transpose(1, 2).to(wide), v.transpose(1, 2).to(wide)
    end = summed[..., -1:]
    with torch.autocast(q.device.type, enabled=False):
        values = (k * _exp(end - summed, wide)[..., None]).mT @ wide_v  # (B, H, K, V)
        if state is not None:
            values = values + _exp(end, wide)[..., None] * state
        out = q.transpose(1, 2).to(wide) @ values  # (B, H, 1, V)
    return out.transpose(1, 2).to(v.dtype), values


def retention_parallel(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute retention of all tokens at once, (q k^T * D) v: O(T^2) work, no sequential dependence.

    Arguments, returns and errors as of `retention_recurrent`. The state adds one term, as in Eq. 7.
    """
    check_shapes(q, k, v, log_decay, state)
    decay = _decay_factors(log_decay, q.shape[1], wide_dtype(v.dtype))
    out, state = _attend_chunk(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), decay, state)
    return out.transpose(1, 2), state


def retention_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    wide_products: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute retention in chunks, parallel inside a chunk and recurrent between chunks: O(T) work and memory.

    Arguments, returns and errors as of `retention_recurrent`; the last chunk may be shorter than `chunk_size`.

    With 16-bit values the products take 16-bit factors and accumulate in float32, as in fla's kernels
    (`fla/ops/simple_gla/chunk.py`) and in fused attention; decays and the state between chunks stay in float32.

    `wide_products` takes the factors in the wide dtype instead.
    """
    check_shapes(q, k, v, log_decay, state)
    wide = wide_dtype(v.dtype)
    attend = _attend_chunk if wide_products or v.dtype == wide else _attend_chunk_narrow
    # Split instead of slices: the gradient of a slice has the length of the sequence, that of a split one chunk.
    parts = [x.transpose(1, 2).split(chunk_size, dim=2) for x in (q, k, v)]  # (B, H, C, .) each
    fixed = log_decay.dim() == 1
    by_chunk = None if fixed else log_decay.split(chunk_size, dim=1)
    outs = []
    decay = _decay_factors(log_decay, parts[0][0].shape[2], wide) if fixed else None
    for index, (q_chunk, k_chunk, v_chunk) in enumerate(zip(*parts, strict=True)):
        width = q_chunk.shape[2]
        if by_chunk is not None:
            decay = _decay_factors(by_chunk[index], width, wide)
        elif decay is None or width != decay.within.shape[-1]:  # the shorter last chunk
            decay = _decay_factors(log_decay, width, wide)
        out, state = attend(q_chunk, k_chunk, v_chunk, decay, state)
        outs.append(out)
    assert state is not None
    return torch.cat(outs, dim=2).transpose(1, 2), state


class _DecayFactors(NamedTuple):
    """Products of the decay over the tokens of one chunk; the batch axis is 1 for a fixed decay."""

    within: Tensor
    """(B or 1, H, C, C): from key j to query i, zero for j > i."""
    since_start: Tensor
    """(B or 1, H, C, 1): from the start of the chunk to query i."""
    until_end: Tensor
    """(B or 1, H, C, 1): from key j to the end of the chunk."""
    total: Tensor
    """(B or 1, H, 1, 1): over the whole chunk."""


def _decay_factors(log_decay: Tensor, length: int, wide: torch.dtype) -> _DecayFactors:
    """Compute the decay factors of a chunk of `length` tokens."""
    summed = _summed(log_decay, length)
    if log_decay.dim() == 1:
        within = _fixed_decay_matrix(log_decay, length, wide)
    else:
        later = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).triu(1)
        between = summed[..., :, None] - summed[..., None, :]  # (B, H, C, C)
        within = _exp(between.masked_fill(later, -math.inf), wide)
    end = summed[..., -1:]
    return _DecayFactors(
        within=within,
        since_start=_exp(summed, wide)[..., None],
        until_end=_exp(end - summed, wide)[..., None],
        total=_exp(end, wide)[..., None],
    )


def _fixed_decay_matrix(log_decay: Tensor, length: int, wide: torch.dtype) -> Tensor:
    """Return powers of decays (H,) from key j to query i, (1, H, C, C), each computed once per distance i - j."""
    distances = torch.arange(length - 1, -1, -1, device=log_decay.device, dtype=torch.float64)
    powers = _exp(log_decay.double()[:, None] * distances, wide)  # (H, C), longest distance first
    padded = F.pad(powers, (0, length - 1))  # zeros for keys after the query
    return padded.unfold(-1, length, 1).flip(-2)[None]


def _summed(log_decay: Tensor, length: int) -> Tensor:
    """Return the logarithm of the decay from before the first of `length` tokens to each, (B or 1, H, T).

    Sums are in float64, since the difference of two long sums would lose digits in float32.
    """
    if log_decay.dim() == 1:
        steps = torch.arange(1, length + 1, device=log_decay.device, dtype=torch.float64)
        return (log_decay.double()[:, None] * steps)[None]
    return log_decay.double().transpose(1, 2).cumsum(-1)


def _attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, decay: _DecayFactors, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute one chunk, heads first: q, k (B, H, C, K), v (B, H, C, V), state (B, H, K, V) or None for zero.

    Everything is in the wide dtype, and outputs are rounded once. A sum of two rounded terms that nearly cancel would
    be mostly rounding error, which the norm of the head would amplify.
    """
    dtype, wide = v.dtype, decay.within.dtype
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    with torch.autocast(q.device.type, enabled=False):
        out = ((q @ k.mT) * decay.within) @ v  # (B, H, C, V)
        added = (k * decay.until_end).mT @ v  # (B, H, K, V)
        if state is None:
            return out.to(dtype), added
        out = out + (q * decay.since_start) @ state
        return out.to(dtype), decay.total * state + added


def _attend_chunk_narrow(
    q: Tensor, k: Tensor, v: Tensor, decay: _DecayFactors, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute one chunk as `_attend_chunk` does, with factors of products in the 16-bit dtype of v.

    What a query reads of its chunk and of the state is one product, whose sum is rounded once: two rounded terms may
    nearly cancel.
    """
    dtype, wide = v.dtype, decay.within.dtype
    q, k = q.to(dtype), k.to(dtype)
    with torch.autocast(q.device.type, enabled=False):
        weights = ((q @ k.mT) * decay.within).to(dtype)  # (B, H, C, C)
        added = ((k * decay.until_end).to(dtype).mT @ v).to(wide)  # (B, H, K, V)
        if state is None:
            return weights @ v, added
        weights = torch.cat([weights, (q * decay.since_start).to(dtype)], dim=-1)  # (B, H, C, C + K)
        out = weights @ torch.cat([v, state.to(dtype)], dim=-2)
        return out, decay.total * state + added


def _exp(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the exponential in float64, rounded once to `dtype`; exactly zero below half of its exponent range."""
    exponent = exponent.double()
    floor = math.log(torch.finfo(dtype).tiny) / 2
    return exponent.masked_fill(exponent < floor, -math.inf).exp().to(dtype)


def _state_or_zeros(k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    """Return the given state, or a zero state for k (B, T, H, K) and v (B, T, H, V)."""
    if state is not None:
        return state
    batch, _, heads, key_dim = k.shape
    return torch.zeros(batch, heads, key_dim, v.shape[-1], dtype=wide_dtype(v.dtype), device=v.device)


def _stack_tokens(outs: list[Tensor], v: Tensor) -> Tensor:
    """Stack T outputs (B, H, V) to (B, T, H, V) in the dtype of v."""
    return torch.stack(outs, dim=1).to(v.dtype) if outs else torch.empty_like(v)


def check_shapes(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> None:
    """Raise ValueError if the shapes disagree."""
    if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"q and k must be (B, T, H, K) and v (B, T, H, V), got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    batch, length, heads, key_dim = q.shape
    if tuple(log_decay.shape) not in ((heads,), (batch, length, heads)):
        raise ValueError(
            f"log_decay must be ({heads},) or ({batch}, {length}, {heads}), got {tuple(log_decay.shape)}"
        )
    if state is not None and tuple(state.shape) != (batch, heads, key_dim, v.shape[-1]):
        raise ValueError(f"state must be {(batch, heads, key_dim, v.shape[-1])}, got {tuple(state.shape)}")
