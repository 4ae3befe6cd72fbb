import math
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.errors import ConfigError
from retbench.stats.intervals import LogRatio, paired
from retbench.stats.sequential import DecisionRules, SequentialTest, plan_analyses, reject
from stats.noise import PROCESS_SD

RUNS = 600
ITEMS = 6
RULES = DecisionRules()
MARGIN = RULES.log_margin(1.0)


@given(st.integers(3, 200))
def test_looks_share_the_rate_and_end_with_the_last_round(max_rounds: int) -> None:
    analyses = plan_analyses(max_rounds)
    rounds = [analysis.rounds for analysis in analyses]
    assert math.fsum(analysis.share for analysis in analyses) == pytest.approx(1)
    assert rounds == sorted(set(rounds))
    assert rounds[-1] == max_rounds


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 rounds are too few"):
        plan_analyses(2)


@given(
    st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 5)), min_size=1, max_size=5), st.floats(0.01, 0.2)
)
def test_holm_rejects_what_closed_testing_does(pairs: list[tuple[float, int]], rate: float) -> None:
    """A hypothesis is rejected where every set with it is, by Bonferroni with weights."""
    p_values, weights = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    names = range(len(pairs))
    sets = list(chain.from_iterable(combinations(names, size) for size in range(1, len(p_values) + 1)))
    expected = {
        name
        for name in names
        if all(
            any(p_values[one] <= rate * weights[one] / sum(weights[each] for each in some) for one in some)
            for some in sets
            if name in some
        )
    }
    assert set(reject(p_values, rate, weights, sum(weights.values()))) == expected


def test_more_hypotheses_than_are_tested_make_it_stricter() -> None:
    weights = {"a": 1, "b": 1}
    assert reject({"a": 0.02, "b": 0.03}, 0.05, weights, 2) == ["a", "b"]
    assert reject({"a": 0.02, "b": 0.03}, 0.05, weights, 3) == []


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0, math.nan])
def test_rates_are_shares(share: float) -> None:
    for rules in ({"margin": share}, {"flag_rate": share}, {"miss_rate": share}, {"confirm_rate": share}):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            DecisionRules(**rules)


def test_a_short_time_must_move_by_the_floor_too() -> None:
    assert RULES.log_margin(1.0) == pytest.approx(math.log(1.02))
    assert RULES.log_margin(20e-6) == pytest.approx(math.log(1.5))
    with pytest.raises(ConfigError, match="floor"):
        DecisionRules(floor_s=-1)


def run_sweep(rng: np.random.Generator, effect: float, spread: float, shared: float) -> SequentialTest[int]:
    """Twenty rounds of six items that all have the same effect, with noise of their own and noise in common."""
    logs = rng.normal(effect, spread, size=(ITEMS, 20)) + rng.normal(0, shared, size=20)
    sweep = SequentialTest(dict.fromkeys(range(ITEMS), MARGIN), RULES, plan_analyses(20))
    while analysis := sweep.next_analysis:
        sweep.analyse({item: paired(logs[item, : analysis.rounds].tolist()) for item in sweep.undecided})
    return sweep


@pytest.mark.parametrize(("spread", "shared"), [(0.002, 0.0), (0.01, 0.0), (0.01, 0.03), (0.1, 0.0)])
def test_repeated_looks_keep_the_rate_of_flags_where_it_is_hardest(spread: float, shared: float) -> None:
    """Every item has moved by exactly the margin, which must not be flagged: in no analysis, of no item."""
    rng = np.random.default_rng(7)
    flagged = sum(bool(run_sweep(rng, MARGIN, spread, shared).flagged) for _ in range(RUNS))
    assert flagged / RUNS <= RULES.flag_rate + 0.009  # one standard deviation of so many runs


@pytest.mark.parametrize(("spread", "shared"), [(0.002, 0.0), (0.01, 0.0), (0.01, 0.03)])
def test_what_has_moved_by_the_margin_is_seldom_called_the_same(spread: float, shared: float) -> None:
    rng = np.random.default_rng(8)
    same = 0
    for _ in range(RUNS):
        decisions = run_sweep(rng, MARGIN, spread, shared).decisions({})
        same += decisions[0].verdict == "same"
    assert same / RUNS <= RULES.miss_rate + 0.009


def test_looking_again_and_again_at_the_whole_rate_would_not_keep_it() -> None:
    """The shares are for this: the same rounds are judged at every analysis as if it were the only one."""
    rng = np.random.default_rng(7)
    flagged = 0
    for _ in range(RUNS):
        logs = rng.normal(MARGIN, 0.01, size=(ITEMS, 20))
        flagged += any(
            reject(
                {
                    item: paired(logs[item, : analysis.rounds].tolist()).p_above(MARGIN)
                    for item in range(ITEMS)
                },
                0.05,
                dict.fromkeys(range(ITEMS), 1),
                ITEMS,
            )
            for analysis in plan_analyses(20)
        )
    assert flagged / RUNS > 0.09


def steady(effect: float, rounds: int = 5) -> LogRatio:
    return LogRatio(effect, PROCESS_SD / math.sqrt(rounds), rounds - 1, rounds)


def test_verdicts_by_what_was_measured() -> None:
    effects = {"slow": 0.2, "fast": -0.2, "same": 0.0, "noisy": 0.015}
    sweep = SequentialTest(dict.fromkeys(effects, MARGIN), RULES, plan_analyses(5))
    evidence = {name: steady(effect) for name, effect in effects.items()}
    sweep.analyse(evidence)
    found = sweep.decisions(evidence)
    assert {name: one.verdict for name, one in found.items()} == {
        "slow": "regressed",
        "fast": "improved",
        "same": "same",
        "noisy": "inconclusive",
    }
    assert sweep.flagged == {"slow": "regressed", "fast": "improved"}
    assert found["slow"].detectable is None
    assert found["noisy"].detectable is not None
    assert 0.02 < found["noisy"].detectable < 0.1


def test_an_item_without_rounds_is_not_decided() -> None:
    sweep = SequentialTest({"there": MARGIN, "missing": MARGIN}, RULES, plan_analyses(5))
    sweep.analyse({"there": steady(0.0)})
    found = sweep.decisions({"there": steady(0.0)})["missing"]
    assert (found.verdict, found.change, found.detectable) == ("inconclusive", None, None)


def test_what_is_not_found_again_is_inconclusive() -> None:
    names = frozenset({"real", "late", "never", "chance", "gone"})
    sweep = SequentialTest(dict.fromkeys(names, MARGIN), RULES, plan_analyses(5))
    sweep.analyse(dict.fromkeys(names, steady(0.2)))
    assert sweep.flagged.keys() == names
    unclear = LogRatio(MARGIN + 0.01, 0.01, 4.0, 5)
    first = {"real": steady(0.2), "chance": steady(0.0), "late": unclear, "never": unclear}
    left = sweep.confirm(first, names, is_last=False)
    assert left == {"late", "never"}
    assert not sweep.confirm({"late": steady(0.05, 15), "never": unclear}, left, is_last=True)
    found = sweep.decisions({})
    assert {found[name].verdict for name in ("real", "late")} == {"regressed"}
    for name in ("never", "chance", "gone"):
        assert found[name].verdict == "inconclusive"
        assert found[name].note == "regressed at first, not when measured again"


def test_a_decision_stands_whatever_comes_later() -> None:
    sweep = SequentialTest({"a": MARGIN, "b": MARGIN}, RULES, plan_analyses(7))
    sweep.analyse({"a": steady(0.0), "b": steady(0.015)})
    sweep.analyse({"a": steady(0.5, 7), "b": steady(0.015, 7)})
    assert sweep.decisions({"b": steady(0.015, 7)})["a"].verdict == "same"
    assert sweep.next_analysis is None


def test_an_early_end_spends_what_later_looks_would_have() -> None:
    seen = {"a": LogRatio(MARGIN + 5.0, 1.0, 6, 7)}  # p is 0.0012
    early, last = (
        SequentialTest({"a": MARGIN}, DecisionRules(flag_rate=0.002), plan_analyses(20)) for _ in range(2)
    )
    early.analyse(seen)
    last.analyse_last(seen)
    assert (bool(early.flagged), bool(last.flagged)) == (False, True)
    assert last.next_analysis is None
