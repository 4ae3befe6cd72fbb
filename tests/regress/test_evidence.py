"""Changes of an item that the rounds of two sides show: in pairs, in two sessions, and after a baseline."""

import math

import pytest

from retbench.regress.evidence import MIN_RUNS, BaselineEvidence, PairedEvidence, UnpairedEvidence
from retbench.regress.items import MeasurementPoint, make_items, time_of

TIMED = MeasurementPoint("latency", "decode", "retnet", 1, 1024)
COUNTED = MeasurementPoint("memory", "memory", "retnet", 1, 1024)
REFERENCE = MeasurementPoint("latency", "decode", "transformer", 1, 1024)
OTHER = MeasurementPoint("latency", "decode", "retnet", 1, 2048)


def test_points_are_shared_if_each_side_has_them_in_some_round() -> None:
    sides = ([{TIMED: 1.0}, {OTHER: 1.0}], [{COUNTED: 1.0}, {TIMED: 1.0, OTHER: 1.0}])
    assert UnpairedEvidence(sides).shared_points == [TIMED, OTHER]


def test_pairs_show_a_change_that_two_sessions_cannot() -> None:
    """Every round of the second side is 10 % slower, and the rounds differ by a factor of four."""
    first = [{TIMED: seconds} for seconds in (1.0, 2.0, 4.0)]
    second = [{TIMED: 1.1 * values[TIMED]} for values in first]
    pairs = [{TIMED: (one[TIMED], other[TIMED])} for one, other in zip(first, second, strict=True)]
    item = time_of(TIMED)
    paired = PairedEvidence((first, second), pairs).change_of(item)
    unpaired = UnpairedEvidence((first, second)).change_of(item)
    assert paired is not None
    assert unpaired is not None
    assert math.exp(paired.estimate) == pytest.approx(1.1)
    assert math.exp(unpaired.estimate) == pytest.approx(1.1)
    assert paired.interval().low == pytest.approx(1.1)
    low = unpaired.interval().low
    assert low is not None
    assert low < 1
    assert UnpairedEvidence((first, second)).change_of(time_of(OTHER)) is None


@pytest.mark.parametrize(("point", "degrees"), [(COUNTED, 1.0), (TIMED, 0.0)])
def test_one_round_of_each_side_is_enough_for_a_count_alone(point: MeasurementPoint, degrees: float) -> None:
    change = UnpairedEvidence(([{point: 100.0}], [{point: 110.0}])).change_of(time_of(point))
    assert change is not None
    assert change.degrees == degrees


def test_a_verdict_against_a_baseline_needs_its_runs_and_their_number_of_rounds() -> None:
    item, run = time_of(TIMED), [{TIMED: 1.0}, {TIMED: 1.1}]
    few = BaselineEvidence.of([run] * (MIN_RUNS - 1), run).lack_of(item)
    assert few == f"a verdict needs {MIN_RUNS} runs, and the baseline has {MIN_RUNS - 1}"
    assert BaselineEvidence.of([run] * MIN_RUNS, run).lack_of(item) is None
    short = BaselineEvidence.of([run] * MIN_RUNS, run[:1]).lack_of(item)
    assert short == "1 round, the runs of the baseline have 2"


def test_a_count_against_a_baseline_needs_no_further_rounds() -> None:
    runs = [[{COUNTED: 100.0}] * 2] * MIN_RUNS
    assert BaselineEvidence.of(runs, [{COUNTED: 100.0}]).lack_of(time_of(COUNTED)) is None


def test_the_newest_accepted_run_comes_first_on_the_first_side() -> None:
    old, new = [{TIMED: 1.0}], [{TIMED: 2.0}]
    assert BaselineEvidence.of([old, new], []).sides == ([{TIMED: 2.0}, {TIMED: 1.0}], [])


def test_values_are_of_the_rounds_that_a_change_compares() -> None:
    """The reference lacks the second round, in which everything took twice as long."""
    ratio = make_items([TIMED, REFERENCE], REFERENCE.model)[-1]
    first = [{TIMED: 2.0, REFERENCE: 1.0}, {TIMED: 4.0, REFERENCE: 2.0}]
    second = [{TIMED: 6.0, REFERENCE: 2.0}, {TIMED: 12.0}]
    pairs = [{point: (first[0][point], second[0][point]) for point in (TIMED, REFERENCE)}]
    for evidence in (UnpairedEvidence((first, second)), PairedEvidence((first, second), pairs)):
        change = evidence.change_of(ratio)
        assert change is not None
        assert evidence.values_of(ratio) == pytest.approx((2.0, 3.0))
        assert math.exp(change.estimate) == pytest.approx(3.0 / 2.0)
    assert PairedEvidence((first, second), pairs).values_of(time_of(TIMED)) == pytest.approx((2.0, 6.0))
    assert PairedEvidence((first, second), []).values_of(ratio) is None
