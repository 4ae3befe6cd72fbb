"""What a number of rounds says of one difference: an estimate, its standard error, and Student's t around it.

Everything is the logarithm of a ratio, the second side over the first: above 0 the second is slower. However the sides
were measured, paired within rounds, in sittings of their own, or one run against those before it, what is left is an
`Evidence`, and one set of tests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from retbench.errors import RecordError
from retbench.stats.intervals import CONFIDENCE, Interval

POWER = 0.8
"""A difference counts as one that would have been found where it is found this often."""

_LARGEST_LOG = math.log(np.finfo(np.float64).max)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """What was seen of one log-ratio.

    Attributes:
        estimate: Mean log-ratio.
        error: Its standard error; 0 where every round gave the same.
        degrees: Degrees of freedom of the error; 0 where one round has none.
        num_rounds: Rounds it was made from, of the side that has fewer.
    """

    estimate: float
    error: float
    degrees: float
    num_rounds: int

    def p_above(self, margin: float) -> float:
        """One-sided p-value against "the log-ratio is `margin` or less"; 1 where one round cannot tell."""
        if self.degrees <= 0:
            return 1.0
        if self.error == 0:
            return 0.0 if self.estimate > margin else 1.0
        return float(stdtr(self.degrees, (margin - self.estimate) / self.error))

    def p_below(self, margin: float) -> float:
        """One-sided p-value against "the log-ratio is `margin` or more"."""
        return self.mirrored().p_above(-margin)

    def mirrored(self) -> "Evidence":
        """The same with the sides exchanged."""
        return Evidence(-self.estimate, self.error, self.degrees, self.num_rounds)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """The ratio with its two-sided interval; ends are None where one round has none."""
        if self.degrees <= 0:
            return Interval(math.exp(self.estimate), None, None, self.num_rounds)
        half = float(stdtrit(self.degrees, (1 + confidence) / 2)) * self.error
        low, high = self.estimate - half, self.estimate + half
        return Interval(math.exp(self.estimate), _exp(low), _exp(high), self.num_rounds)

    def detectable(self, margin: float, level: float) -> float | None:
        """The least slow-down, as a share, that so much evidence would show to exceed `margin` in 80 % of such runs.

        Args:
            margin: The log-ratio that it must be shown to exceed.
            level: Of the one-sided test.

        Returns:
            0.05 for 5 %; None where one round shows nothing.
        """
        if self.degrees <= 0:
            return None
        spread = stdtrit(self.degrees, 1 - level) + stdtrit(self.degrees, POWER)
        return _exp(margin + float(spread) * self.error) - 1


def paired(logs: Sequence[float]) -> Evidence:
    """Of log-ratios taken within rounds, in which both sides were measured one right after the other.

    Raises:
        RecordError: there are none, or one is not finite.
    """
    values = _finite(logs)
    return Evidence(float(values.mean()), _standard_error(values), len(values) - 1.0, len(values))


def unpaired(first: Sequence[float], second: Sequence[float]) -> Evidence:
    """Of logarithms of rounds that share nothing with those of the other side: Welch's t.

    Raises:
        RecordError: a side has none, or one that is not finite.
    """
    sides = _finite(first), _finite(second)
    estimate = float(sides[1].mean() - sides[0].mean())
    counts = [len(side) for side in sides]
    if min(counts) < 2:
        return Evidence(estimate, 0.0, 0.0, min(counts))
    squares = [_standard_error(side) ** 2 for side in sides]
    total = sum(squares)
    if total == 0:
        return Evidence(estimate, 0.0, sum(counts) - 2.0, min(counts))
    weights = [square**2 / (count - 1) for square, count in zip(squares, counts, strict=True)]
    return Evidence(estimate, math.sqrt(total), total**2 / sum(weights), min(counts))


def against_history(history: Sequence[float], value: float) -> Evidence:
    """Of one more run against those before it: the error is that of predicting a run, not of their mean.

    Args:
        history: Logarithm of each earlier run's value; what differs from sitting to sitting is in their spread.
        value: Logarithm of the new run's.

    Raises:
        RecordError: there is no earlier run, or a value is not finite.
    """
    earlier, (new,) = _finite(history), _finite([value])
    count = len(earlier)
    spread = float(earlier.std(ddof=1)) if count > 1 else 0.0
    return Evidence(float(new - earlier.mean()), spread * math.sqrt(1 + 1 / count), count - 1.0, count)


def _finite(logs: Sequence[float]) -> Array:
    """The values, of which there is one at least and each is finite."""
    values = np.asarray(logs, dtype=np.float64)
    if len(values) == 0:
        raise RecordError("no rounds: there is nothing to compare. Measure at least one on each side.")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise RecordError(
            f"round number {wrong[0]} gives {values[wrong[0]]}, which is not finite. Find the record that holds it."
        )
    return values


def _standard_error(values: Array) -> float:
    """Of the mean; exactly 0 for values that are all the same, whatever rounding makes of their mean."""
    if len(values) < 2 or values.min() == values.max():
        return 0.0
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _exp(value: float) -> float:
    """Exponential; infinite where a double cannot hold it."""
    return math.exp(value) if value < _LARGEST_LOG else math.inf
