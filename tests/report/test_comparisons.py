"""Comparisons: paired within rounds, and honest about gaps."""

import math

import pandas as pd
import pytest

from report.synthetic_records import LENGTHS, Maker
from retbench.records.record import Metric, Record
from retbench.report.comparisons import find_crossover, find_slope, fit_line, pair_ratios, ratios_by_round
from retbench.report.frames import observations
from retbench.report.lineup import lineup
from retbench.report.sweeps import summarise


def decode_records(
    retnet: dict[int, float], transformer: dict[int, float], drift: list[float]
) -> list[Record]:
    """Decode at some lengths, in as many rounds as `drift` has factors that slow both sides alike."""
    maker = Maker()
    return [
        maker.record("latency", name, "decode", 1, length, number).model_copy(
            update={"metrics": {"tpot_s": Metric(unit="s", value=seconds * factor)}}
        )
        for number, factor in enumerate(drift)
        for name, times in (("retnet", retnet), ("transformer", transformer))
        for length, seconds in times.items()
    ]


LEVEL = dict.fromkeys(LENGTHS, 4.0)
RISING = {length: length / 1024 for length in LENGTHS}  # equals LEVEL at 4,096
DRIFT = [1.0, 1.5, 0.7, 1.2, 2.0]


def test_what_a_round_does_to_both_sides_cancels() -> None:
    records = decode_records(LEVEL, RISING, DRIFT)
    ratios = pair_ratios(observations(records), lineup(records))
    assert list(ratios["context_len"]) == list(LENGTHS)
    assert list(ratios["ratio"]) == pytest.approx([4, 2, 1, 0.5, 0.25, 0.125])
    assert (ratios["high"] / ratios["low"]).max() == pytest.approx(1.0)
    assert set(ratios["num_rounds"]) == {5}


def test_only_rounds_that_both_sides_have_are_paired() -> None:
    records = decode_records(LEVEL, RISING, DRIFT)
    records = [r for r in records if not (r.model.name == "transformer" and r.round in (0, 1, 2, 3))]
    ratios = pair_ratios(observations(records), lineup(records))
    assert set(ratios["num_rounds"]) == {1}
    assert ratios["low"].isna().all()
    assert list(ratios["ratio"]) == pytest.approx([4, 2, 1, 0.5, 0.25, 0.125])


def test_without_a_transformer_there_is_no_ratio() -> None:
    records = [r for r in decode_records(LEVEL, RISING, DRIFT) if r.model.name == "retnet"]
    assert pair_ratios(observations(records), lineup(records)).empty


def test_the_crossover_is_where_the_lines_meet() -> None:
    frame = observations(decode_records(LEVEL, RISING, DRIFT))
    found = find_crossover(frame, "tpot_s", "retnet", "transformer")
    assert found is not None
    assert found[0] == list(LENGTHS)
    assert found[1].kind == "at"
    assert found[1].value == pytest.approx(4096)


def test_a_length_that_one_side_lacks_is_not_used() -> None:
    short = {length: seconds for length, seconds in RISING.items() if length <= 8192}
    found = find_crossover(
        observations(decode_records(LEVEL, short, DRIFT)), "tpot_s", "retnet", "transformer"
    )
    assert found is not None
    assert found[0] == [1024, 2048, 4096, 8192]


def test_one_lost_round_costs_a_round_and_not_a_length() -> None:
    records = decode_records(LEVEL, RISING, DRIFT)
    records = [r for r in records if (r.model.name, r.round, r.point.context_len) != ("retnet", 3, 32768)]
    found = find_slope(observations(records), "tpot_s", "retnet")
    assert found is not None
    assert found[0] == list(LENGTHS)
    assert found[1].num_rounds == 4
    assert " 4 of 5." in found[2]
    assert found[1].ratio == pytest.approx(1.0)
    assert found[1].equivalent is True


def test_a_time_that_rises_is_not_level() -> None:
    found = find_slope(observations(decode_records(LEVEL, RISING, DRIFT)), "tpot_s", "transformer")
    assert found is not None
    assert found[1].ratio == pytest.approx(32)
    assert found[1].equivalent is False
    assert found[2] == ""


@pytest.mark.parametrize("lengths", [(), (1024,)])
def test_fewer_than_two_lengths_tell_nothing(lengths: tuple[int, ...]) -> None:
    times = dict.fromkeys(lengths, 1.0)
    frame = observations(decode_records(times, times, DRIFT))
    assert find_crossover(frame, "tpot_s", "retnet", "transformer") is None
    assert find_slope(frame, "tpot_s", "retnet") is None


def test_a_made_up_pair_is_plausible(cpu_records: list[Record]) -> None:
    frame = observations([r for r in cpu_records if r.workload == "decode"])
    found = find_crossover(frame, "tpot_s", "retnet", "transformer")
    assert found is not None
    assert found[1].low is not None
    assert found[1].high is not None
    assert 1024 < found[1].low < found[1].high < 8192
    assert not math.isnan(found[1].low)


def points_of(values: dict[int, float]) -> pd.DataFrame:
    """Points of a cost that has these values at these lengths, in two rounds."""
    return summarise(observations(decode_records(values, values, [1.0, 1.0])))


def test_a_line_is_found_with_its_parts() -> None:
    line = fit_line(points_of({length: 3.0 * length + 500 for length in LENGTHS}), "tpot_s", "retnet")
    assert line is not None
    assert line.lengths == LENGTHS
    assert (line.slope, line.intercept) == (pytest.approx(3.0), pytest.approx(500))
    assert line.largest_residual == pytest.approx(0, abs=1e-9)
    assert line.r_squared == pytest.approx(1)
    assert line.fits


def test_a_square_is_not_linear_though_most_of_its_variance_is() -> None:
    lengths = (2048, 3072, 4096, 6144, 8192)
    line = fit_line(points_of({length: float(length) ** 2 for length in lengths}), "tpot_s", "retnet")
    assert line is not None
    assert line.r_squared > 0.95
    assert line.largest_residual > 0.5
    assert not line.fits


@pytest.mark.parametrize("values", [{}, {1024: 1.0, 2048: 2.0}, dict.fromkeys(LENGTHS, 4.0)])
def test_too_few_points_or_a_level_cost_have_no_line(values: dict[int, float]) -> None:
    assert fit_line(points_of(values), "tpot_s", "retnet") is None


SLOWER = {"one": 1.0, "two": 2.6}
"""Speed of two measurement sessions of a machine, as a factor on every time."""

INTERRUPTED = {
    "a resumed run": {"retnet": ["one"] * 5, "transformer": ["one"] * 2 + ["two"] * 3},
    "a resumed run that began again": {"retnet": ["two"] * 3 + ["one"] * 2, "transformer": ["one"] * 5},
    "rounds by turns": {
        "retnet": ["one", "two"] * 2 + ["one"],
        "transformer": ["one"] * 2 + ["two"] * 2 + ["one"],
    },
}
"""The session in which each round of each model was measured."""


@pytest.mark.parametrize("case", INTERRUPTED)
def test_rounds_of_different_sessions_are_never_paired(case: str) -> None:
    mine, theirs = dict.fromkeys(LENGTHS, 0.93), dict.fromkeys(LENGTHS, 1.0)
    records = []
    for record in decode_records(mine, theirs, [1.0, 1.05, 0.96, 1.02, 0.99]):
        session = INTERRUPTED[case][record.model.name][record.round]
        value = record.metrics["tpot_s"].value * SLOWER[session]
        metrics = {"tpot_s": Metric(unit="s", value=value)}
        records.append(record.model_copy(update={"run_id": session, "metrics": metrics}))
    shared = sum(one == two for one, two in zip(*INTERRUPTED[case].values(), strict=True))
    frame, models = observations(records), lineup(records)
    ratios = pair_ratios(frame, models)
    assert list(ratios["ratio"]) == pytest.approx([0.93] * len(LENGTHS))
    assert set(ratios["num_rounds"]) == {shared}
    assert not ratios["unpaired"].any()
    assert (ratios["high"] - ratios["low"]).max() < 1e-6
    by_session = ratios_by_round(frame, "tpot_s", "retnet", "transformer")
    assert by_session.to_numpy().ravel().tolist() == pytest.approx([0.93] * shared * len(LENGTHS))


def test_a_round_that_two_sessions_measured_in_parts_is_not_one_line_over_the_lengths() -> None:
    records = [
        record.model_copy(
            update={"metrics": {"tpot_s": Metric(unit="s", value=4.0 * SLOWER[session])}, "run_id": session}
        )
        for record in decode_records(LEVEL, LEVEL, DRIFT)
        for session in ["two" if record.round == 4 and record.point.context_len > 4096 else "one"]
    ]
    found = find_slope(observations(records), "tpot_s", "retnet")
    assert found is not None
    lengths, slope, left_out = found
    assert lengths == list(LENGTHS)
    assert " 4 of 6." in left_out
    assert slope.ratio == pytest.approx(1.0)


def test_lengths_that_another_session_added_leave_those_of_the_first_compared() -> None:
    records = [
        record.model_copy(update={"run_id": "two" if record.point.context_len == LENGTHS[-1] else "one"})
        for record in decode_records(LEVEL, LEVEL, DRIFT)
    ]
    frame = observations(records)
    slope = find_slope(frame, "tpot_s", "retnet")
    crossing = find_crossover(frame, "tpot_s", "retnet", "transformer")
    for found in (slope, crossing):
        assert found is not None
        assert found[0] == list(LENGTHS[:-1])
