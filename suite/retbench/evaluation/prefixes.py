"""What token sequences share at their start, as a tree: the plan by which shared prefixes are computed once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_SAVED = 32
"""Tokens that a branch must save to be worth a pass of its own; smaller overlaps are computed again."""


@dataclass
class Branch:
    """Sequences that agree on their first `end` tokens.

    Attributes:
        end: Tokens from the start of the sequence, those of the branches above included.
        members: Index of every sequence in it, in the order in which they sort; never empty.
        children: How they go on: each member is in exactly one, and a child may end where its parent does. Empty
            where the members are one sequence, or the same one several times.
    """

    end: int
    members: list[int]
    children: list["Branch"] = field(default_factory=list)

    @property
    def num_leaves(self) -> int:
        """Different sequences in it."""
        return sum(child.num_leaves for child in self.children) if self.children else 1


def build_tree(sequences: Sequence[Sequence[int]], *, min_saved: int = MIN_SAVED) -> list[Branch]:
    """The branches that start at token 0; every sequence is in one of them.

    Args:
        sequences: Tokens, in any order; the same sequence may come several times.
        min_saved: A prefix gets a branch of its own where that saves at least this many tokens against computing
            it for each of its continuations. With 1 everything shared is found.
    """
    order = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
    roots: list[Branch] = []
    pending = [(group, 0, roots) for group in _split(sequences, order, 0)]
    while pending:
        members, start, siblings = pending.pop()
        end = _common_length(sequences[members[0]], sequences[members[-1]])
        groups = _split(sequences, members, end)
        if len(groups) == 1:  # of equal sequences: others would have been split where they part
            siblings.append(Branch(end, members))
        elif (len(groups) - 1) * (end - start) >= min_saved:
            branch = Branch(end, members)
            siblings.append(branch)
            pending += [(group, end, branch.children) for group in groups]
        else:
            pending += [(group, start, siblings) for group in groups]
    return roots


def _split(sequences: Sequence[Sequence[int]], members: Sequence[int], depth: int) -> list[list[int]]:
    """Sorted members with a common prefix of `depth` tokens by the token that follows; those that end first."""
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
    """Tokens at the start in which two sequences agree."""
    shortest = min(len(first), len(second))
    return next((index for index in range(shortest) if first[index] != second[index]), shortest)
