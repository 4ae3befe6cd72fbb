"""The chunkwise recurrence of heads that share queries and keys, such as all heads of Mamba-2.

Heads with the same queries and keys share the product of both, and need no copies of them, for the decays multiply the
values and what is read, instead of the keys and queries. A chunk is so little work that every operator called counts.
So the views of many chunks are taken at once.

Letters as in `retbench.ops`; G is the number of heads of q and k, R is H / G, and P is B G.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from retbench.ops.chunk_decay import DecayBlocks, DecayFactors, multiply_decay
from retbench.ops.chunk_outputs import ChunkOutputs, overwrites


class _Chunk(NamedTuple):
    """One chunk, in the views that its products take."""

    weights: Tensor
    """(P R, C, C): what query i reads of value j."""
    q: Tensor
    """(P, C, K)."""
    keys: Tensor
    """(P, K, C)."""
    v: Tensor
    """(B, G, C, R, V)."""
    v_by_head: Tensor
    """(P R, C, V)."""
    since_start: Tensor
    """(B or 1, G, C, R, 1): decay from the start of the chunk to query i."""
    until_end: Tensor
    """(B or 1, G, C, R, 1): decay from key j to the end of the chunk."""
    total: Tensor
    """(B or 1, G, 1, R, 1): decay of the state over the chunk."""


def attend_shared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decays: Iterable[DecayFactors],
    tokens: Sequence[int],
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute all chunks in the dtype of the decays.

    Args:
        q: Queries, (B, T, G, K).
        k: Keys, (B, T, G, K).
        v: Values, (B, T, H, V).
        decays: Of some chunks at a time, for an inclusive read-out.
        tokens: How many tokens these chunks have.
        state: Before the first token, (B, H, K, V); None is zero.

    Returns:
        out: (B, T, H, V).
        state: After the last token, (B, H, K, V).
    """
    groups = q.shape[2], v.shape[2] // q.shape[2]
    if state is not None:
        state = state.unflatten(1, groups).transpose(2, 3).contiguous()  # (B, G, K, R, V)
    outs = ChunkOutputs(q.shape[1])
    memory: Tensor | None = None
    # Split instead of slices: the gradient of a slice has the length of the sequence.
    parts = zip(*(x.split(tokens, dim=1) for x in (q, k, v)), strict=True)
    for decay, (q, k, v) in zip(decays, parts, strict=True):
        wide = decay.total.dtype
        chunks = decay.since_start.shape[0], decay.since_start.shape[3]  # N and C
        q, k = (x.to(wide).unflatten(1, chunks).permute(1, 0, 3, 2, 4) for x in (q, k))  # (N, B, G, C, K)
        weights = _weights(q, k, decay, groups, memory)
        v = v.to(wide).unflatten(2, groups).unflatten(1, chunks).permute(1, 0, 3, 2, 4, 5)
        for chunk in _unbind(weights, q, k, v, decay, groups):
            state = _attend_chunk(chunk, state, outs)
        if overwrites():
            memory = weights
    assert state is not None
    return outs.join().flatten(2, 3), state.transpose(2, 3).flatten(1, 2)


def _weights(
    q: Tensor, k: Tensor, decay: DecayFactors, groups: tuple[int, int], memory: Tensor | None
) -> Tensor:
    """Compute what query i reads of value j in N chunks, (N, B, G, R, C, C).

    Args:
        q: Queries, (N, B, G, C, K).
        k: Keys, (N, B, G, C, K).
        decay: Of these chunks.
        groups: G and R.
        memory: Weights of earlier chunks, to be overwritten.
    """
    scores = (q @ k.mT).unsqueeze(3)
    within = decay.within
    if isinstance(within, Tensor):
        within = within.unflatten(2, groups)
    else:
        within = DecayBlocks(*(x.unflatten(2, groups) for x in within))
    shape = torch.Size([*q.shape[1:3], groups[1], *scores.shape[-2:]])
    if memory is not None and (memory.shape[1:] != shape or len(memory) < len(q)):
        memory = None
    return multiply_decay(scores, within, None if memory is None else memory[: len(q)])


def _unbind(
    weights: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: DecayFactors, groups: tuple[int, int]
) -> list[_Chunk]:
    """Return the chunks of weights (N, B, G, R, C, C), q and k (N, B, G, C, K), and v (N, B, G, C, R, V)."""
    since_start, until_end, total = (x.unflatten(2, groups).transpose(3, 4) for x in decay[1:])
    views = _Chunk(
        weights=weights.flatten(1, 3),
        q=q.flatten(1, 2),
        keys=k.mT.flatten(1, 2),
        v=v,
        v_by_head=v.transpose(3, 4).flatten(1, 3),
        since_start=since_start,
        until_end=until_end,
        total=total,
    )
    return list(map(_Chunk, *(x.unbind() for x in views)))


def _attend_chunk(chunk: _Chunk, state: Tensor | None, outs: ChunkOutputs) -> Tensor:
    """Add the outputs (B, G, C, R, V) of one chunk; return the state after it, (B, G, K, R, V)."""
    batch, groups, count, heads, width = chunk.v.shape
    added = _multiply_heads(chunk.keys, chunk.v * chunk.until_end)
    inner = torch.bmm(chunk.weights, chunk.v_by_head).view(batch, groups, heads, count, width).transpose(2, 3)
    if state is None:
        outs.add(inner)
        return added
    outs.add_sum(inner, _multiply_heads(chunk.q, state), chunk.since_start)
    return added.addcmul_(state, chunk.total)


def _multiply_heads(shared: Tensor, x: Tensor) -> Tensor:
    """Multiply what the heads of a group share, (P, M, N), by what they do not, (B, G, N, R, V); (B, G, M, R, V).

    Several groups have a product each. The heads of a single one have a product each as well: on two cores of an AMD
    EPYC, those with the state took 0.6 times as long as one product of all.
    """
    batch, groups, _, heads, width = x.shape
    if len(shared) == 1:
        return torch.bmm(shared.expand(heads, -1, -1), x[0, 0].transpose(0, 1)).transpose(0, 1)[None, None]
    return torch.bmm(shared, x.flatten(3).flatten(0, 1)).view(batch, groups, -1, heads, width)
