"""Which sequences of different lengths run together: what padding or cutting costs, against the passes it saves."""

from collections.abc import Callable, Sequence
from itertools import accumulate


def partition(
    lengths: Sequence[int],
    num_leaves: Sequence[int],
    *,
    fits: Callable[[int, int], bool],
    pass_tokens: int,
) -> list[tuple[int, int]]:
    """The cheapest batches of neighbours, each a range [first, last).

    A batch runs as many tokens of every sequence as its first has. With falling lengths that pads the others; with
    rising ones it cuts them, and each of their leaves computes the rest.

    Args:
        lengths: Tokens of each sequence, falling or rising.
        num_leaves: How often what is cut off a sequence is computed again; 0 where nothing is cut.
        fits: Whether so many sequences of so many tokens may be one batch, if fewer or shorter ones may; what does not
            fit alone is a batch of its own.
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
            if rows > 1 and not fits(rows, length):
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


def _ranges(firsts: Sequence[int]) -> list[tuple[int, int]]:
    """Batches in order, from the best first sequence of a batch that ends before each."""
    ranges = []
    last = len(firsts) - 1
    while last > 0:
        ranges.append((firsts[last], last))
        last = firsts[last]
    return ranges[::-1]
