import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from retbench.regress.items import Item, Place, Times, combine_visits, make_items, paired_evidence
from retbench.regress.sampling import Sampled, sample
from retbench.stats.sequential import Rules
from stats.noise import PLACES, NoisyRounds

RUNS = 200


def run(seed: int, slow_down: float = 0.0, session_sd: float = 0.05) -> Sampled:
    source = NoisyRounds(np.random.default_rng(seed), slow_down, session_sd)
    return sample(PLACES, "transformer", source, Rules(), 20)


def verdicts(sampled: Sampled) -> Counter[str]:
    return Counter(decision.verdict for decision in sampled.decisions.values())


def decode_times(sampled: Sampled) -> list[str]:
    return [
        decision.verdict
        for item, decision in sampled.decisions.items()
        if item.kind == "time" and item.places[0].workload == "decode"
    ]


def test_items_of_a_sweep() -> None:
    items = make_items(PLACES, "transformer")
    assert Counter(item.kind for item in items) == {"time": 10, "ratio": 5, "curve": 4}
    assert "decode of retnet/transformer, batch 1, 4K" in {str(item) for item in items}
    assert "prefill of transformer, batch 1, 512 to 1K" in {str(item) for item in items}
    assert {item.kind for item in make_items(PLACES, None)} == {"time", "curve"}


def test_log_ratios_by_hand() -> None:
    one, two = PLACES[0], PLACES[3]
    times: Times = {one: (1.0, 1.2), two: (2.0, 2.2)}
    ratio = Item("ratio", "retnet/transformer", ((one, 1.0), (two, -1.0)))
    curve = Item("curve", "retnet", ((one, 0.5), (two, 0.5)))
    assert ratio.log_ratio(times) == pytest.approx(math.log(1.2 / 1.1))
    assert curve.log_ratio(times) == pytest.approx(math.log(1.2 * 1.1) / 2)
    assert curve.log_ratio({one: (1.0, 1.2)}) is None
    assert paired_evidence([ratio], [times, {one: (1.0, 1.0)}])[ratio].num_rounds == 1


def test_one_disturbed_visit_of_three_does_not_count() -> None:
    first, second = combine_visits([(1.0, 1.1), (2.0, 2.2), (1.1, 9.0)])
    assert (first, second / first) == (pytest.approx(1.1), pytest.approx(1.1))
    assert combine_visits([(0.5, 0.6)]) == (0.5, pytest.approx(0.6))


@pytest.mark.parametrize("session_sd", [0.005, 0.05])
def test_identical_code_raises_no_alarm(session_sd: float) -> None:
    found = [verdicts(run(seed, 0.0, session_sd)) for seed in range(RUNS)]
    assert sum("regressed" in one or "improved" in one for one in found) <= 0.01 * RUNS
    assert sum(one["same"] == 19 for one in found) >= 0.9 * RUNS  # and it says so


@pytest.mark.parametrize(("factor", "share"), [(1.05, 0.95), (1.10, 0.99), (1 / 1.05, 0.95)])
def test_what_has_moved_is_found_within_twenty_rounds(factor: float, share: float) -> None:
    expected = "regressed" if factor > 1 else "improved"
    found = [run(seed, math.log(factor)) for seed in range(RUNS)]
    assert sum(decode_times(one) == [expected] * 6 for one in found) >= share * RUNS
    assert max(len(one.rounds) for one in found) <= 20


class Scripted:
    """A source whose rounds are told."""

    def __init__(self, head: Callable[[int, Place], float | None], budget: int | None = None) -> None:
        self.head = head
        self.budget = budget
        self.asked: list[frozenset[Place]] = []

    def measure(self, places: frozenset[Place]) -> Times:
        number = len(self.asked)
        self.asked.append(places)
        heads = {place: self.head(number, place) for place in places}
        return {place: (0.01, seconds) for place, seconds in heads.items() if seconds is not None}

    def has_budget(self) -> bool:
        return self.budget is None or len(self.asked) < self.budget


def jitter(number: int, size: float = 0.002) -> float:
    return 1 + size * (-1) ** number


def test_only_what_is_undecided_is_measured_on() -> None:
    noisy = PLACES[0]
    source = Scripted(lambda number, place: 0.01 * jitter(number, 0.2 if place == noisy else 0.001))
    found = sample(PLACES, None, source, Rules(), 7)
    assert source.asked[0] == frozenset(PLACES)
    assert source.asked[6] == {place for place in PLACES if place.curve == noisy.curve}
    assert found.ending == "rounds"
    assert len(found.rounds) == 7
    assert not found.repeats


def test_what_is_flagged_is_measured_anew_and_must_be_found_again() -> None:
    slow, once = PLACES[0], PLACES[8]
    rest = [PLACES[3], PLACES[6]]

    def head(number: int, place: Place) -> float:
        moved = place == slow or (place == once and number < 5)
        return 0.01 * jitter(number) * (1.3 if moved else 1.0)

    source = Scripted(head)
    found = sample([slow, once, *rest], None, source, Rules(), 5)
    by_place = {item.places[0]: decision for item, decision in found.decisions.items() if item.kind == "time"}
    assert source.asked[5] == {slow, once}
    assert len(found.repeats) == 5
    assert by_place[slow].verdict == "regressed"
    assert by_place[once].verdict == "inconclusive"
    assert "not when measured again" in by_place[once].note


def test_the_budget_ends_the_rounds_but_not_the_repeats() -> None:
    source = Scripted(lambda number, place: 0.013 * jitter(number), budget=4)
    found = sample(PLACES, None, source, Rules(), 20)
    assert (found.ending, len(found.rounds), len(found.repeats)) == ("decided", 4, 5)
    assert set(verdicts(found)) == {"regressed"}


def test_a_budget_of_too_few_rounds_decides_nothing() -> None:
    source = Scripted(lambda number, place: 0.013 * jitter(number), budget=2)
    found = sample(PLACES, None, source, Rules(), 20)
    assert (found.ending, len(found.rounds)) == ("budget", 2)
    assert set(verdicts(found)) == {"inconclusive"}


def test_a_place_that_the_first_round_lacks_costs_no_round_and_leaves_its_curve_to_the_others() -> None:
    gone = PLACES[0]
    source = Scripted(lambda number, place: None if place == gone else 0.01 * jitter(number, 0.001))
    found = sample(PLACES, "transformer", source, Rules(), 20)
    assert (found.ending, len(found.rounds)) == ("decided", 5)
    assert set(found.decisions) == set(
        make_items([place for place in PLACES if place != gone], "transformer")
    )
    assert Counter(item.kind for item in found.decisions) == {"time": 9, "ratio": 4, "curve": 4}
    assert set(verdicts(found)) == {"same"}


def test_a_place_that_a_later_round_lacks_is_not_passed_over() -> None:
    gone = PLACES[0]
    source = Scripted(lambda number, place: None if place == gone and number else 0.01 * jitter(number))
    found = sample(PLACES, None, source, Rules(), 5)
    (decision,) = [
        one for item, one in found.decisions.items() if item.kind == "time" and item.places == (gone,)
    ]
    assert decision.verdict == "inconclusive"


def test_where_nothing_can_be_measured_one_round_is_enough() -> None:
    found = sample(PLACES, "transformer", Scripted(lambda number, place: None), Rules(), 20)
    assert (found.ending, len(found.rounds), found.decisions) == ("nothing", 1, {})
