"""One chunk of the linear recurrence of `ops.linear_operator`, computed in parallel with exponents of at most zero.

A chunk of C tokens needs what each query reads of each value, what it reads of the state before the chunk, and what
each key leaves in the state after it: `ChunkTerms`. With one decay per head, the decay between two tokens is a factor
of the product of query and key, exp of a difference of sums. With a decay per channel it is inside that product, so
`vector_terms` halves the chunk again and again (the secondary chunks of arXiv:2312.06635, Sec. 4.2, down to one token).

Letters as in `retbench.ops`; G is the number of heads of q and k, which divides H.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of state and decay: the wider of float32 and `dtype`."""
    return torch.promote_types(dtype, torch.float32)


class DecayFactors(NamedTuple):
    """Products of one decay per head over the tokens of one chunk; the batch axis is 1 for a fixed decay."""

    within: Tensor
    """(B or 1, H, C, C): from key j to query i, zero for j > i."""
    since_start: Tensor
    """(B or 1, H, C, 1): from the start of the chunk to query i."""
    until_end: Tensor
    """(B or 1, H, C, 1): from key j to the end of the chunk."""
    total: Tensor
    """(B or 1, H, 1, 1): over the whole chunk."""


class ChunkTerms(NamedTuple):
    """One chunk with its decays multiplied in, in the dtype of the products; `total` is in the wide dtype."""

    weights: Tensor
    """(B, H, C, C): what query i reads of value j."""
    reads: Tensor
    """(B, H, C, K): queries as they read the state before the chunk."""
    writes: Tensor
    """(B, H, C, K): keys as they are in the state after the chunk."""
    total: Tensor
    """(B or 1, H, 1 or K, 1): decay of the state over the chunk."""


def split_decay(
    log_decay: Tensor, length: int, chunk_size: int, wide: torch.dtype, *, exclusive: bool
) -> Iterator[DecayFactors | Tensor]:
    """Return the decay of each chunk of `length` tokens, as `chunk_terms` takes it.

    Args:
        log_decay: (H,), (B, T, H) or (B, T, H, K).
        length: T.
        chunk_size: Tokens per chunk; the last chunk may be shorter.
        wide: The dtype of the decays.
        exclusive: True if queries read the state before their own token.

    Yields:
        `DecayFactors`, the same for all chunks of one length where the decay is fixed; or (B, H, C, K), the logarithms
        of a decay per channel.
    """
    if log_decay.dim() == 4:
        yield from log_decay.to(wide).transpose(1, 2).split(chunk_size, dim=2)
        return
    width = min(chunk_size, length)
    runs = [(max(1, length // chunk_size), width)]  # of chunks of one length
    if length > width and length % width:
        runs.append((1, length % width))
    start = 0
    for count, width in runs:
        if log_decay.dim() == 1:
            factors = fixed_decay_factors(log_decay, width, wide)
            yield from (_delay(factors) if exclusive else factors,) * count
        else:
            end = start + count * width
            for factors in decay_factors(log_decay[:, start:end], count, wide):
                yield _delay(factors) if exclusive else factors
            start = end


def fixed_decay_factors(log_decay: Tensor, length: int, wide: torch.dtype) -> DecayFactors:
    """Compute the decay factors of a chunk of `length` tokens for a decay (H,)."""
    within = _fixed_decay_matrix(log_decay, length, wide)
    return DecayFactors(within, *_reach(sum_decay(log_decay, length), wide))


def decay_factors(log_decay: Tensor, count: int, wide: torch.dtype) -> Iterator[DecayFactors]:
    """Compute the decay factors of `count` chunks of equal length for a decay (B, T, H).

    What has no pairs of tokens is so small that calling its operators takes longest: it is computed for all chunks at
    once.
    """
    chunks = log_decay.unflatten(1, (count, -1)) if log_decay.shape[1] else log_decay[:, None]  # (B, N, C, H)
    summed = chunks.double().permute(1, 0, 3, 2).cumsum(-1)  # (N, B, H, C)
    reaches = (factors.unbind(0) for factors in _reach(summed, wide))
    length = summed.shape[-1]
    later = torch.full((length, length), -math.inf, dtype=wide, device=log_decay.device).triu_(1)
    for one, *reach in zip(summed.unbind(0), *reaches, strict=True):
        # Differences are exact in float64; their exponentials are C x C per head, and cheaper in the wide dtype.
        between = (one[..., :, None] - one[..., None, :]).to(wide)  # (B, H, C, C)
        yield DecayFactors(_exp_sum(between.add_(later)), *reach)


def _reach(summed: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors since the start, until the end and in total from sums (..., H, C); see `DecayFactors`."""
    end = summed[..., -1:]
    exponents = summed, end - summed, end
    since_start, until_end, total = (exp_decay(one, wide)[..., None] for one in exponents)
    return since_start, until_end, total


def _delay(factors: DecayFactors) -> DecayFactors:
    """Return the factors of queries that read the state before their own token: those of the query before each."""
    return factors._replace(
        within=F.pad(factors.within[..., :-1, :], (0, 0, 1, 0)),
        since_start=F.pad(factors.since_start[..., :-1, :], (0, 0, 1, 0), value=1.0),
    )


def _fixed_decay_matrix(log_decay: Tensor, length: int, wide: torch.dtype) -> Tensor:
    """Return powers of decays (H,) from key j to query i, (1, H, C, C), each computed once per distance i - j."""
    distances = torch.arange(length - 1, -1, -1, device=log_decay.device, dtype=torch.float64)
    powers = exp_decay(log_decay.double()[:, None] * distances, wide)  # (H, C), longest distance first
    padded = F.pad(powers, (0, length - 1))  # zeros for keys after the query
    return padded.unfold(-1, length, 1).flip(-2)[None]


def sum_decay(log_decay: Tensor, length: int) -> Tensor:
    """Return the logarithm of the decay from before the first of `length` tokens to each.

    (B or 1, H, T) for a decay (H,) or (B, T, H), and (B, H, K, T) for a decay (B, T, H, K). Sums are in float64, since
    the difference of two long sums would lose digits in float32.
    """
    if log_decay.dim() == 1:
        steps = torch.arange(1, length + 1, device=log_decay.device, dtype=torch.float64)
        return (log_decay.double()[:, None] * steps)[None]
    return log_decay.double().movedim(1, -1).cumsum(-1)


def exp_decay(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the exponential in float64, rounded once to `dtype`; exactly zero below half of its exponent range."""
    return _exp_above(exponent.double(), _floor(dtype)).to(dtype)


def _floor(dtype: torch.dtype) -> float:
    """Return half of the lowest exponent that a dtype holds: the logarithm below which a decay is zero."""
    return math.log(torch.finfo(dtype).tiny) / 2


def chunk_terms(
    q: Tensor,
    k: Tensor,
    decay: DecayFactors | Tensor,
    heads: int,
    bonus: Tensor | None,
    products: torch.dtype,
) -> ChunkTerms:
    """Compute the terms of one chunk.

    Args:
        q: Queries, (B, G, C, K).
        k: Keys, (B, G, C, K).
        decay: An item of `split_decay`.
        heads: H.
        bonus: None if queries read the state with their own token. Else they read the state before it and the own
            token by this weight, (H,) or (H, K), and `decay` is exclusive.
        products: The dtype of the factors of products.
    """
    if isinstance(decay, Tensor):
        return vector_terms(repeat_heads(q, heads), repeat_heads(k, heads), decay, bonus, products)
    q, k = q.to(products), k.to(products)
    weights = repeat_heads(q @ k.mT, heads) * decay.within  # heads of a group share the product
    q, k = repeat_heads(q, heads), repeat_heads(k, heads)
    if bonus is not None:
        own = read_own(q.transpose(1, 2).to(weights.dtype), k.transpose(1, 2), bonus)  # (B, C, H)
        weights = weights + torch.diag_embed(own.transpose(1, 2))
    return ChunkTerms(
        weights=weights.to(products),
        reads=(q * decay.since_start).to(products),
        writes=(k * decay.until_end).to(products),
        total=decay.total,
    )


def vector_terms(
    q: Tensor, k: Tensor, log_decay: Tensor, bonus: Tensor | None, products: torch.dtype
) -> ChunkTerms:
    """Compute the terms of one chunk with a decay per channel, from single tokens to pairs, to blocks of 4, 8, ... C.

    Two neighbouring blocks of n tokens give n x n weights: queries of the second block, decayed since its start, times
    keys of the first, decayed until its end. Each exponent is a sum of logarithms of the same sign, and never a
    difference of two sums: none is above zero, and float32 keeps all of their digits.

    Args:
        q: Queries, (B, H, C, K).
        k: Keys, (B, H, C, K).
        log_decay: (B, H, C, K) in the wide dtype.
        bonus: As of `chunk_terms`.
        products: As of `chunk_terms`.
    """
    length, size = q.shape[2], 1 << (q.shape[2] - 1).bit_length()
    # Tokens before heads: the blocks below are then long runs of memory. Added tokens have no keys and no decay.
    q, k, log_decay = (_pad_tokens(x.transpose(1, 2).to(log_decay.dtype), size) for x in (q, k, log_decay))
    batch, _, heads, key_dim = q.shape
    # Sums of logarithms inside a block: from its start to query i, and from key j to its end.
    reach = (
        q.new_zeros(q.shape) if bonus is not None else log_decay.clone(memory_format=torch.contiguous_format)
    )
    until = k.new_zeros(k.shape)
    total = log_decay[:, :, None]  # (B, blocks, 1, H, K)
    weights = torch.zeros(batch, heads, size, size, dtype=products, device=q.device)
    weights.diagonal(dim1=2, dim2=3).copy_(read_own(q, k, bonus).transpose(1, 2))
    half = 1
    while half < size:
        pairs = (batch, size // (2 * half), 2, half, heads, key_dim)
        reach_second, until_first = reach.view(pairs)[:, :, 1], until.view(pairs)[:, :, 0]
        later = (q.view(pairs)[:, :, 1] * _exp_sum(reach_second)).to(products)  # (B, pairs, half, H, K)
        earlier = (k.view(pairs)[:, :, 0] * _exp_sum(until_first)).to(products)
        _between_halves(weights, half).copy_(_multiply_blocks(later, earlier))
        first, second = total.view(batch, -1, 2, 1, heads, key_dim).unbind(2)
        reach_second.add_(first)
        until_first.add_(second)
        total, half = first + second, 2 * half
    return ChunkTerms(
        weights=weights[:, :, :length, :length],
        reads=(q * _exp_sum(reach))[:, :length].transpose(1, 2).to(products),
        writes=(k * _exp_sum(until))[:, :length].transpose(1, 2).to(products),
        total=_exp_sum(total).view(batch, heads, key_dim, 1),
    )


def _pad_tokens(x: Tensor, size: int) -> Tensor:
    """(B, T, H, K) to (B, size, H, K), with zeros after the last token."""
    return x if x.shape[1] == size else F.pad(x, (0, 0, 0, 0, 0, size - x.shape[1]))


def _between_halves(weights: Tensor, half: int) -> Tensor:
    """Return the view of what the second half of each block of 2 half tokens reads of the first.

    (B, H, C, C) to (B, H, half, half, blocks).
    """
    blocks = weights.shape[-1] // (2 * half)
    tiles = weights.unflatten(3, (blocks, 2, half)).unflatten(2, (blocks, 2, half))
    view: Tensor = tiles[:, :, :, 1, :, :, 0].diagonal(dim1=2, dim2=4)
    return view


def _multiply_blocks(later: Tensor, earlier: Tensor) -> Tensor:
    """Multiply queries by keys of each block, (B, blocks, n, H, K) each, to (B, H, n, n, blocks)."""
    if later.shape[2] == 1:  # a product of matrices costs more than it computes
        return (later * earlier).sum(-1).permute(0, 3, 2, 1).unsqueeze(2)
    products: Tensor = later.permute(0, 3, 1, 2, 4) @ earlier.permute(0, 3, 1, 4, 2)
    return products.movedim(2, -1)


def _exp_sum(exponent: Tensor) -> Tensor:
    """Return the exponential, zero below half of the dtype's exponent range, without a pass in float64."""
    return _exp_above(exponent, _floor(exponent.dtype))


def _exp_above(exponent: Tensor, floor: float) -> Tensor:
    """Return the exponential where the exponent is above `floor`, and zero elsewhere."""
    if not exponent.requires_grad:
        return _clamped_exp(exponent, floor)
    factor: Tensor = _ExpAbove.apply(exponent, floor)  # type: ignore[no-untyped-call]
    return factor


def _clamped_exp(exponent: Tensor, floor: float) -> Tensor:
    """Compute `_exp_above` without ever taking the exponential of a number far below `floor`.

    Where the exponential underflows or is denormal, that of a CPU (Intel's vector library) takes 20 to 200 times as
    long.
    """
    # A clamped exponent is below the floor by more than rounding.
    return F.threshold(exponent.clamp(min=floor - 1).exp(), math.exp(floor), 0.0)


class _ExpAbove(torch.autograd.Function):
    """`_exp_above` with gradients, which need its result only."""

    @staticmethod
    def forward(ctx: Any, exponent: Tensor, floor: float) -> Tensor:
        """Compute the exponential, and keep it."""
        factor = _clamped_exp(exponent, floor)
        ctx.save_for_backward(factor)
        return factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Multiply the gradient by the exponential."""
        (factor,) = ctx.saved_tensors
        return grad * factor, None


def read_own(q: Tensor, k: Tensor, bonus: Tensor | None) -> Tensor:
    """Return what queries read of their own values, (..., H) for q and k (..., H, K) and a bonus (H,) or (H, K)."""
    return (q * k if bonus is None else q * k * bonus.to(q.dtype).view(q.shape[-2], -1)).sum(-1)


def repeat_heads(x: Tensor, heads: int, dim: int = 1) -> Tensor:
    """Repeat the heads in axis `dim` from G to H: each head of q and k serves H / G neighbouring heads."""
    # repeat_interleave copies also where nothing repeats.
    return x if x.shape[dim] == heads else x.repeat_interleave(heads // x.shape[dim], dim=dim)


def attend_chunk(terms: ChunkTerms, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the outputs (B, H, C, V) of one chunk in the dtype of v, and the state after it.

    In the wide dtype, outputs are rounded once: a sum of two rounded terms that nearly cancel would be mostly rounding
    error, which the norm of the head would amplify. With factors in a 16-bit dtype, what a query reads of its chunk and
    of the state is one product for the same reason.

    Args:
        terms: Of the chunk.
        v: Values, (B, H, C, V).
        state: Before the chunk, (B, H, K, V) in the wide dtype; None is zero.
    """
    dtype, wide, products = v.dtype, terms.total.dtype, terms.weights.dtype
    v = v.to(products)
    added = (terms.writes.mT @ v).to(wide)  # (B, H, K, V)
    if state is None:
        return (terms.weights @ v).to(dtype), added
    if products == wide:
        out = terms.weights @ v + terms.reads @ state
    else:
        joined = torch.cat([terms.weights, terms.reads], dim=-1)  # (B, H, C, C + K)
        out = joined @ torch.cat([v, state.to(products)], dim=-2)
    return out.to(dtype), terms.total * state + added


def attend_shared_chunk(
    q: Tensor, k: Tensor, v: Tensor, decay: DecayFactors, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute one chunk of heads that share queries and keys, all in the wide dtype, without a copy of these per head.

    The decays multiply the values and what is read, instead of the keys and queries. So the heads of a group are the
    columns of one product with the state.

    Args:
        q: Queries, (B, G, C, K).
        k: Keys, (B, G, C, K).
        v: Values, (B, H, C, V).
        decay: Of the chunk, for an inclusive read-out.
        state: Before the chunk, (B, G, K, H / G, V); None is zero.

    Returns:
        out: (B, H, C, V).
        state: After the chunk, (B, G, K, H / G, V).
    """
    within, since_start, until_end, total = (x.unflatten(1, (q.shape[1], -1)) for x in decay)
    v = v.unflatten(1, (q.shape[1], -1))  # (B, G, H / G, C, V)
    heads = v.shape[2], v.shape[4]
    out = ((q @ k.mT).unsqueeze(2) * within) @ v
    left = (v * until_end).transpose(2, 3).flatten(3)  # (B, G, C, H / G V)
    added = (k.mT @ left).unflatten(3, heads)  # (B, G, K, H / G, V)
    if state is None:
        return out.flatten(1, 2), added
    read = (q @ state.flatten(3)).unflatten(3, heads).transpose(2, 3)  # (B, G, H / G, C, V)
    # In place: the gradients of a product do not need what it gave.
    out = out.addcmul_(read, since_start)
    return out.flatten(1, 2), added.addcmul_(state, total.transpose(2, 3))
