"""Bins of a distance: their ends, and ratios of sums over documents in each."""

import pytest

from retbench.evaluation.bins import doubling_ends, ratio_series
from retbench.stats.paired import ratio_of_sums


@pytest.mark.parametrize(("longest", "ends"), [(3, (4,)), (4, (4,)), (5, (4, 8)), (32, (4, 8, 16, 32))])
def test_every_bin_ends_at_twice_the_end_of_the_one_before(longest: int, ends: tuple[int, ...]) -> None:
    assert doubling_ends(4, longest) == ends


def test_a_bin_is_the_ratio_of_the_sums_of_its_documents_with_its_interval() -> None:
    """The second bin has counts in too few documents for an interval, and the third in none."""
    tops = [[document % 3, int(document < 5), 0] for document in range(12)]
    bottoms = [[3, 2 * int(document < 5), 0] for document in range(12)]
    series = ratio_series("share", "ratio", ("distance", (4, 8, 16)), tops, bottoms)
    expected = ratio_of_sums([row[0] for row in tops], [3] * 12)
    mean, low, high = (series[f"share{end}"] for end in ("", "_low", "_high"))
    assert (mean.x, mean.y, mean.counts) == ((4, 8), (expected.value, 0.5), (36, 10))
    assert (low.x, low.y, high.x, high.y) == ((4,), (expected.low,), (4,), (expected.high,))
    assert (mean.x_name, mean.unit) == ("distance", "ratio")


def test_without_any_count_there_is_no_series() -> None:
    assert ratio_series("share", "ratio", ("distance", (4,)), [[0], [0]], [[0], [0]]) == {}
