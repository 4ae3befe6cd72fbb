"""One chunk of the linear recurrence of `ops.linear_operator`, computed in parallel with factors of at most one.

A chunk of C tokens needs what each query reads of each value, what it reads of the state before the chunk, and what
each key leaves in the state after it: `ChunkTerms`. With one decay per head, the decay between two tokens is a factor
of the product of query and key, exp of a difference of sums: `ops.chunk_decay`. With a decay per channel it is inside
that product, so `vector_terms` halves the chunk again and again (the secondary chunks of arXiv:2312.06635, Sec. 4.2,
down to one token).

Letters as in `retbench.ops`; G is the number of heads of q and k, which divides H.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from retbench.ops.chunk_decay import DecayFactors, drop_small, exp_sum, multiply_decay
from retbench.ops.precision import cast, matmul

QUARTERS = 4
"""Decays over a quarter of a block whose product is the least decay of a weight of it, in `vector_terms`.

None is below the fourth root of the smallest float, so no weight is a denormal number, with which a CPU is many times
slower. In float32 that root is 3e-10, a part in 200 of a rounding.
"""


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
        decay: Of the chunk: from `split_decay`, without axis N.
        heads: H.
        bonus: None if queries read the state with their own token. Else they read the state before it and the own
            token by this weight, (H,) or (H, K), and `decay` is exclusive.
        products: The dtype of the factors of products.
    """
    if isinstance(decay, Tensor):
        return vector_terms(repeat_heads(q, heads), repeat_heads(k, heads), decay, bonus, products)
    q, k = q.to(products), k.to(products)
    weights = multiply_decay(repeat_heads(matmul(q, k.mT), heads), decay.within)  # a group shares the product
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
    keys of the first, decayed until its end. Then those queries are decayed by the whole of the first block too, and
    those keys by the second, so that they stand for the block of 2 n tokens. There is one exponential for each token
    and channel. All else are products of factors of at most one, whose roundings add up within a chunk only.

    Args:
        q: Queries, (B, H, C, K).
        k: Keys, (B, H, C, K).
        log_decay: (B, H, C, K) in the wide dtype.
        bonus: As of `chunk_terms`.
        products: As of `chunk_terms`.
    """
    length, size = q.shape[2], 1 << (q.shape[2] - 1).bit_length()
    # Added tokens have no keys and no decay.
    q, k, log_decay = (_pad_tokens(x.to(log_decay.dtype), size) for x in (q, k, log_decay))
    batch, heads, _, key_dim = q.shape
    total = exp_sum(log_decay.sum(2))[..., None]  # not a product: its rounding would grow from chunk to chunk
    of_block = exp_sum(log_decay, QUARTERS).contiguous()  # of 1, 2, 4, ... tokens
    # Heads before tokens in memory: the blocks of all heads are then one axis.
    reads, writes = (x.clone(memory_format=torch.contiguous_format) for x in (q, k))
    if bonus is None:
        reads = reads * of_block
    weights = torch.zeros(batch, heads, size, size, dtype=products, device=q.device)
    own = read_own(q.transpose(1, 2), k.transpose(1, 2), bonus)  # (B, C, H)
    weights.diagonal(dim1=2, dim2=3).copy_(own.transpose(1, 2))
    half = 1
    while half < size:
        pairs = (batch, heads, size // (2 * half), 2, half, key_dim)
        earlier, later = writes.view(pairs).select(3, 0), reads.view(pairs).select(3, 1)
        _between_halves(weights, half).copy_(_multiply_blocks(later.to(products), earlier.to(products)))
        first, second = of_block.view(*pairs[:4], 1, key_dim).unbind(3)
        reads, writes = _decay_half(reads, pairs, 1, first), _decay_half(writes, pairs, 0, second)
        of_block, half = drop_small(first * second, QUARTERS), 2 * half
    return ChunkTerms(
        weights=weights[:, :, :length, :length],
        reads=reads[:, :, :length].to(products),
        writes=writes[:, :, :length].to(products),
        total=total,
    )


def _pad_tokens(x: Tensor, size: int) -> Tensor:
    """(B, H, T, K) to (B, H, size, K), with zeros after the last token."""
    return x if x.shape[2] == size else F.pad(x, (0, 0, 0, size - x.shape[2]))


def _between_halves(weights: Tensor, half: int) -> Tensor:
    """Return the view of what the second half of each block of 2 half tokens reads of the first.

    (B, H, C, C) to (B, H, blocks, half, half).
    """
    blocks = weights.shape[-1] // (2 * half)
    tiles = weights.unflatten(3, (blocks, 2, half)).unflatten(2, (blocks, 2, half))
    view: Tensor = tiles[:, :, :, 1, :, :, 0].diagonal(dim1=2, dim2=4).movedim(-1, 2)
    return view


def _multiply_blocks(later: Tensor, earlier: Tensor) -> Tensor:
    """Multiply queries by keys of each block, (B, H, blocks, n, K) each, to (B, H, blocks, n, n)."""
    if later.shape[3] == 1:  # a product of matrices costs more than it computes
        return (later * earlier).sum(-1, keepdim=True)
    return matmul(later, earlier.mT)


def _decay_half(x: Tensor, pairs: tuple[int, ...], which: int, factor: Tensor) -> Tensor:
    """Multiply one half of each block of (B, H, C, K), seen as `pairs`, in place where nothing is differentiated."""
    halves = list(x.view(pairs).unbind(3))
    if not (x.requires_grad or factor.requires_grad):
        halves[which].mul_(factor)
        return x
    halves[which] = halves[which] * factor
    return torch.stack(halves, dim=3).view(x.shape)


def read_own(q: Tensor, k: Tensor, bonus: Tensor | None) -> Tensor:
    """Return what queries read of their own values, (..., H) for q and k (..., H, K) and a bonus (H,) or (H, K)."""
    return (q * k if bonus is None else q * k * cast(bonus, q.dtype).view(q.shape[-2], -1)).sum(-1)


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
    added = matmul(terms.writes.mT, v).to(wide)  # (B, H, K, V)
    if state is None:
        return matmul(terms.weights, v).to(dtype), added
    if products == wide:
        inner, reads, before = (x.flatten(0, 1) for x in (terms.weights @ v, terms.reads, state))
        out = torch.baddbmm(inner, reads, before).unflatten(0, v.shape[:2])
    else:
        joined = torch.cat([terms.weights, terms.reads], dim=-1)  # (B, H, C, C + K)
        out = matmul(joined, torch.cat([v, state.to(products)], dim=-2))
    return out.to(dtype), added.addcmul_(state, terms.total)
