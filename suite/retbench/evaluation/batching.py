"""Which sequences of different lengths run together: what padding or cutting costs, against the passes it saves."""

from collections.abc import Sequence
from itertools import accumulate

CACHED_PER_TOKEN = 16
"""Tokens that the states of one pass may hold, for each token that it may run."""


def partition(
    lengths: Sequence[int],
    num_leaves: Sequence[int],
    *,
    start: int,
    batch_tokens: int,
    pass_tokens: int,
) -> list[tuple[int, int]]:
    """The cheapest batches of neighbours, each a range [first, last).

    A batch runs as many tokens of every sequence as its first has. With falling lengths that pads the others; with
    rising ones it cuts them, and each of their leaves computes the rest.

    Args:
        lengths: Tokens of each sequence, falling or rising.
        num_leaves: How often what is cut off a sequence is computed again; 0 where nothing is cut.
        start: Tokens before them, which their states hold too.
        batch_tokens: Tokens of one batch; a longer sequence is a batch of its own.
        pass_tokens: Tokens that take as long as a pass does at least.
    """
    leaves = [0, *accumulate(num_leaves)]
    again = [0, *accumulate(length * count for length, count in zip(lengths, num_leaves, strict=True))]
    costs: list[float] = [0.0]
    firsts = [0]
    for last in range(1, len(lengths) + 1):
        best, best_first = float("inf"), last - 1
        for first in range(last - 1, -1, -1):
            rows, length = last - first, lengths[first]
            if rows > 1 and not _fits(rows, length, start, batch_tokens):
                if num_leaves[first] == 0:  # lengths rise on the way back: none before fits either
                    break
                continue
            rest = again[last] - again[first] - length * (leaves[last] - leaves[first])
            # A batch that is cut is followed by a pass of its leaves, at least one.
            cost = costs[first] + rows * length + rest + pass_tokens * (2 if num_leaves[first] else 1)
            if cost < best:
                best, best_first = cost, first
        costs.append(best)
        firsts.append(best_first)
    return _ranges(firsts)


def _fits(rows: int, length: int, start: int, batch_tokens: int) -> bool:
    """Whether a batch is small enough, in tokens to run and in tokens to hold."""
    return rows * length <= batch_tokens and rows * (start + length) <= CACHED_PER_TOKEN * batch_tokens


def _ranges(firsts: Sequence[int]) -> list[tuple[int, int]]:
    """Batches in order, from the best first sequence of a batch that ends before each."""
    ranges = []
    last = len(firsts) - 1
    while last > 0:
        ranges.append((firsts[last], last))
        last = firsts[last]
    return ranges[::-1]
