"""The tree of prefixes: every sequence once, nothing shared that is not, everything shared that pays."""

from hypothesis import given
from hypothesis import strategies as st

from retbench.evaluation.batching import build_tree

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=20)


def leaves(branches):
    return [leaf for b in branches for leaf in (leaves(b.children) if b.children else [b])]


def inner(branches):
    return [found for b in branches if b.children for found in [b, *inner(b.children)]]


def cost(branches, start=0):
    """Tokens computed when each branch is run once."""
    return sum(b.end - start + cost(b.children, b.end) for b in branches)


@given(SEQUENCES, st.integers(1, 15))
def test_every_sequence_ends_in_one_leaf(sequences, min_saved):
    found = leaves(build_tree(sequences, min_saved=min_saved))
    assert sorted(member for leaf in found for member in leaf.members) == list(range(len(sequences)))
    for leaf in found:
        assert {tuple(sequences[member]) for member in leaf.members} == {tuple(sequences[leaf.members[0]])}
        assert leaf.end == len(sequences[leaf.members[0]])


@given(SEQUENCES, st.integers(1, 15))
def test_members_of_a_branch_agree_up_to_its_end_and_are_those_of_its_children(sequences, min_saved):
    for branch in inner(build_tree(sequences, min_saved=min_saved)):
        assert len({tuple(sequences[member][: branch.end]) for member in branch.members}) == 1
        below = [member for child in branch.children for member in child.members]
        assert sorted(below) == sorted(branch.members)
        assert branch.num_leaves == len(leaves([branch])) > 1


@given(SEQUENCES)
def test_with_a_saving_of_one_every_prefix_is_computed_once(sequences):
    prefixes = {tuple(sequence[:length]) for sequence in sequences for length in range(1, len(sequence) + 1)}
    assert cost(build_tree(sequences, min_saved=1)) == len(prefixes)


@given(SEQUENCES, st.integers(2, 15))
def test_a_branch_saves_what_it_must(sequences, min_saved):
    def check(branches, start):
        for branch in branches:
            if branch.children:
                assert (branch.num_leaves - 1) * (branch.end - start) >= min_saved
                check(branch.children, branch.end)

    check(build_tree(sequences, min_saved=min_saved), 0)


def test_a_long_chain_of_prefixes():
    chain = [[1] * length for length in range(1, 3000)]
    assert len(build_tree(chain, min_saved=10**9)) == len(chain)
    (root,) = build_tree(chain, min_saved=1)
    assert root.end == 1
    assert len(root.children) == 2
