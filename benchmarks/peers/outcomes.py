"""Result of a bar: one JSON line with both sides, their ratio, its interval and the limit."""

import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from torch import Tensor

from retbench.stats.intervals import ratio_interval

CONFIDENCE = 0.90
FP32_LIMIT = 1e-4
"""Largest error between two fp32 implementations of one model."""


@dataclass(frozen=True)
class Limit:
    """The closed range that a bar's whole interval must lie in."""

    low: float | None = None
    high: float | None = None

    def holds(self, low: float, high: float) -> bool:
        """Return whether the interval [low, high] lies inside; false for a NaN."""
        above = self.low is None or low >= self.low
        below = self.high is None or high <= self.high
        return above and below and low <= high


@dataclass(frozen=True)
class Outcome:
    """One line of output.

    Attributes:
        bar: Name of the bar, followed by the topic of this line if the bar has several.
        ours: Seconds of a step or call, or the quantity in `note`; for an error, the largest absolute difference.
        theirs: The same quantity of the peer; for an error, the root mean square of the reference.
        ratio: ours / theirs, or the quantity in `bar`.
        low: Lower end of its 90 % interval over rounds; the ratio itself if nothing is random.
        high: Upper end.
        limit: Range in which the interval must lie.
        note: A remark; left out of the line if empty.
    """

    bar: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    limit: Limit
    note: str = ""

    @property
    def holds(self) -> bool:
        """True if the interval lies within the limit."""
        return self.limit.holds(self.low, self.high)

    def to_json(self) -> str:
        """Return the line; `limit` is a number if only the upper end is limited, else [low, high]."""
        limit = self.limit.high if self.limit.low is None else [self.limit.low, self.limit.high]
        return json.dumps(
            {
                "bar": self.bar,
                "ours": self.ours,
                "theirs": self.theirs,
                "ratio": self.ratio,
                "low": self.low,
                "high": self.high,
                "limit": limit,
                "holds": self.holds,
                **({"note": self.note} if self.note else {}),
            }
        )


def error_outcome(bar: str, ours: Tensor, reference: Tensor, limit: float) -> Outcome:
    """Return the largest absolute difference over the root mean square of the reference, both in float64.

    Raises:
        ValueError: the shapes differ.
    """
    if ours.shape != reference.shape:
        raise ValueError(f"{bar}: shapes differ: {tuple(ours.shape)} and {tuple(reference.shape)}")
    difference = (ours.double() - reference.double()).abs().max().item()
    scale = reference.double().pow(2).mean().sqrt().item()
    error = difference / scale
    return Outcome(bar, difference, scale, error, error, error, Limit(high=limit))


def prove(proofs: Iterable[Outcome]) -> Generator[Outcome, None, bool]:
    """Yield proofs of equality up to the first that fails; return whether all hold, so that sides may be timed."""
    for proof in proofs:
        yield proof
        if not proof.holds:
            return False
    return True


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome with the largest ratio; a NaN is worse than any number."""
    return max(outcomes, key=lambda outcome: (outcome.ratio != outcome.ratio, outcome.ratio))


def speed_outcome(
    bar: str, ours: Sequence[float], theirs: Sequence[float], limit: Limit, note: str = ""
) -> Outcome:
    """Return the ratio of two sides paired by round; `ours` and `theirs` are geometric means over rounds.

    Raises:
        ValueError: there is only one round, which gives no interval.
    """
    interval = ratio_interval(ours, theirs, CONFIDENCE)
    if interval.low is None or interval.high is None:
        raise ValueError(f"{bar}: one round has no interval; measure at least two")
    sides = geometric_mean(ours), geometric_mean(theirs)
    return Outcome(bar, *sides, interval.value, interval.low, interval.high, limit, note)
