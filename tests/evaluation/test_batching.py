"""Batches of neighbours: every sequence in one, within the limits, at the least cost."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.evaluation.batching import partition

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=9)


def cost(ranges, lengths, leaves, pass_tokens):
    """Return the number of tokens that a partition makes a model compute, by the definition."""
    total = 0
    for first, last in ranges:
        common = lengths[first]
        total += pass_tokens * (2 if leaves[first] else 1) + (last - first) * common
        total += sum((lengths[i] - common) * leaves[i] for i in range(first, last))
    return total


def allowed(ranges, lengths, fits):
    return all(last - first == 1 or fits(last - first, lengths[first]) for first, last in ranges)


def every_partition(count):
    for size in range(count):
        for cuts in combinations(range(1, count), size):
            edges = [0, *cuts, count]
            yield list(pairwise(edges))


@given(LENGTHS, st.booleans(), st.data(), st.integers(1, 10), st.integers(1, 80), st.integers(0, 40))
def test_no_partition_is_cheaper(lengths, cut, data, most_rows, batch_tokens, pass_tokens):
    def fits(rows, length):
        return rows <= most_rows and rows * length <= batch_tokens

    lengths.sort(reverse=not cut)
    leaves = [data.draw(st.integers(2, 5)) if cut else 0 for _ in lengths]
    found = partition(lengths, leaves, fits=fits, pass_tokens=pass_tokens)
    assert [i for first, last in found for i in range(first, last)] == list(range(len(lengths)))
    assert allowed(found, lengths, fits)
    cheapest = min(
        cost(ranges, lengths, leaves, pass_tokens)
        for ranges in every_partition(len(lengths))
        if allowed(ranges, lengths, fits)
    )
    assert cost(found, lengths, leaves, pass_tokens) == cheapest


def test_nothing_to_run():
    assert partition([], [], fits=lambda rows, length: True, pass_tokens=1) == []


@pytest.mark.parametrize("pass_tokens", [0, 1000])
def test_a_dear_pass_runs_more_together(pass_tokens):
    lengths = [40, 30, 20, 10]
    found = partition(lengths, [0] * 4, fits=lambda rows, length: True, pass_tokens=pass_tokens)
    assert len(found) == (1 if pass_tokens else 4)
