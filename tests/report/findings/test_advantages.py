"""Advantages: the words have the direction and the size of the ratio."""

from math import inf, nan

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.report.findings.advantages import Advantage, advantage, lead_of_ends, superlative
from retbench.workloads.workload import MetricSpec

TIME = MetricSpec("tpot_s", "time per token", True, better="faster")
MEMORY = MetricSpec("peak_bytes", "memory", True, better="less memory")
BATCH = MetricSpec("largest_batch", "largest batch", False, better="more sequences")


def ratio(value: float, low: float = nan, high: float = nan, *, unpaired: bool = False) -> pd.Series:
    return pd.Series({"ratio": value, "low": low, "high": high, "unpaired": unpaired})


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        (TIME, 0.131, "RetNet is 7.63× faster"),
        (TIME, 1.12, "RetNet is 12 % slower"),
        (TIME, 0.92, "RetNet is 8.7 % faster"),
        (TIME, 2.5, "RetNet is 2.50× slower"),
        (TIME, 1 / 250, "RetNet is 250× faster"),
        (TIME, 2.5e24, "RetNet is over 100,000× slower"),
        (MEMORY, 0.126, "RetNet needs 7.94× less memory"),
        (MEMORY, 1.05, "RetNet needs 5.0 % more memory"),
        (BATCH, 17.5, "RetNet reaches 17.5× more sequences"),
        (BATCH, 0.5, "RetNet reaches 2.00× fewer sequences"),
        (MEMORY, 1 - 5e-7, "RetNet needs under 0.01 % less memory"),
        (TIME, 1.0, "RetNet and the Transformer are equal"),
    ],
)
def test_a_ratio_is_stated_in_its_direction(metric: MetricSpec, value: float, words: str) -> None:
    assert advantage(metric, ratio(value)).clause("RetNet", "the Transformer") == words


@pytest.mark.parametrize(
    ("metric", "row", "interval", "outcome"),
    [
        (TIME, ratio(0.131, 0.119, 0.145), "95 % CI [6.90, 8.40]", "better"),
        (TIME, ratio(1.12, 1.07, 1.18), "95 % CI [7.0, 18] %", "worse"),
        (TIME, ratio(0.92, 0.87, 0.97), "95 % CI [3.1, 15] %", "better"),
        (TIME, ratio(0.97, 0.924, 1.018), "95 % CI [1.8 % slower, 8.2 % faster]", "equal"),
        (TIME, ratio(1.01, 1 / 1.04, 1.065), "95 % CI [6.5 % slower, 4.0 % faster]", "equal"),
        (BATCH, ratio(1.5, 0.8, 2.8), "95 % CI [1.25× fewer, 2.80× more]", "equal"),
    ],
)
def test_an_interval_has_the_unit_of_its_value_and_decides(
    metric: MetricSpec, row: pd.Series, interval: str, outcome: str
) -> None:
    found = advantage(metric, row)
    assert (found.interval, found.outcome) == (interval, outcome)
    assert ("not significantly different" in found.notes) == (outcome == "equal")


def test_a_mean_of_exactly_1_with_an_interval_is_no_equality() -> None:
    """Twice as fast in one round and half as fast in the other is a ratio of 1 that shows nothing."""
    found = advantage(TIME, ratio(1.0, 0.00015, 6680))
    assert found.lead == "no significant difference"
    words = "95 % CI [6,680× slower, 6,667× faster], not significantly different"
    assert words in found.clause("RetNet", "the Transformer")
    exact = advantage(TIME, ratio(1.0, 1.0, 1.0))
    assert exact.clause("RetNet", "the Transformer") == "RetNet and the Transformer are equal"


@pytest.mark.parametrize("value", [0.0, 1.4])
def test_rounds_so_different_that_an_end_is_0_have_an_advantage_beyond_all_use(value: float) -> None:
    found = advantage(TIME, ratio(value, 0.0, inf))
    assert found.interval == "95 % CI [over 100,000× slower, over 100,000× faster]"
    assert found.outcome == "equal"


@given(st.floats(0.001, 1000), st.sampled_from([TIME, MEMORY, BATCH]))
def test_the_number_is_the_ratio(value: float, metric: MetricSpec) -> None:
    found = advantage(metric, ratio(value))
    if value == 1:
        return
    of_speed = 1 / value if metric is TIME and value < 1 else value
    if found.size.startswith("under 0.01 %"):
        assert 100 * abs(of_speed - 1) < 0.01
        return
    number, unit, *_ = found.size.replace("×", " ×").split(" ")
    read = float(number.replace(",", ""))
    exact = max(value, 1 / value) if unit == "×" else 100 * abs(of_speed - 1)
    assert read == pytest.approx(exact, rel=0.05)
    assert (found.outcome == "better") == ((value < 1) == metric.lower_is_better)


def test_a_ratio_with_a_wide_interval_is_a_factor_as_its_ends_are() -> None:
    found = advantage(TIME, ratio(1.01, 0.6, 2.8))
    assert (found.size, found.interval) == ("1.01× slower", "95 % CI [2.80× slower, 1.67× faster]")
    assert advantage(TIME, ratio(1.01, 0.6, 1.9)).interval == "95 % CI [90 % slower, 67 % faster]"


def test_the_lead_names_the_shortest_context_only_if_it_says_something_else() -> None:
    faster, slower = advantage(TIME, ratio(0.5)), advantage(TIME, ratio(1.12))
    unclear = advantage(TIME, ratio(1.01, 0.9, 1.1))

    def lead(first: Advantage, last: Advantage) -> str:
        return lead_of_ends([(first, 1024), (last, 32768)])

    assert lead(faster, faster) == "2.00× faster at 32K"
    assert lead(slower, faster) == "12 % slower at 1K, 2.00× faster at 32K"
    assert lead(unclear, faster) == "2.00× faster at 32K"
    assert lead(faster, unclear) == "2.00× faster at 1K, no significant difference at 32K"
    assert lead(unclear, unclear) == "no significant difference at 1K and 32K"
    assert lead_of_ends([(slower, 2048)]) == "12 % slower at 2K"


def test_sessions_that_differ_are_named() -> None:
    clause = advantage(TIME, ratio(0.5, 0.4, 0.6, unpaired=True)).clause("RetNet", "the Transformer")
    assert clause.endswith("unpaired: the models were measured in different sessions)")


def test_superlatives() -> None:
    assert [superlative(metric) for metric in (TIME, MEMORY, BATCH)] == [
        "fastest",
        "least memory",
        "most sequences",
    ]
