"""Decays within chunks of the linear recurrence, with exponents of at most zero: see `ops.linear_chunk`."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16
"""Tokens of a block whose pairs take an exponential each, for a data-dependent decay per head."""
PAIRS_AT_ONCE = 1 << 18
"""Pairs of tokens within blocks, of all heads and some chunks, that are computed at once: it bounds their memory.

With fewer, two cores of a CPU take longer: the operators have too little work to share.
"""


class DecayBlocks(NamedTuple):
    """Decay from key j to query i in N chunks, in factors: their product for every pair would leave a CPU's cache.

    Pairs within a block of BLOCK tokens take an exponential each. The decay between tokens of two blocks is that from
    the key to the start of the query's block, times that from there.
    """

    since: Tensor
    """(N, B, H, blocks, block, 1): from the start of its block to query i."""
    before: Tensor
    """(N, B, H, blocks, 1, C): from key j to the start of each block, zero for keys that are not before it."""
    own: Tensor
    """(N, B, H, block, block, blocks): from key j to query i of one block, zero for j > i."""

    def unbind(self) -> "list[DecayBlocks]":
        """Return those of each chunk, without axis N."""
        return list(map(DecayBlocks, *(x.unbind() for x in self)))


class DecayFactors(NamedTuple):
    """Products of one decay per head over the tokens of each of N chunks; the batch axis is 1 for a fixed decay."""

    within: Tensor | DecayBlocks
    """(N, B or 1, H, C, C): from key j to query i, zero for j > i; see `multiply_decay`."""
    since_start: Tensor
    """(N, B or 1, H, C, 1): from the start of the chunk to query i."""
    until_end: Tensor
    """(N, B or 1, H, C, 1): from key j to the end of the chunk."""
    total: Tensor
    """(N, B or 1, H, 1, 1): over the whole chunk."""

    def unbind(self) -> "list[DecayFactors]":
        """Return those of each chunk, without axis N."""
        return list(map(DecayFactors, *(x.unbind() for x in self)))


def split_decay(
    log_decay: Tensor, length: int, chunk_size: int, wide: torch.dtype, *, exclusive: bool
) -> Iterator[DecayFactors | Tensor]:
    """Return the decay of the chunks of `length` tokens, from the first to the last.

    Args:
        log_decay: (H,), (B, T, H) or (B, T, H, K).
        length: T.
        chunk_size: Tokens per chunk; the last chunk may be shorter.
        wide: The dtype of the decays.
        exclusive: True if queries read the state before their own token.

    Yields:
        `DecayFactors` of one or several neighbouring chunks, the same for all chunks of one length where the decay is
        fixed; or (B, H, C, K), the logarithms of a decay per channel, of one chunk.
    """
    if log_decay.dim() == 4:
        yield from log_decay.to(wide).transpose(1, 2).split(chunk_size, dim=2)
    else:
        yield from split_head_decay(log_decay, length, chunk_size, wide, exclusive=exclusive)


def split_head_decay(
    log_decay: Tensor, length: int, chunk_size: int, wide: torch.dtype, *, exclusive: bool = False
) -> Iterator[DecayFactors]:
    """Yield what `split_decay` yields for a decay (H,) or (B, T, H)."""
    start = 0
    for count, width in _runs(length, chunk_size):
        if log_decay.dim() == 1:
            factors = fixed_decay_factors(log_decay, width, wide)
            yield from (_delay(factors) if exclusive else factors,) * count
        else:
            end = start + count * width
            for factors in decay_factors(log_decay[:, start:end], count, wide):
                yield _delay(factors) if exclusive else factors
            start = end


def tokens_at_once(log_decay: Tensor, length: int, chunk_size: int) -> list[int]:
    """Return how many tokens each item of `split_head_decay` is for."""
    tokens = []
    for count, width in _runs(length, chunk_size):
        most = 1 if log_decay.dim() == 1 else _chunks_at_once(log_decay[:, :1].numel(), width)
        tokens += [min(most, count - start) * width for start in range(0, count, most)]
    return tokens


def _runs(length: int, chunk_size: int) -> list[tuple[int, int]]:
    """Return how many neighbouring chunks of one length there are, and their length: all but the last, and the last."""
    width = min(chunk_size, length)
    runs = [(max(1, length // chunk_size), width)]
    if length > width and length % width:
        runs.append((1, length % width))
    return runs


def _chunks_at_once(num_sequences: int, length: int) -> int:
    """Return how many chunks of B H sequences have PAIRS_AT_ONCE pairs within blocks, at least 1."""
    return max(1, PAIRS_AT_ONCE // max(1, num_sequences * length * _block(length)))


def _block(length: int) -> int:
    """Return the tokens of the blocks of a chunk."""
    return length if length % BLOCK else BLOCK


def unbind_decay(decays: Iterable[DecayFactors | Tensor]) -> Iterator[DecayFactors | Tensor]:
    """Yield the decay of each chunk, of those that `split_decay` yields."""
    before, chunks = None, []
    for decay in decays:
        if isinstance(decay, Tensor):
            yield decay
            continue
        if decay is not before:  # a fixed decay is one object
            before, chunks = decay, decay.unbind()
        yield from chunks


def fixed_decay_factors(log_decay: Tensor, length: int, wide: torch.dtype) -> DecayFactors:
    """Compute the decay factors of one chunk of `length` tokens for a decay (H,)."""
    within = _fixed_decay_matrix(log_decay, length, wide)
    return DecayFactors(within, *_reach(sum_decay(log_decay, length)[None, None], wide))


def decay_factors(log_decay: Tensor, count: int, wide: torch.dtype) -> Iterator[DecayFactors]:
    """Compute the decay factors of `count` chunks of equal length for a decay (B, T, H), some chunks at a time.

    What has no pairs of tokens is so small that calling its operators takes longest: it is computed for all chunks at
    once.
    """
    chunks = log_decay.unflatten(1, (count, -1)) if log_decay.shape[1] else log_decay[:, None]  # (B, N, C, H)
    summed = _running_sums(chunks.double().permute(1, 0, 3, 2), wide)  # (P, N, B, H, C)
    at_once = _chunks_at_once(summed[0, 0, :, :, :1].numel(), summed.shape[-1])
    reaches = (factors.split(at_once) for factors in _reach(summed, wide))
    for within, *reach in zip(_decay_within(summed, wide, at_once), *reaches, strict=True):
        yield DecayFactors(within, *reach)


def _running_sums(log_decay: Tensor, wide: torch.dtype) -> Tensor:
    """Return the sums of decays (..., C) in float64 from the first on, in P parts that add up to them, (P, ..., C).

    The difference of two long sums has their rounding errors, which are nothing in float32. In float64 the errors are
    the second part: what is added, less the difference of neighbouring sums, which is exact.
    """
    summed = log_decay.cumsum(-1)
    if wide != torch.float64:
        return summed[None]
    steps = torch.cat([summed[..., :1], summed.diff(dim=-1)], dim=-1)
    return torch.stack([summed, (log_decay - steps).cumsum(-1)])


def _added(parts: Tensor) -> Tensor:
    """Add the parts of differences of `_running_sums`, (P, ...) to (...)."""
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _decay_within(summed: Tensor, wide: torch.dtype, at_once: int) -> Iterator[Tensor | DecayBlocks]:
    """Compute the decay from key j to query i from sums (P, N, B, H, C), of `at_once` chunks at a time."""
    block = _block(summed.shape[-1])
    sizes = (summed.shape[-1] // max(1, block), block)
    sums = summed.unflatten(-1, sizes)  # (P, N, B, H, blocks, block)
    end = sums[..., -1]
    start = F.pad(end[..., :-1], (1, 0))  # (P, N, B, H, blocks)
    not_before = summed.new_full((sizes[0], sizes[0]), -math.inf).triu_()
    since = exp_decay(_added(sums - start[..., None]), wide)[..., None]
    until = exp_decay(_added(end[..., None] - sums), wide)[..., None, :, :]  # (N, B, H, 1, blocks, block)
    gaps = _added(start[..., :, None] - end[..., None, :])
    between = exp_decay(gaps + not_before, wide)[..., None]
    later = torch.full((sizes[1], sizes[1]), -math.inf, dtype=wide, device=summed.device).triu_(1)
    for some, first, second, gap in zip(
        sums.split(at_once, dim=1), *(x.split(at_once) for x in (since, until, between)), strict=True
    ):
        # Differences are exact in float64; their exponentials are cheaper in the wide dtype.
        own = exp_sum(_added(some[..., :, None] - some[..., None, :]).to(wide).add_(later))
        if sizes[0] == 1:
            yield own.squeeze(3)
        else:
            before = drop_small(gap * second).flatten(-2).unsqueeze(-2)
            yield DecayBlocks(first, before, own.movedim(3, -1))


def multiply_decay(scores: Tensor, within: Tensor | DecayBlocks, memory: Tensor | None = None) -> Tensor:
    """Multiply scores (..., C, C) by the decay from key j to query i.

    Args:
        scores: Products of queries and keys.
        within: The decay.
        memory: Where to write the result, of its shape and dtype.
    """
    if isinstance(within, Tensor):
        return torch.mul(scores, within, out=memory)
    blocks, block = within.since.shape[-3:-1]
    sizes = blocks, block
    place = None if memory is None else memory.unflatten(-2, sizes)
    product = torch.mul(scores.unflatten(-2, sizes), within.since, out=place)  # (..., blocks, block, C)
    weights: Tensor = product.mul_(within.before).flatten(-3, -2)
    _own_pairs(weights, sizes).copy_(_own_pairs(scores, sizes) * within.own)
    return weights


def _own_pairs(x: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Return the view of the pairs within each block, (..., C, C) to (..., block, block, blocks)."""
    pairs: Tensor = x.unflatten(-1, sizes).unflatten(-3, sizes).diagonal(dim1=-4, dim2=-2)
    return pairs


def _reach(summed: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors since the start, until the end and in total from sums (P, ..., C); see `DecayFactors`."""
    end = summed[..., -1:]
    exponents = summed, end - summed, end
    since_start, until_end, total = (exp_decay(_added(one), wide)[..., None] for one in exponents)
    return since_start, until_end, total


def _delay(factors: DecayFactors) -> DecayFactors:
    """Return the factors of queries that read the state before their own token: those of the query before each."""
    within = factors.within
    if not isinstance(within, Tensor):
        length = within.before.shape[-1]
        within = multiply_decay(within.before.new_ones(length, length), within)
    return factors._replace(
        within=F.pad(within[..., :-1, :], (0, 0, 1, 0)),
        since_start=F.pad(factors.since_start[..., :-1, :], (0, 0, 1, 0), value=1.0),
    )


def _fixed_decay_matrix(log_decay: Tensor, length: int, wide: torch.dtype) -> Tensor:
    """Return powers of decays (H,) from key j to query i, (1, 1, H, C, C), each computed once per distance i - j."""
    distances = torch.arange(length - 1, -1, -1, device=log_decay.device, dtype=torch.float64)
    powers = exp_decay(log_decay.double()[:, None] * distances, wide)  # (H, C), longest distance first
    padded = F.pad(powers, (0, length - 1))  # zeros for keys after the query
    return padded.unfold(-1, length, 1).flip(-2)[None, None]


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
    return _exp_above(exponent.double(), _floor(dtype, 2)).to(dtype)


def exp_sum(exponent: Tensor, factors: int = 2) -> Tensor:
    """Return the exponential without a pass in float64, zero where a product of `factors` such would be denormal."""
    return _exp_above(exponent, _floor(exponent.dtype, factors))


def drop_small(decay: Tensor, factors: int = 2) -> Tensor:
    """Set decays to zero where a product of `factors` such would be denormal."""
    return F.threshold(decay, math.exp(_floor(decay.dtype, factors)), 0.0)


def _floor(dtype: torch.dtype, factors: int) -> float:
    """Return the logarithm of the smallest number of which a product of `factors` is no denormal number of a dtype."""
    return math.log(torch.finfo(dtype).tiny) / factors


def _exp_above(exponent: Tensor, floor: float) -> Tensor:
    """Return the exponential where the exponent is above `floor`, and zero elsewhere."""
    if not exponent.requires_grad:
        return _clamped_exp(exponent, floor)
    apply: Callable[[Tensor, float], Tensor] = _ExpAbove.apply  # untyped in some versions of torch
    return apply(exponent, floor)


def _clamped_exp(exponent: Tensor, floor: float) -> Tensor:
    """Compute `_exp_above` without ever taking the exponential of a number far below `floor`.

    Where the exponential underflows or is denormal, that of a CPU (Intel's vector library) takes 10 to 200 times as
    long.
    """
    # A clamped exponent is below the floor by more than rounding.
    return F.threshold(exponent.clamp(min=floor - 1).exp_(), math.exp(floor), 0.0, inplace=True)


class _ExpAbove(torch.autograd.Function):
    """`_exp_above` with gradients, which need its result only."""

    @staticmethod
    def forward(ctx: Any, exponent: Tensor, floor: float) -> Tensor:
        """Compute the exponential, and keep it."""
        factor = _clamped_exp(exponent, floor)
        ctx.save_for_backward(factor)
        return factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Multiply the gradient by the exponential."""
        (factor,) = ctx.saved_tensors
        return grad * factor, None
