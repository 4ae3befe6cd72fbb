"""Statistics over rounds: intervals, paired ratios, the crossover, and whether a cost is constant in length.

The unit is the round. The value of a cell in a round is the median of its samples. Intervals are Student's t on the
logarithms of the rounds' values; samples are never pooled. One round gives a value without an interval. Functions raise
RecordError for values that are missing, not finite or not positive.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from retbench.errors import RecordError

CONFIDENCE = 0.95
EQUIVALENCE_CONFIDENCE = 0.90
"""Two one-sided tests at 5 % each reject exactly when the 90 % interval lies inside the limits."""
POWER = 0.8
"""Probability with which a detectable difference is found."""

_LARGEST_LOG = math.log(np.finfo(np.float64).max)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean of the rounds' values with the ends of its interval, which are None with one round.

    The mean is geometric, except that of `mean_interval`, whose values are those of seeds.
    """

    value: float
    low: float | None
    high: float | None
    num_rounds: int


@dataclass(frozen=True)
class LogRatio:
    """An estimate of a log-ratio, second side over first: above 0 the second side is slower.

    Attributes:
        estimate: Mean log-ratio.
        error: Its standard error; 0 where all rounds are equal.
        degrees: Degrees of freedom of the error; 0 with one round.
        num_rounds: Number of rounds, of the side that has fewer.
    """

    estimate: float
    error: float
    degrees: float
    num_rounds: int

    def p_above(self, margin: float) -> float:
        """Return the one-sided p-value against "the log-ratio is `margin` or less"; 1 with one round."""
        if self.degrees <= 0:
            return 1.0
        if self.error == 0:
            return 0.0 if self.estimate > margin else 1.0
        return float(stdtr(self.degrees, (margin - self.estimate) / self.error))

    def p_below(self, margin: float) -> float:
        """Return the one-sided p-value against "the log-ratio is `margin` or more"."""
        return self.mirrored().p_above(-margin)

    def mirrored(self) -> "LogRatio":
        """Return the same with the sides exchanged."""
        return LogRatio(-self.estimate, self.error, self.degrees, self.num_rounds)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return the ratio with its two-sided interval, which has no ends with one round."""
        return _students_interval(self, confidence, _exp)

    def detectable(self, margin: float, level: float) -> float | None:
        """Return the least slow-down, as a share, that a test at `level` shows to exceed `margin` in 80 % of runs."""
        if self.degrees <= 0:
            return None
        spread = stdtrit(self.degrees, 1 - level) + stdtrit(self.degrees, POWER)
        return _exp(margin + float(spread) * self.error) - 1


def paired(logs: npt.ArrayLike) -> LogRatio:
    """Estimate a log-ratio from rounds in which both sides were measured one right after the other."""
    values = _finite_logs(logs)
    return LogRatio(float(values.mean()), _standard_error(values), len(values) - 1.0, len(values))


def unpaired(first: npt.ArrayLike, second: npt.ArrayLike) -> LogRatio:
    """Estimate a log-ratio from the logarithms of independent rounds, by Welch's t."""
    sides = _finite_logs(first), _finite_logs(second)
    estimate = float(sides[1].mean() - sides[0].mean())
    counts = [len(side) for side in sides]
    if min(counts) < 2:
        return LogRatio(estimate, 0.0, 0.0, min(counts))
    squares = [_standard_error(side) ** 2 for side in sides]
    total = sum(squares)
    if total == 0:
        return LogRatio(estimate, 0.0, sum(counts) - 2.0, min(counts))
    weights = [square**2 / (count - 1) for square, count in zip(squares, counts, strict=True)]
    return LogRatio(estimate, math.sqrt(total), total**2 / sum(weights), min(counts))


def predicted_from(history: Sequence[float], value: float) -> LogRatio:
    """Estimate by how much the logarithm of a new run differs from those of earlier runs.

    The error is that of predicting a run, so that the spread between measurement sessions is in it.
    """
    earlier, (new,) = _finite_logs(history), _finite_logs([value])
    count = len(earlier)
    spread = float(earlier.std(ddof=1)) if count > 1 else 0.0
    return LogRatio(float(new - earlier.mean()), spread * math.sqrt(1 + 1 / count), count - 1.0, count)


def _standard_error(values: Array) -> float:
    """Return the standard error of the mean; exactly 0 for equal values, whose mean may be rounded."""
    if len(values) < 2 or values.min() == values.max():
        return 0.0
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def finite_array(values: npt.ArrayLike, unit: str) -> Array:
    """Return values as an array; RecordError with the `unit` and number of one that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise RecordError(
            f"{unit} number {wrong[0]} is {array[wrong[0]]}, which is not finite. Find the record that holds it."
        )
    return array


def _finite_logs(logs: npt.ArrayLike) -> Array:
    array = finite_array(logs, "round")
    if len(array) == 0:
        raise RecordError("no rounds: there is nothing to compare. Measure at least one on each side.")
    return array


def _exp(value: float) -> float:
    """Return the exponential; infinity where a double cannot hold it."""
    return math.exp(value) if value < _LARGEST_LOG else math.inf


def geometric_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the geometric mean of the rounds' values with Student's t interval on their logarithms."""
    return paired(_logs(values, "values")).interval(confidence)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of the values with Student's t interval, which has no ends for a single value."""
    return _students_interval(paired(values), CONFIDENCE, float)


def _students_interval(found: LogRatio, confidence: float, scale: Callable[[float], float]) -> Interval:
    """Return an estimate with Student's t interval, each as `scale` shows it; without ends for a single round."""
    if found.degrees <= 0:
        return Interval(scale(found.estimate), None, None, found.num_rounds)
    half = float(stdtrit(found.degrees, (1 + confidence) / 2)) * found.error
    low, high = scale(found.estimate - half), scale(found.estimate + half)
    return Interval(scale(found.estimate), low, high, found.num_rounds)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """Return the geometric mean of the ratios within each round, with Student's t interval on their logarithms."""
    if len(numerators) != len(denominators):
        raise RecordError(
            f"{len(numerators)} rounds on one side and {len(denominators)} on the other: ratios are paired by "
            "round. Keep the rounds that both sides have."
        )
    return paired(_logs(numerators, "numerators") - _logs(denominators, "denominators")).interval(confidence)


def unpaired_ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Return the ratio of the geometric means of independent rounds, with Welch's t interval on the logarithms."""
    return unpaired(_logs(denominators, "denominators"), _logs(numerators, "numerators")).interval()


def _logs(values: npt.ArrayLike, name: str) -> Array:
    """Return logarithms, of positive and finite values only."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise RecordError(f"no {name}: there are no rounds. Measure at least one.")
    wrong = array[~((array > 0) & (array < math.inf))]
    if wrong.size:
        raise RecordError(
            f"one of the {name} is {wrong[0]}, and a cost is positive and finite. Find the record that holds it."
        )
    return np.log(array)


@dataclass(frozen=True)
class Crossover:
    """The length beyond which the first of two models costs less.

    Attributes:
        kind: "at" where every round crosses within the measured lengths, else "none".
        value: Geometric mean of the rounds' crossing lengths, tokens; None where kind is "none".
        low: Lower end of the 95 % interval. Where kind is "none", a length that the crossover exceeds in every
            round, or None.
        high: Upper end of the interval. Where kind is "none", a length that the crossover stays below in every
            round, or None.
        note: A sentence that adds to the numbers; may be empty.
    """

    kind: Literal["at", "none"]
    value: float | None
    low: float | None
    high: float | None
    note: str


def crossover(lengths: Sequence[int], ratios_by_round: Sequence[Sequence[float]]) -> Crossover:
    """Find the length beyond which the first model costs less than the second, up to the longest measured.

    In each round the logarithm of the ratio is linear in the logarithm of the length between neighbouring lengths.
    Of several crossings the last counts, and the note says so. A round in which the first model is ahead at every
    length has its crossover below the range. A round in which it is not ahead at the longest has it above, or nowhere.

    The lengths increase. `ratios_by_round` holds the cost of the first model over that of the second, per round and
    length.
    """
    log_lengths, log_ratios = _logs(lengths, "lengths"), _logs(ratios_by_round, "ratios")
    crossings = [_last_crossing(log_lengths, row) for row in log_ratios]
    if not np.isfinite(crossings).all():
        return _crossover_outside(lengths, crossings)
    notes = []
    if repeated := sum(_num_crossings(row) > 1 for row in log_ratios):
        notes.append(
            f"{repeated} of {len(crossings)} rounds cross more than once; the last crossing of each is taken."
        )
    interval = paired(crossings).interval()
    ends = [end for end in (interval.low, interval.high) if end is not None]
    if not all(lengths[0] <= end <= lengths[-1] for end in ends):
        notes.append("The interval reaches beyond the lengths measured.")
    return Crossover("at", interval.value, interval.low, interval.high, " ".join(notes))


def _num_crossings(log_ratios: Array) -> int:
    ahead = log_ratios < 0
    return int((ahead[1:] != ahead[:-1]).sum())


def _last_crossing(log_lengths: Array, log_ratios: Array) -> float:
    """Return the log-length beyond which a ratio stays below 1; -inf below the range, inf above it."""
    behind = np.flatnonzero(log_ratios >= 0)
    if len(behind) == 0:
        return -math.inf
    last = int(behind[-1])
    if last == len(log_ratios) - 1:
        return math.inf
    fraction = log_ratios[last] / (log_ratios[last] - log_ratios[last + 1])
    return float(log_lengths[last] + fraction * (log_lengths[last + 1] - log_lengths[last]))


def _crossover_outside(lengths: Sequence[int], crossings: Sequence[float]) -> Crossover:
    """Return what all rounds agree on where some round does not cross within the range; the note if they disagree."""
    inside = [math.exp(crossing) for crossing in crossings if math.isfinite(crossing)]
    num_below, num_above = crossings.count(-math.inf), crossings.count(math.inf)
    low = None if num_below else min([*inside, float(lengths[-1])])
    high = None if num_above else max([*inside, float(lengths[0])])
    if len(crossings) in (num_below, num_above):
        return Crossover("none", None, low, high, "")
    seen = []
    if inside:
        where = f"between {min(inside):,.0f} and {max(inside):,.0f}"
        seen.append(
            f"{len(inside)} cross {where} tokens" if inside[1:] else f"1 crosses at {inside[0]:,.0f} tokens"
        )
    if num_below:
        ahead = f"ahead at every length from {lengths[0]:,} to {lengths[-1]:,} tokens"
        seen.append(f"in {num_below} the first model is {ahead}")
    if num_above:
        seen.append(f"in {num_above} it is not ahead at {lengths[-1]:,} tokens")
    return Crossover("none", None, low, high, f"The {len(crossings)} rounds disagree: {'; '.join(seen)}.")


@dataclass(frozen=True)
class Equivalence:
    """Result of testing whether a cost is constant in the context length.

    Attributes:
        ratio: Cost at the last length over that at the first, on the line fitted in each round; geometric mean.
        low: Lower end of the 90 % interval; None with one round.
        high: Upper end.
        equivalent: True where the interval lies inside 1 ± margin and no length is apart; False where that was not
            shown, which does not mean that the costs differ; None with one round.
        differs: The cost is shown not to be constant: the interval lies outside 1 ± margin, or a length is apart.
        apart: Of the lengths shown to differ from the first by more than the margin, the farthest one with its ratio.
            A line through a hump may be horizontal. None where no length differs.
        measured: Cost at the last length over that at the first as they were measured, with its 95 % interval.
        num_rounds: Number of rounds.
    """

    ratio: float
    low: float | None
    high: float | None
    equivalent: bool | None
    differs: bool
    apart: tuple[int, Interval] | None
    measured: Interval
    num_rounds: int


def slope_equivalence(
    lengths: Sequence[int], values_by_round: Sequence[Sequence[float]], margin: float
) -> Equivalence:
    """Test whether a cost is constant in the length: two one-sided tests on the ratio of the last length to the first.

    In each round a line is fitted to the logarithm of the cost over the logarithm of the length. The round's ratio is
    the rise of the line from the first length to the last. The tests are at 5 % each. A cost is not constant either
    where the interval of any length's ratio to the first lies outside 1 ± margin; all of them together are of 95 %. The
    lengths increase.
    """
    log_lengths, log_values = _logs(lengths, "lengths"), _logs(values_by_round, "values")
    centred = log_lengths - log_lengths.mean()
    slopes = log_values @ centred / (centred @ centred)
    rise = paired(slopes * (log_lengths[-1] - log_lengths[0])).interval(EQUIVALENCE_CONFIDENCE)
    apart = _farthest_outside(lengths, log_values, margin)
    is_inside = None
    if rise.low is not None and rise.high is not None:
        is_inside = 1 - margin < rise.low and rise.high < 1 + margin and apart is None
    differs = _is_outside(rise, margin) or apart is not None
    measured = paired(log_values[:, -1] - log_values[:, 0]).interval()
    return Equivalence(rise.value, rise.low, rise.high, is_inside, differs, apart, measured, rise.num_rounds)


def _is_outside(ratio: Interval, margin: float) -> bool:
    """Return whether all of an interval lies outside 1 ± margin."""
    if ratio.low is None or ratio.high is None:
        return False
    return ratio.low > 1 + margin or ratio.high < 1 - margin


def _farthest_outside(
    lengths: Sequence[int], log_values: Array, margin: float
) -> tuple[int, Interval] | None:
    """Return the length whose ratio to the first is farthest from 1, of those with an interval outside the margin.

    As many intervals as there are further lengths have one confidence together (Bonferroni).
    """
    first, *others = log_values.T
    confidence = 1 - (1 - CONFIDENCE) / len(others)
    rises = [paired(column - first).interval(confidence) for column in others]
    outside = [item for item in zip(lengths[1:], rises, strict=True) if _is_outside(item[1], margin)]
    return max(outside, key=lambda item: abs(math.log(item[1].value)), default=None)
