"""Statistics over documents: they cover what they say, and agree with scipy where it has the same."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from retbench.errors import RecordError
from retbench.stats.paired import (
    MIN_DOCUMENTS,
    p_over_seeds,
    paired_accuracy,
    proportion_interval,
    ratio_of_sums,
)

positive = st.floats(1e-3, 1e6)
answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@pytest.mark.parametrize(("count", "spread"), [(12, 0.3), (40, 0.7), (100, 1.0)])
def test_the_bootstrap_covers_what_it_says(count: int, spread: float) -> None:
    draw = np.random.default_rng(5)
    truth, hits, repeats = 1.02, 0, 800
    for number in range(repeats):
        num_bytes = draw.lognormal(9, spread, count)  # documents of very different lengths
        theirs = num_bytes * draw.normal(1, 0.12, count)  # some harder than others, for both
        mine = theirs * draw.normal(truth, 0.03, count)
        found = ratio_of_sums(mine, theirs, num_resamples=1000, seed=number)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / repeats <= 0.98


def test_the_p_value_agrees_with_the_interval_and_is_small_as_often_as_it_says() -> None:
    draw = np.random.default_rng(7)
    small, repeats = 0, 800
    for number in range(repeats):
        theirs = draw.lognormal(9, 0.7, 40)
        mine = theirs * draw.normal(1, 0.03, 40)
        found = ratio_of_sums(mine, theirs, null=1, num_resamples=1000, seed=number)
        assert found.p_value is not None
        assert found.low is not None
        assert found.high is not None
        small += found.p_value < 0.01
        if abs(found.p_value - 0.05) > 0.005:
            assert (found.p_value < 0.05) == (not found.low <= 1 <= found.high)
    assert small / repeats <= 0.025
    sure = ratio_of_sums(1.2 * theirs * draw.normal(1, 0.03, 40), theirs, null=1)
    assert sure.p_value is not None
    assert sure.p_value < 0.001
    same = ratio_of_sums(theirs, theirs, null=1)
    assert same.p_value == 1


@pytest.mark.parametrize("values", [(0.1, 0.3, 0.2), (-1.0, 0.5, 0.7, 0.2), (-0.1, 0.05, -0.2, -0.21)])
def test_the_p_value_over_seeds_is_that_of_students_test(values: tuple[float, ...]) -> None:
    assert p_over_seeds(values) == pytest.approx(ttest_1samp(values, 0).pvalue, abs=1e-12)


def test_trainings_that_agree_leave_no_doubt_and_a_single_one_leaves_all() -> None:
    assert p_over_seeds((2.0, 2.0, 2.0)) == 0
    assert p_over_seeds((0.0, 0.0, 0.0)) == 1
    assert p_over_seeds((2.0,)) == 1


def test_pairing_narrows_what_documents_make_wide() -> None:
    draw = np.random.default_rng(1)
    theirs = draw.lognormal(3, 1, 50)
    mine = theirs * draw.normal(1.1, 0.01, 50)
    paired, apart = ratio_of_sums(mine, theirs), ratio_of_sums(mine, draw.permutation(theirs))
    assert paired.value == pytest.approx(apart.value)
    assert paired.low is not None
    assert paired.high is not None
    assert apart.low is not None
    assert apart.high is not None
    assert (paired.high - paired.low) * 20 < apart.high - apart.low


@given(st.lists(st.tuples(positive, positive), min_size=MIN_DOCUMENTS, max_size=30))
def test_a_ratio_lies_among_its_documents_and_repeats_itself(pairs: list[tuple[float, float]]) -> None:
    tops, bottoms = zip(*pairs, strict=True)
    found = ratio_of_sums(tops, bottoms, num_resamples=1000)
    assert found == ratio_of_sums(tops, bottoms, num_resamples=1000)
    assert found.value == pytest.approx(sum(tops) / sum(bottoms))
    assert found.low is not None
    assert found.high is not None
    ratios = [top / bottom for top, bottom in pairs]
    assert min(ratios) * (1 - 1e-9) <= found.low <= found.high <= max(ratios) * (1 + 1e-9)


def test_a_constant_ratio_has_no_width_and_few_documents_no_interval() -> None:
    bottoms = [float(number) for number in range(1, 21)]
    same = ratio_of_sums([2 * bottom for bottom in bottoms], bottoms)
    assert (same.value, same.low, same.high, same.num_documents) == pytest.approx((2, 2, 2, 20))
    few = ratio_of_sums(bottoms[: MIN_DOCUMENTS - 1], bottoms[: MIN_DOCUMENTS - 1])
    assert (few.value, few.low, few.high) == (1.0, None, None)


def test_many_documents_are_resampled_in_slices_to_the_same_end() -> None:
    tops = np.random.default_rng(3).normal(1, 0.1, 30_000)
    found = ratio_of_sums(tops, np.ones(30_000), num_resamples=1000)
    error = 1.96 * 0.1 / math.sqrt(30_000)
    assert found.low == pytest.approx(tops.mean() - error, rel=2e-4)
    assert found.high == pytest.approx(tops.mean() + error, rel=2e-4)


@pytest.mark.parametrize(
    ("tops", "bottoms", "words"),
    [
        ([], [], "there must be at least one"),
        ([1.0], [1.0, 2.0], "1 documents on one side and 2 on the other"),
        ([1.0, math.nan], [1.0, 1.0], "document number 1 is nan"),
        ([1.0, 1.0], [0.0, 0.0], "not be negative nor all zero"),
        ([1.0, 1.0], [3.0, -1.0], "not be negative nor all zero"),
    ],
)
def test_documents_that_make_no_ratio_are_refused(
    tops: list[float], bottoms: list[float], words: str
) -> None:
    with pytest.raises(RecordError, match=words):
        ratio_of_sums(tops, bottoms)


def test_a_ratio_beyond_all_numbers_is_refused_and_one_of_some_resamples_has_an_infinite_end() -> None:
    with pytest.raises(RecordError, match="no finite number"):
        ratio_of_sums([2.0**63] * 12, [5e-324] * 12)
    # Most resamples miss the only document with a denominator that matters.
    found = ratio_of_sums([2.0**63] * 12, [1.0] + [5e-324] * 11)
    assert math.isfinite(found.value)
    assert found.high == math.inf
    assert found.low is not None
    assert math.isfinite(found.low)


def test_what_cannot_be_asked_for_is_refused() -> None:
    with pytest.raises(RecordError, match="2 answers on one side and 1"):
        paired_accuracy([True, False], [True])
    with pytest.raises(RecordError, match="5 right answers to 3 questions"):
        proportion_interval(5, 3)


@given(answers)
def test_mcnemar_is_the_exact_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    mine, theirs = zip(*pairs, strict=True)
    found = paired_accuracy(mine, theirs)
    discordant = found.first + found.second
    expected = binomtest(found.first, discordant, 0.5).pvalue if discordant else 1.0
    assert found.p_value == pytest.approx(expected)
    assert found.difference == pytest.approx(np.mean(mine) - np.mean(theirs))
    assert -1 <= found.low < found.high <= 1
    turned = paired_accuracy(theirs, mine)
    assert (turned.difference, turned.low, turned.high) == pytest.approx(
        (-found.difference, -found.high, -found.low)
    )


def test_mcnemar_by_hand() -> None:
    mine = [True] * 8 + [False] * 2 + [True] * 10
    theirs = [False] * 8 + [True] * 2 + [True] * 10
    found = paired_accuracy(mine, theirs)
    assert (found.first, found.second, found.num_documents) == (8, 2, 20)
    assert found.p_value == pytest.approx(112 / 1024)  # 2 * (1 + 10 + 45) / 2^10


@pytest.mark.parametrize(("only_first", "is_significant"), [(5, False), (6, True)])
def test_five_to_none_may_be_chance_and_six_to_none_may_not(only_first: int, is_significant: bool) -> None:
    found = paired_accuracy([True] * 1000, [False] * only_first + [True] * (1000 - only_first))
    assert found.p_value == pytest.approx(0.5 ** (only_first - 1))
    assert found.is_significant is is_significant


@pytest.mark.parametrize(("count", "first", "second"), [(100, 0.03, 0.05), (300, 0.2, 0.15), (500, 0.1, 0.1)])
def test_the_interval_of_a_difference_covers_what_it_says(count: int, first: float, second: float) -> None:
    draw = np.random.default_rng(7)
    hits, repeats = 0, 1500
    for _ in range(repeats):
        point = draw.random(count)
        both = point > 0.6
        mine, theirs = both | (point < first), both | ((point >= first) & (point < first + second))
        found = paired_accuracy(mine.tolist(), theirs.tolist())
        hits += found.low <= first - second <= found.high
    assert 0.92 <= hits / repeats <= 0.98


@given(st.integers(1, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_interval_of_a_proportion_is_wilsons(counts: tuple[int, int]) -> None:
    right, total = counts
    expected = binomtest(right, total).proportion_ci(method="wilson")
    assert proportion_interval(right, total) == pytest.approx((expected.low, expected.high), abs=1e-9)
