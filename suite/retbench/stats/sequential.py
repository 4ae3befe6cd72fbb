"""Sequential tests: when to stop measuring and what to conclude, with the error rates kept.

Interim analyses take place after numbers of rounds that are fixed beforehand. Undecided items are measured further:
noise determines the number of rounds, never the size of the margin.

Why the rates hold, however the noise of the items is correlated:

- An analysis may reject true hypotheses at its share of the rate, and the shares add up to one. Holm's step-down gives
  an item the part of that share which its weight is of the weight of all items that are not rejected yet. Until the
  first error that weight is never less than the weight of the true hypotheses. So the probability of any error at any
  analysis is at most the rate (the union bound).
- A flagged item counts only when rounds measured anew confirm it. These are independent of the first, so that the
  probability of a false alarm in a run is at most `flag_rate * confirm_rate`: 0.5 %. The tests of the new rounds share
  `confirm_rate`. That holds whether all flags are confirmed at the end or those of each analysis at once: what is not
  confirmed is among those left again.
- An item is called the same where both one-sided tests against the margin reject at the analysis's share of
  `miss_rate`. A difference of the margin or more is called the same at most that often.

The tests simulate all three.
"""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, Literal, TypeVar

from retbench.errors import ConfigError
from retbench.stats.intervals import LogRatio

Key = TypeVar("Key", bound=Hashable)
Verdict = Literal["regressed", "improved", "same", "inconclusive"]
Direction = Literal["regressed", "improved"]

MARGIN = 0.02
"""Slow-downs up to this share do not matter."""
FLOOR_S = 10e-6
"""Slow-downs up to this time do not matter either: timers and launches jitter by microseconds."""

FIRST_ANALYSES = (5, 7, 10, 14, 20, 28, 40, 56, 80, 113, 160, 226, 320, 452, 640, 905)
"""Rounds after which an interim analysis takes place, each about the square root of 2 times those before."""
MAX_ROUNDS = 1000
LAST_SHARE = 0.5
"""Share of the rate that the last analysis may spend; those before it divide the rest equally."""
MIN_ROUNDS = 3
CONFIRMATIONS = (1, 3, 9)
"""Multiples of the rounds behind a flag after which rounds measured anew are tested; the tests share the rate equally.

What is flagged early is what chance made large, so that as many new rounds often show less and cannot confirm it. Of
simulated slow-downs of 4.5 % whose rounds scatter by 3.9 %, two tests find 94 % within 40 rounds, and three 96 %.
"""
MAX_CONFIRMATION = 3
"""Most rounds measured anew, as a multiple of the limit of rounds."""


@dataclass(frozen=True)
class DecisionRules:
    """Margins and error rates.

    Attributes:
        margin: Share by which a time must be shown to have moved.
        floor_s: Seconds by which it must be shown to have moved as well.
        flag_rate: Probability that anything in a run is flagged that has not moved beyond the margin, per direction.
        miss_rate: Probability that an item which has moved by the margin or more is called the same.
        confirm_rate: Probability that a false flag is confirmed; None where nothing can be measured again.
    """

    margin: float = MARGIN
    floor_s: float = FLOOR_S
    flag_rate: float = 0.05
    miss_rate: float = 0.05
    confirm_rate: float | None = 0.10

    def __post_init__(self) -> None:
        shares = {"margin": self.margin, "flag rate": self.flag_rate, "miss rate": self.miss_rate}
        if self.confirm_rate is not None:
            shares["confirm rate"] = self.confirm_rate
        for name, share in shares.items():
            if not 0 < share < 1:
                raise ConfigError(f"the {name} is {share}, which is not between 0 and 1. Give e.g. 0.02.")
        if not 0 <= self.floor_s < math.inf:
            raise ConfigError(f"the floor is {self.floor_s} s. Give 0 or a positive number of seconds.")

    def log_margin(self, seconds: float) -> float:
        """Return the log-ratio that a time of `seconds` must be shown to exceed."""
        return math.log1p(max(self.margin, self.floor_s / seconds))


WITHOUT_REPEAT = DecisionRules(flag_rate=0.01, confirm_rate=None)
"""For existing records: nothing can be measured again, so that one analysis must keep the rate."""


@dataclass(frozen=True)
class InterimAnalysis:
    """A test of all items after a number of rounds, which may spend a share of the error rates."""

    rounds: int
    share: float


def plan_analyses(max_rounds: int) -> tuple[InterimAnalysis, ...]:
    """Return the analyses of a run of at most `max_rounds`; the last is at its end."""
    if max_rounds < MIN_ROUNDS:
        raise ConfigError(f"{max_rounds} rounds are too few for an interval. Give {MIN_ROUNDS} or more.")
    if max_rounds > MAX_ROUNDS:
        raise ConfigError(
            f"{max_rounds:,} rounds are more than any comparison needs. Give at most {MAX_ROUNDS:,}."
        )
    early = list(takewhile(lambda rounds: rounds < max_rounds, FIRST_ANALYSES))
    if not early:
        return (InterimAnalysis(max_rounds, 1.0),)
    share = (1 - LAST_SHARE) / len(early)
    return (*(InterimAnalysis(rounds, share) for rounds in early), InterimAnalysis(max_rounds, LAST_SHARE))


def plan_confirmations(num_rounds: int, max_rounds: int) -> tuple[int, ...]:
    """Return after how many new rounds a flag that took `num_rounds` is tested again."""
    return tuple(min(multiple * num_rounds, MAX_CONFIRMATION * max_rounds) for multiple in CONFIRMATIONS)


@dataclass(frozen=True)
class Decision:
    """The conclusion on one item.

    Attributes:
        change: The estimate behind it; None where no round has the item on both sides.
        margin: The log-ratio that counts as moved.
        detectable: The least slow-down, as a share, that would have been found; None unless inconclusive.
        note: A remark; may be empty.
    """

    verdict: Verdict
    change: LogRatio | None
    margin: float
    detectable: float | None = None
    note: str = ""


class SequentialTest(Generic[Key]):
    """Items that are tested at each interim analysis until all are decided.

    `margins` are the log-ratios that count as moved. `weights` divide the rate of flags, equally by default.
    """

    def __init__(
        self,
        margins: Mapping[Key, float],
        rules: DecisionRules,
        analyses: Sequence[InterimAnalysis],
        weights: Mapping[Key, int] | None = None,
    ) -> None:
        self._margins = dict(margins)
        self._weights = dict(weights or dict.fromkeys(margins, 1))
        self._rules = rules
        self._analyses = tuple(analyses)
        self._next = 0
        self._decided: dict[Key, Decision] = {}

    @property
    def next_analysis(self) -> InterimAnalysis | None:
        """The next analysis; None after the last, or where everything is decided."""
        return self._analyses[self._next] if self.undecided and self._next < len(self._analyses) else None

    @property
    def undecided(self) -> frozenset[Key]:
        """Items that need more rounds."""
        return frozenset(self._margins.keys() - self._decided.keys())

    @property
    def flagged(self) -> dict[Key, Direction]:
        """Items shown to have moved, with the direction."""
        found: dict[Key, Direction] = {}
        for key, decision in self._decided.items():
            if decision.verdict == "regressed" or decision.verdict == "improved":
                found[key] = decision.verdict
        return found

    def analyse(self, changes: Mapping[Key, LogRatio]) -> None:
        """Test the undecided items on all rounds so far; call it once per planned analysis."""
        self._test(changes, self._analyses[self._next].share)
        self._next += 1

    def analyse_last(self, changes: Mapping[Key, LogRatio]) -> None:
        """Test at an end that did not depend on the data: spend the shares of all later analyses now."""
        self._test(changes, sum(analysis.share for analysis in self._analyses[self._next :]))
        self._next = len(self._analyses)

    def _test(self, changes: Mapping[Key, LogRatio], share: float) -> None:
        """Decide which items have moved, and which are the same."""
        tested = {key: changes[key] for key in self._margins if key in changes and key in self.undecided}
        for direction in ("regressed", "improved"):
            left = sum(
                weight
                for key, weight in self._weights.items()
                if key not in self._decided or self._decided[key].verdict != direction
            )
            p_values = {
                key: self._p_value(key, change, direction)
                for key, change in tested.items()
                if key not in self._decided
            }
            for key in reject(p_values, self._rules.flag_rate * share, self._weights, left):
                self._decided[key] = Decision(direction, tested[key], self._margins[key])
        level = self._rules.miss_rate * share
        for key, change in tested.items():
            margin = self._margins[key]
            is_within = change.p_below(margin) <= level and change.p_above(-margin) <= level
            if key not in self._decided and is_within:
                self._decided[key] = Decision("same", change, margin)

    def rounds_of(self, key: Key) -> int:
        """Return the number of rounds behind the decision on an item."""
        change = self._decided[key].change
        return change.num_rounds if change else 0

    def confirm(
        self, changes: Mapping[Key, LogRatio], among: Collection[Key], *, is_last: bool
    ) -> frozenset[Key]:
        """Test the flagged items `among` those given on new rounds; return those that need more of these.

        The others are confirmed, or become inconclusive: at the last test, or if their estimate is below the margin.
        """
        if self._rules.confirm_rate is None:
            raise AssertionError("these rules have nothing measured again")
        rate, open_items = self._rules.confirm_rate / len(CONFIRMATIONS), set[Key]()
        for direction in ("regressed", "improved"):
            keys = [key for key, found in self.flagged.items() if found == direction and key in among]
            p_values = {
                key: self._p_value(key, changes[key], direction) if key in changes else 1.0 for key in keys
            }
            confirmed = reject(p_values, rate, self._weights, sum(self._weights[key] for key in keys))
            note = f"{direction} at first, not when measured again"
            for key in p_values.keys() - confirmed:
                if p_values[key] <= 0.5 and not is_last:
                    open_items.add(key)
                else:
                    before = self._decided[key]
                    self._decided[key] = Decision("inconclusive", before.change, before.margin, note=note)
        return frozenset(open_items)

    def decisions(self, changes: Mapping[Key, LogRatio]) -> dict[Key, Decision]:
        """Return the decision on every item, in the order given; `changes` are those of all rounds."""
        level = self._rules.flag_rate * self._analyses[-1].share / max(1, sum(self._weights.values()))
        found: dict[Key, Decision] = {}
        for key, margin in self._margins.items():
            change = changes.get(key)
            detectable = change.detectable(margin, level * self._weights[key]) if change else None
            undecided = Decision("inconclusive", change, margin, detectable)
            found[key] = self._decided.get(key, undecided)
        return found

    def _p_value(self, key: Key, change: LogRatio, direction: str) -> float:
        """Return the p-value against "it has not moved beyond the margin in this direction"."""
        return (change if direction == "regressed" else change.mirrored()).p_above(self._margins[key])


def reject(p_values: Mapping[Key, float], rate: float, weights: Mapping[Key, int], left: int) -> list[Key]:
    """Return the hypotheses that Holm's weighted step-down rejects at a family-wise error rate.

    `left` is the weight of the whole family without what was rejected before.
    """
    rejected: list[Key] = []
    for key, p_value in sorted(p_values.items(), key=lambda item: item[1] / weights[item[0]]):
        if p_value > rate * weights[key] / left:
            break
        rejected.append(key)
        left -= weights[key]
    return rejected
