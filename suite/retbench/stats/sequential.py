"""When to stop measuring and what to say: a sweep of differences looked at several times, with the error rates kept.

A sweep is looked at after numbers of rounds that are fixed beforehand. What is not decided goes on, and so noise
decides how many rounds are run and never how large the margin is.

Why the rates hold, whatever the noise of the items has in common:

- A look may reject true hypotheses at its share of the rate, and the shares add up to one. Holm's step-down gives an
  item the part of that which its weight is of the weight of all items that are not rejected yet, and until the first
  error that is never less than the weight of the true hypotheses. So the chance of any error at any look is at most the
  rate (the union bound).
- What is flagged counts only when rounds measured anew show it too. These are independent of the first, so that the
  chance of a false alarm in a run is at most `flag_rate * confirm_rate`: 0.5 %.
- An item is called the same at a look where both one-sided tests against the margin reject at that look's share of
  `miss_rate`: a difference of the margin or more is called the same at most that often.

The tests simulate all three.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, Literal, TypeVar

from retbench.errors import ConfigError
from retbench.regress.evidence import Evidence

Key = TypeVar("Key", bound=Hashable)
Verdict = Literal["regressed", "improved", "same", "inconclusive"]
Direction = Literal["regressed", "improved"]

MARGIN = 0.02
"""Slow-downs of so much or less are none that matter."""
FLOOR_S = 10e-6
"""Nor are those of so little time, whatever share of a step that is: timers and launches jitter by microseconds."""

FIRST_LOOKS = (5, 7, 10, 14, 20, 28, 40, 56, 80)
"""Rounds after which a sweep is looked at, each about the square root of 2 times those before."""
LAST_SHARE = 0.5
"""Of the rate, what the last look may spend; those before it share the rest equally."""
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Rules:
    """What counts as a difference and how often one may be wrong about it.

    Attributes:
        margin: Share that a time must be shown to have moved by.
        floor_s: Seconds that it must be shown to have moved by as well.
        flag_rate: Chance that anything in a sweep is flagged that has not moved beyond the margin, for each direction.
        miss_rate: Chance that an item which has moved by the margin or more is called the same.
        confirm_rate: Chance that what was flagged wrongly is confirmed; None where nothing can be measured again.

    Raises:
        ConfigError: a share is not between 0 and 1, or the floor is negative.
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
        """The log-ratio that a time of `seconds` must be shown to exceed."""
        return math.log1p(max(self.margin, self.floor_s / seconds))


WITHOUT_REPEAT = Rules(flag_rate=0.01, confirm_rate=None)
"""For records that are there already: nothing can be measured again, so the first look has to be as sure."""


@dataclass(frozen=True)
class Look:
    """A time at which a sweep is judged.

    Attributes:
        rounds: After so many rounds.
        share: Of the rates, what it may spend.
    """

    rounds: int
    share: float


def plan_looks(max_rounds: int) -> tuple[Look, ...]:
    """The looks at a sweep of at most so many rounds; the last is at its end.

    Raises:
        ConfigError: so few rounds that an interval would say nothing.
    """
    if max_rounds < MIN_ROUNDS:
        raise ConfigError(f"{max_rounds} rounds are too few for an interval. Give {MIN_ROUNDS} or more.")
    early = list(takewhile(lambda rounds: rounds < max_rounds, FIRST_LOOKS))
    if not early:
        return (Look(max_rounds, 1.0),)
    share = (1 - LAST_SHARE) / len(early)
    return (*(Look(rounds, share) for rounds in early), Look(max_rounds, LAST_SHARE))


def single_look(num_rounds: int) -> tuple[Look, ...]:
    """The only look at rounds that are there already."""
    return (Look(num_rounds, 1.0),)


@dataclass(frozen=True)
class Decision:
    """What is said of one item.

    Attributes:
        verdict: The verdict.
        evidence: What it rests on; None where the item has no round on both sides.
        margin: The log-ratio that counts as moved.
        detectable: Of an inconclusive item the least slow-down, as a share, that would have been found; else None.
        note: What else there is to say of it; empty where nothing.
    """

    verdict: Verdict
    evidence: Evidence | None
    margin: float
    detectable: float | None = None
    note: str = ""


class Sweep(Generic[Key]):
    """Items judged at every look until each is decided.

    Args:
        margins: The log-ratio that counts as moved, of every item.
        rules: The error rates.
        looks: As planned.
        weights: How the rate of flags is shared out among the items; alike where not given.
    """

    def __init__(
        self,
        margins: Mapping[Key, float],
        rules: Rules,
        looks: Sequence[Look],
        weights: Mapping[Key, int] | None = None,
    ) -> None:
        self._margins = dict(margins)
        self._weights = dict(weights or dict.fromkeys(margins, 1))
        self._rules = rules
        self._looks = tuple(looks)
        self._next = 0
        self._decided: dict[Key, Decision] = {}

    @property
    def next_look(self) -> Look | None:
        """The look that comes next; None after the last, or where everything is decided."""
        return self._looks[self._next] if self.undecided and self._next < len(self._looks) else None

    @property
    def undecided(self) -> frozenset[Key]:
        """Items that want more rounds."""
        return frozenset(self._margins.keys() - self._decided.keys())

    @property
    def flagged(self) -> dict[Key, Direction]:
        """Items shown to have moved, with the direction."""
        found: dict[Key, Direction] = {}
        for key, decision in self._decided.items():
            if decision.verdict == "regressed" or decision.verdict == "improved":
                found[key] = decision.verdict
        return found

    def look(self, evidence: Mapping[Key, Evidence]) -> None:
        """Judge what is not decided yet by the evidence of all rounds so far; once for every look."""
        self._judge(evidence, self._looks[self._next].share)
        self._next += 1

    def look_last(self, evidence: Mapping[Key, Evidence]) -> None:
        """Judge at an end that the numbers had no part in: what the looks to come would have spent is spent now."""
        self._judge(evidence, sum(look.share for look in self._looks[self._next :]))
        self._next = len(self._looks)

    def _judge(self, evidence: Mapping[Key, Evidence], share: float) -> None:
        """Flag what has moved and settle what is the same."""
        open_items = {
            key: evidence[key] for key in self._margins if key in evidence and key in self.undecided
        }
        for direction in ("regressed", "improved"):
            left = sum(
                weight
                for key, weight in self._weights.items()
                if key not in self._decided or self._decided[key].verdict != direction
            )
            p_values = {
                key: self._p_value(key, item, direction)
                for key, item in open_items.items()
                if key not in self._decided
            }
            for key in reject(p_values, self._rules.flag_rate * share, self._weights, left):
                self._decided[key] = Decision(direction, open_items[key], self._margins[key])
        for key, item in open_items.items():
            if key not in self._decided and is_same(item, self._margins[key], self._rules.miss_rate * share):
                self._decided[key] = Decision("same", item, self._margins[key])

    def rounds_of(self, key: Key) -> int:
        """Rounds that the decision on an item rests on."""
        evidence = self._decided[key].evidence
        return evidence.num_rounds if evidence else 0

    def confirm(self, evidence: Mapping[Key, Evidence]) -> None:
        """Keep of what is flagged only what rounds measured anew show as well; the rest is inconclusive."""
        rate = self._rules.confirm_rate
        if rate is None:
            raise AssertionError("these rules have nothing measured again")
        for direction in ("regressed", "improved"):
            keys = [key for key, found in self.flagged.items() if found == direction]
            fresh = {
                key: self._p_value(key, evidence[key], direction) if key in evidence else 1.0 for key in keys
            }
            confirmed = reject(fresh, rate, self._weights, sum(self._weights[key] for key in fresh))
            for key in fresh.keys() - confirmed:
                self._decided[key] = self._unconfirmed(key, direction)

    def decisions(self, evidence: Mapping[Key, Evidence]) -> dict[Key, Decision]:
        """What is said of every item in the end, in the order given; `evidence` is of all rounds of the sweep."""
        level = self._rules.flag_rate * self._looks[-1].share / max(1, sum(self._weights.values()))
        found: dict[Key, Decision] = {}
        for key, margin in self._margins.items():
            if key in self._decided:
                found[key] = self._decided[key]
            else:
                item = evidence.get(key)
                detectable = item.detectable(margin, level * self._weights[key]) if item else None
                found[key] = Decision("inconclusive", item, margin, detectable)
        return found

    def _p_value(self, key: Key, evidence: Evidence, direction: str) -> float:
        """Against "it has not moved beyond the margin in this direction"."""
        seen = evidence if direction == "regressed" else evidence.mirrored()
        return seen.p_above(self._margins[key])

    def _unconfirmed(self, key: Key, direction: str) -> Decision:
        """The decision on an item that was flagged and not found again."""
        before = self._decided[key]
        return Decision(
            "inconclusive",
            before.evidence,
            before.margin,
            None,
            f"{direction} at first, not when measured again",
        )


def reject(p_values: Mapping[Key, float], rate: float, weights: Mapping[Key, int], left: int) -> list[Key]:
    """Holm's step-down with weights: the hypotheses rejected with the chance of any error at most `rate`.

    Args:
        p_values: Of those that are tested.
        rate: Family-wise.
        weights: Of those that are tested, or more.
        left: Weight of the whole family less that of those rejected before.
    """
    rejected: list[Key] = []
    for key, p_value in sorted(p_values.items(), key=lambda item: item[1] / weights[item[0]]):
        if p_value > rate * weights[key] / left:
            break
        rejected.append(key)
        left -= weights[key]
    return rejected


def is_same(evidence: Evidence, margin: float, level: float) -> bool:
    """Whether both one-sided tests show that the log-ratio lies within the margin."""
    return evidence.p_below(margin) <= level and evidence.p_above(-margin) <= level
