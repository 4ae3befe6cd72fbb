"""Planning of passes: shared prefixes of token sequences as a tree, and sequences of different lengths in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

MIN_SAVED = 32
"""Tokens that a branch must save to be worth a pass; a shorter overlap is computed again."""


@dataclass
class Branch:
    """Sequences that agree on their first `end` tokens.

    Attributes:
        end: Tokens from the start of the sequence.
        members: Index of every sequence, in sorted order; never empty.
        children: The continuations: each member is in exactly one, and a child may end where its parent does. Empty
            if all members are the same sequence.
    """

    end: int
    members: list[int]
    children: list["Branch"] = field(default_factory=list)

    @property
    def num_leaves(self) -> int:
        """Number of different sequences."""
        return sum(child.num_leaves for child in self.children) if self.children else 1


def build_tree(sequences: Sequence[Sequence[int]], *, min_saved: int = MIN_SAVED) -> list[Branch]:
    """Return the branches that start at token 0; every sequence is in one of them.

    Args:
        sequences: Tokens, in any order, with repetitions.
        min_saved: A prefix gets its own branch if that saves at least this many tokens against computing it for each
            continuation. With 1 every shared prefix is found.
    """
    order = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
    roots: list[Branch] = []
    pending = [(group, 0, roots) for group in _split(sequences, order, 0)]
    while pending:
        members, start, siblings = pending.pop()
        end = _common_length(sequences[members[0]], sequences[members[-1]])
        groups = _split(sequences, members, end)
        if len(groups) == 1:  # equal sequences: others differ after their common prefix
            siblings.append(Branch(end, members))
        elif (len(groups) - 1) * (end - start) >= min_saved:
            branch = Branch(end, members)
            siblings.append(branch)
            pending += [(group, end, branch.children) for group in groups]
        else:
            pending += [(group, start, siblings) for group in groups]
    return roots


def _split(sequences: Sequence[Sequence[int]], members: Sequence[int], depth: int) -> list[list[int]]:
    """Group sorted members with a common prefix of `depth` tokens by their next token; ended sequences come first."""
    groups: list[list[int]] = []
    previous: int | None = None
    for member in members:
        sequence = sequences[member]
        token = sequence[depth] if len(sequence) > depth else None
        if not groups or token != previous:
            groups.append([])
        groups[-1].append(member)
        previous = token
    return groups


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    shortest = min(len(first), len(second))
    return next((index for index in range(shortest) if first[index] != second[index]), shortest)


def partition(
    lengths: Sequence[int],
    num_leaves: Sequence[int],
    *,
    fits: Callable[[int, int], bool],
    pass_tokens: int,
) -> list[tuple[int, int]]:
    """Return the cheapest batches of neighbours, each as a range [first, last).

    A batch runs as many tokens of every sequence as its first one has. With falling lengths this pads the others; with
    rising lengths it cuts them, and each of their leaves computes the rest.

    Args:
        lengths: Tokens of each sequence, falling or rising.
        num_leaves: How often the tokens cut off a sequence are computed again; 0 if nothing is cut.
        fits: Returns True if a batch may have so many sequences of so many tokens; then a smaller one must fit too. A
            sequence that does not fit alone is still a batch.
        pass_tokens: Number of tokens whose computation takes as long as the fixed cost of a pass.
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
                if num_leaves[first] == 0:  # going back, lengths rise: no earlier first fits either
                    break
                continue
            rest = again[last] - again[first] - length * (leaves[last] - leaves[first])
            # A batch that is cut is followed by at least one pass of its leaves.
            cost = costs[first] + rows * length + rest + pass_tokens * (2 if num_leaves[first] else 1)
            if cost < best:
                best, best_first = cost, first
        costs.append(best)
        firsts.append(best_first)
    edges = [len(lengths)]
    while edges[-1] > 0:
        edges.append(firsts[edges[-1]])
    return list(pairwise(reversed(edges)))
