import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.errors import UnsupportedError
from retbench.measure import nvml
from retbench.planning.plan import make_plan
from retbench.regress import interleaved
from retbench.regress.decide import is_exit_code_fixed, with_decisions
from retbench.regress.evidence import PairedEvidence
from retbench.regress.interleaved import InterleavedCheck, SampledRounds, StopRule, sample
from retbench.regress.items import (
    ComparedItem,
    MeasurementPoint,
    Times,
    combine_blocks,
    make_items,
    paired_changes,
)
from retbench.regress.report import CheckReport
from retbench.regress.revisions import checkout_root, working_tree
from retbench.regress.session import SessionLimits
from retbench.stats.intervals import LogRatio
from retbench.stats.sequential import Decision, DecisionRules
from stats.noise import POINTS, NoisyRounds

RUNS = 200
MOVED_RUNS = 100
"""Runs of code that has moved: a few that miss it show in half as many."""


def run(seed: int, slow_down: float = 0.0, session_sd: float = 0.05) -> SampledRounds:
    source = NoisyRounds(np.random.default_rng(seed), slow_down, session_sd)
    return sample(POINTS, "transformer", source, DecisionRules(), 20)


def verdicts(sampled: SampledRounds) -> Counter[str]:
    return Counter(decision.verdict for decision in sampled.decisions.values())


def decode_times(sampled: SampledRounds) -> list[str]:
    return [
        decision.verdict
        for item, decision in sampled.decisions.items()
        if item.kind == "time" and item.points[0].workload == "decode"
    ]


def test_items_of_a_sweep() -> None:
    items = make_items(POINTS, "transformer")
    assert Counter(item.kind for item in items) == {"time": 10, "ratio": 5, "curve": 4}
    assert "decode of retnet/transformer, batch 1, 4K" in {str(item) for item in items}
    assert "prefill of transformer, batch 1, 512 to 1K" in {str(item) for item in items}
    assert {item.kind for item in make_items(POINTS, None)} == {"time", "curve"}


def test_log_ratios_by_hand() -> None:
    one, two = POINTS[0], POINTS[3]
    times: Times = {one: (1.0, 1.2), two: (2.0, 2.2)}
    ratio = ComparedItem("ratio", "retnet/transformer", ((one, 1.0), (two, -1.0)))
    curve = ComparedItem("curve", "retnet", ((one, 0.5), (two, 0.5)))
    changes = paired_changes([ratio, curve], [times])
    assert changes[ratio].estimate == pytest.approx(math.log(1.2 / 1.1))
    assert changes[curve].estimate == pytest.approx(math.log(1.2 * 1.1) / 2)
    assert paired_changes([curve], [{one: (1.0, 1.2)}]) == {}
    assert paired_changes([ratio], [times, {one: (1.0, 1.0)}])[ratio].num_rounds == 1


def test_one_disturbed_block_of_three_does_not_count() -> None:
    first, second = combine_blocks([(1.0, 1.1), (2.0, 2.2), (1.1, 9.0)])
    assert (first, second / first) == (pytest.approx(1.1), pytest.approx(1.1))
    assert combine_blocks([(0.5, 0.6)]) == (0.5, pytest.approx(0.6))


@pytest.mark.parametrize("session_sd", [0.005, pytest.param(0.05, marks=pytest.mark.slow)])
def test_identical_code_raises_no_alarm(session_sd: float) -> None:
    found = [verdicts(run(seed, 0.0, session_sd)) for seed in range(RUNS)]
    assert sum("regressed" in one or "improved" in one for one in found) <= 0.01 * RUNS
    assert sum(one["same"] == 19 for one in found) >= 0.9 * RUNS  # and it says so


@pytest.mark.parametrize(
    ("factor", "share"), [(1.05, 0.95), pytest.param(1.10, 0.99, marks=pytest.mark.slow), (1 / 1.05, 0.95)]
)
def test_what_has_moved_is_found_within_twenty_rounds(factor: float, share: float) -> None:
    expected = "regressed" if factor > 1 else "improved"
    found = [run(seed, math.log(factor)) for seed in range(MOVED_RUNS)]
    assert sum(decode_times(one) == [expected] * 6 for one in found) >= share * MOVED_RUNS
    assert max(len(one.rounds) for one in found) <= 20


class Scripted:
    """A source whose rounds are messages."""

    def __init__(
        self, head: Callable[[int, MeasurementPoint], float | None], budget: int | None = None
    ) -> None:
        self.head = head
        self.budget = budget
        self.asked: list[frozenset[MeasurementPoint]] = []

    def measure(self, points: frozenset[MeasurementPoint]) -> Times:
        number = len(self.asked)
        self.asked.append(points)
        heads = {point: self.head(number, point) for point in points}
        return {point: (0.01, seconds) for point, seconds in heads.items() if seconds is not None}

    def has_budget(self) -> bool:
        return self.budget is None or len(self.asked) < self.budget


def jitter(number: int, size: float = 0.002) -> float:
    return 1 + size * (-1) ** number


def test_only_what_is_undecided_is_measured_on() -> None:
    noisy = POINTS[0]
    source = Scripted(lambda number, point: 0.01 * jitter(number, 0.2 if point == noisy else 0.001))
    found = sample(POINTS, None, source, DecisionRules(), 7)
    assert source.asked[0] == frozenset(POINTS)
    assert source.asked[6] == {point for point in POINTS if point.curve == noisy.curve}
    assert found.ending == "rounds"
    assert len(found.rounds) == 7
    assert not found.repeats


def test_what_is_flagged_is_measured_anew_and_must_be_found_again() -> None:
    slow, once = POINTS[0], POINTS[8]
    rest = [POINTS[3], POINTS[6]]

    def head(number: int, point: MeasurementPoint) -> float:
        moved = point == slow or (point == once and number < 5)
        return 0.01 * jitter(number) * (1.3 if moved else 1.0)

    source = Scripted(head)
    found = sample([slow, once, *rest], None, source, DecisionRules(), 5)
    by_place = {item.points[0]: decision for item, decision in found.decisions.items() if item.kind == "time"}
    assert source.asked[5] == {slow, once}
    assert len(found.repeats) == 5
    assert by_place[slow].verdict == "regressed"
    assert by_place[once].verdict == "inconclusive"
    assert "not when measured again" in by_place[once].note


def test_the_budget_ends_the_rounds_but_not_the_repeats() -> None:
    source = Scripted(lambda number, point: 0.013 * jitter(number), budget=4)
    found = sample(POINTS, None, source, DecisionRules(), 20)
    assert (found.ending, len(found.rounds), len(found.repeats)) == ("decided", 4, 5)
    assert set(verdicts(found)) == {"regressed"}


def test_a_budget_of_too_few_rounds_decides_nothing() -> None:
    source = Scripted(lambda number, point: 0.013 * jitter(number), budget=2)
    found = sample(POINTS, None, source, DecisionRules(), 20)
    assert (found.ending, len(found.rounds)) == ("budget", 2)
    assert set(verdicts(found)) == {"inconclusive"}


def test_a_place_that_the_first_round_lacks_costs_no_round_and_leaves_its_curve_to_the_others() -> None:
    gone = POINTS[0]
    source = Scripted(lambda number, point: None if point == gone else 0.01 * jitter(number, 0.001))
    found = sample(POINTS, "transformer", source, DecisionRules(), 20)
    assert (found.ending, len(found.rounds)) == ("decided", 5)
    assert set(found.decisions) == set(
        make_items([point for point in POINTS if point != gone], "transformer")
    )
    assert Counter(item.kind for item in found.decisions) == {"time": 9, "ratio": 4, "curve": 4}
    assert set(verdicts(found)) == {"same"}


def test_a_place_that_a_later_round_lacks_is_not_passed_over() -> None:
    gone = POINTS[0]
    source = Scripted(lambda number, point: None if point == gone and number else 0.01 * jitter(number))
    found = sample(POINTS, None, source, DecisionRules(), 5)
    (decision,) = [
        one for item, one in found.decisions.items() if item.kind == "time" and item.points == (gone,)
    ]
    assert decision.verdict == "inconclusive"


def test_where_nothing_can_be_measured_one_round_is_enough() -> None:
    found = sample(POINTS, "transformer", Scripted(lambda number, point: None), DecisionRules(), 20)
    assert (found.ending, len(found.rounds), found.decisions) == ("nothing", 1, {})


def may_stop(strict: bool = False) -> StopRule:
    return lambda decided, still_open: is_exit_code_fixed(decided, still_open, strict=strict)


def noisy_ratio(number: int, point: MeasurementPoint) -> float:
    """Both models are 12 % slower, and one of them has noise that leaves its ratio undecided."""
    size = 0.05 if point.model == "transformer" and point.workload == "decode" else 0.001
    return 0.0112 * jitter(number, size)


def test_one_certain_regression_settles_the_exit_code() -> None:
    everything = sample(POINTS, "transformer", Scripted(noisy_ratio), DecisionRules(), 40)
    assert len(everything.rounds) == 40
    source = Scripted(noisy_ratio)
    found = sample(POINTS, "transformer", source, DecisionRules(), 40, may_stop())
    assert (found.ending, len(found.rounds), len(found.repeats)) == ("settled", 5, 5)
    assert verdicts(found)["regressed"] >= 5
    assert verdicts(found)["inconclusive"] >= 1


def test_a_flag_that_is_not_confirmed_settles_nothing() -> None:
    """The others go on, and are found."""
    once, noisy = POINTS[0], POINTS[8]

    def head(number: int, point: MeasurementPoint) -> float:
        factor = 1.3 if point == once and number < 5 else 1.0
        return 0.01 * factor * jitter(number, 0.06 if point == noisy else 0.001)

    source = Scripted(head)
    found = sample([once, POINTS[3], noisy], None, source, DecisionRules(), 10, may_stop())
    by_place = {item.points[0]: decision.verdict for item, decision in found.decisions.items()}
    assert found.ending == "rounds"
    assert (len(found.rounds), len(found.repeats)) == (10, 5)
    assert by_place == {once: "inconclusive", POINTS[3]: "same", noisy: "inconclusive"}


def test_a_flag_that_is_not_confirmed_is_not_called_decided() -> None:
    """Three tests of new rounds leave it open: 5, 15 and 45 rounds, but no more than three times the limit."""

    def head(number: int, point: MeasurementPoint) -> float:
        return 0.013 * jitter(number, 0.001) if number < 5 else 0.0106 * jitter(number, 0.12)

    found = sample([POINTS[0]], None, Scripted(head), DecisionRules(), 10)
    assert (found.ending, len(found.rounds), len(found.repeats)) == ("unconfirmed", 5, 30)
    assert {one.verdict for one in found.decisions.values()} == {"inconclusive"}


@pytest.mark.parametrize(("strict", "rounds"), [(False, 5), (True, 10)])
def test_a_ratio_that_cannot_fail_is_waited_for_under_strict_alone(strict: bool, rounds: int) -> None:
    """Both models are the same, but their noise adds up in the ratio."""
    mine, reference = POINTS[0], POINTS[3]

    def head(number: int, point: MeasurementPoint) -> float:
        return 0.01 * (jitter(number, 0.008) if point == mine else 1 / jitter(number, 0.008))

    found = sample([mine, reference], "transformer", Scripted(head), DecisionRules(), 10, may_stop(strict))
    assert {item.kind: one.verdict for item, one in found.decisions.items()}["time"] == "same"
    assert len(found.rounds) == rounds


def test_a_point_that_fails_later_is_waited_for_no_longer() -> None:
    """Its earlier times are no regression either, however slow they were."""
    gone = POINTS[0]

    def head(number: int, point: MeasurementPoint) -> float | None:
        if point == gone:
            return 0.02 * jitter(number) if number < 5 else None
        return 0.01 * jitter(number, 0.001)

    source = Scripted(head)
    found = sample(POINTS, None, source, DecisionRules(), 20, may_stop())
    assert gone in source.asked[5]
    assert not any(gone in points for points in source.asked[6:])
    alive = {item: one for item, one in found.decisions.items() if gone not in item.points}
    assert {one.verdict for one in alive.values()} == {"same"}
    assert all(one.verdict != "regressed" for one in found.decisions.values())
    assert len(found.rounds) <= 7


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_early_end_raises_no_more_alarms(strict: bool) -> None:
    for slow_down, runs, expected in ((0.0, RUNS, 0.01), (math.log(1.1), MOVED_RUNS, 1.0)):
        alarms = 0
        for seed in range(runs):
            source = NoisyRounds(np.random.default_rng(seed), slow_down, 0.05)
            found = sample(POINTS, "transformer", source, DecisionRules(), 20, may_stop(strict))
            alarms += "regressed" in verdicts(found)
            assert not slow_down or len(found.rounds) <= 10
        assert alarms <= expected * runs
        assert slow_down == 0 or alarms >= 0.99 * runs


REGRESSED = Decision("regressed", LogRatio(0.1, 0.0, 4.0, 5), 0.02)
SAME = Decision("same", LogRatio(0.0, 0.0, 4.0, 5), 0.02)
OPEN = Decision("inconclusive", LogRatio(0.0, 0.1, 4.0, 5), 0.02)


@given(
    st.lists(st.sampled_from([REGRESSED, SAME, OPEN, None]), min_size=19, max_size=19),
    st.booleans(),
)
def test_a_settled_exit_code_is_that_of_every_end(verdicts: list[Decision | None], strict: bool) -> None:
    """Whatever comes of the items that are open, the report has the same exit code."""
    items = make_items(POINTS, "transformer")
    decided = {item: one for item, one in zip(items, verdicts, strict=True) if one is not None}
    still_open = [item for item in items if item not in decided]
    if not is_exit_code_fixed(decided, still_open, strict=strict):
        return
    codes = set()
    for rest in (REGRESSED, SAME, OPEN):
        decisions = {item: decided.get(item, rest) for item in items}
        report = with_decisions(CheckReport("", "", ""), decisions, PairedEvidence(([], []), []))
        codes.add(report.exit_code(strict=strict))
    assert len(codes) == 1


def test_two_processes_are_not_started_on_a_gpu_that_lets_one_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_plan("latency", profile="smoke", device="cpu")
    on_gpu = made.settings.model_copy(update={"device": "cuda:0"})
    plan = replace(made, cells=tuple(cell.model_copy(update={"settings": on_gpu}) for cell in made.cells))
    monkeypatch.setattr(interleaved, "device_uuid", "uuid of {}".format)
    monkeypatch.setattr(nvml, "is_exclusive", lambda uuid: uuid == "uuid of cuda:0")
    head = working_tree(checkout_root())
    with pytest.raises(UnsupportedError, match="compute-mode=DEFAULT"):
        InterleavedCheck(plan, tmp_path, print, SessionLimits(), DecisionRules()).measure((head, head))
