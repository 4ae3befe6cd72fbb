"""Batches of neighbours: every sequence in one, within the limits, at the least cost."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.evaluation.batching import CACHED_PER_TOKEN, partition

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=9)


def cost(ranges, lengths, leaves, pass_tokens):
    """What a partition makes a model run, by the definition."""
    total = 0
    for first, last in ranges:
        common = lengths[first]
        total += pass_tokens * (2 if leaves[first] else 1) + (last - first) * common
        total += sum((lengths[i] - common) * leaves[i] for i in range(first, last))
    return total


def allowed(ranges, lengths, start, batch_tokens):
    sizes = [((last - first), lengths[first]) for first, last in ranges]
    return all(
        rows == 1
        or (rows * length <= batch_tokens and rows * (start + length) <= CACHED_PER_TOKEN * batch_tokens)
        for rows, length in sizes
    )


def every_partition(count):
    for size in range(count):
        for cuts in combinations(range(1, count), size):
            edges = [0, *cuts, count]
            yield list(pairwise(edges))


@given(LENGTHS, st.booleans(), st.data(), st.integers(0, 300), st.integers(1, 80), st.integers(0, 40))
def test_no_partition_is_cheaper(lengths, cut, data, start, batch_tokens, pass_tokens):
    lengths.sort(reverse=not cut)
    leaves = [data.draw(st.integers(2, 5)) if cut else 0 for _ in lengths]
    found = partition(lengths, leaves, start=start, batch_tokens=batch_tokens, pass_tokens=pass_tokens)
    assert [i for first, last in found for i in range(first, last)] == list(range(len(lengths)))
    assert allowed(found, lengths, start, batch_tokens)
    cheapest = min(
        cost(ranges, lengths, leaves, pass_tokens)
        for ranges in every_partition(len(lengths))
        if allowed(ranges, lengths, start, batch_tokens)
    )
    assert cost(found, lengths, leaves, pass_tokens) == cheapest


def test_nothing_to_run():
    assert partition([], [], start=0, batch_tokens=8, pass_tokens=1) == []


@pytest.mark.parametrize("pass_tokens", [0, 1000])
def test_a_dear_pass_runs_more_together(pass_tokens):
    lengths = [40, 30, 20, 10]
    found = partition(lengths, [0] * 4, start=0, batch_tokens=1000, pass_tokens=pass_tokens)
    assert len(found) == (1 if pass_tokens else 4)
