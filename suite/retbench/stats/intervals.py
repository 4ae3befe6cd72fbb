"""What rounds say: intervals, paired ratios, the crossover, and whether a cost stays level.

The unit is the round. A cell's value in a round is the median of its samples; here the few rounds' values
become an interval by Student's t on their logarithms, and never by pooling samples. One round gives a value
and no interval. Nothing here sees a raw sample, or torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from retbench.errors import ConfigError, RecordError

CONFIDENCE = 0.95
EQUIVALENCE_CONFIDENCE = 0.90
"""Two one-sided tests at 5 % each reject exactly when the 90 % interval lies inside the limits."""

_LARGEST_LOG = math.log(np.finfo(np.float64).max)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """The geometric mean of the rounds' values.

    Attributes:
        value: In the unit of the values.
        low: Lower end; None where there is one round.
        high: Upper end; None where there is one round.
        num_rounds: Values it was made from.
    """

    value: float
    low: float | None
    high: float | None
    num_rounds: int


@dataclass(frozen=True)
class Crossover:
    """The length from which on the first of two models is ahead.

    Attributes:
        kind: "at" where every round crosses within the lengths measured, else "none".
        value: Geometric mean of the rounds' crossing lengths, tokens; None where kind is "none".
        low: Lower end of the 95 % interval. Where kind is "none", a length that the crossover lies above in
            every round, or None where there is no such length.
        high: Upper end of the interval. Where kind is "none", a length that the crossover lies below in every
            round.
        note: What was seen, as a sentence; empty where there is nothing to add to the numbers.
    """

    kind: Literal["at", "none"]
    value: float | None
    low: float | None
    high: float | None
    note: str


@dataclass(frozen=True)
class Equivalence:
    """Whether a cost is the same at every length.

    Attributes:
        ratio: Cost at the last length over that at the first, on the line fitted in each round; geometric
            mean.
        low: Lower end of the 90 % interval; None where there is one round.
        high: Upper end.
        equivalent: True where the interval lies inside 1 ± margin and no length is apart; False where that was
            not shown, which is not to say that they differ; None where one round cannot tell.
        differs: Whether it is shown not to be the same: the interval lies outside 1 ± margin, or a length is apart.
        apart: The length whose cost is farthest from that at the first, where it is shown to differ by more than the
            margin: a line through a hump may be level. None where there is none.
        num_rounds: Rounds it was made from.
    """

    ratio: float
    low: float | None
    high: float | None
    equivalent: bool | None
    differs: bool
    apart: tuple[int, Interval] | None
    num_rounds: int


def geometric_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Geometric mean of the rounds' values with Student's t interval on their logarithms.

    Raises:
        RecordError: no values, or one that is not positive and finite.
        ConfigError: the confidence is not between 0 and 1.
    """
    return _interval(_logs(values, "values"), confidence)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """Geometric mean of the ratios within each round; what a round does to both sides cancels.

    Raises:
        RecordError: the sides have different numbers of rounds, or none, or a value that is not positive and
            finite.
        ConfigError: the confidence is not between 0 and 1.
    """
    if len(numerators) != len(denominators):
        raise RecordError(
            f"{len(numerators)} rounds on one side and {len(denominators)} on the other: ratios are paired by "
            "round. Keep the rounds that both sides have."
        )
    return _interval(_logs(numerators, "numerators") - _logs(denominators, "denominators"), confidence)


def crossover(
    lengths: Sequence[int], ratios_by_round: Sequence[Sequence[float]], confidence: float = CONFIDENCE
) -> Crossover:
    """The length from which on the first model costs less than the second, up to the longest measured.

    In each round the logarithm of the ratio is taken as linear in the logarithm of the length between
    neighbouring lengths. Where it crosses 1 more than once, the last crossing counts, and the note says so. A
    round in which the first model is ahead at every length has its crossover below the range; one in which it
    is not ahead at the longest has it above, or nowhere.

    Args:
        lengths: Tokens, increasing.
        ratios_by_round: Cost of the first model over that of the second (times, bytes: less is better), of
            every round at every length.
        confidence: Of the interval over the rounds' crossings.

    Raises:
        RecordError: lengths do not increase, a round has not one ratio a length, or a ratio is not positive
            and finite.
    """
    log_lengths = _log_lengths(lengths)
    log_ratios = _log_table(log_lengths, ratios_by_round)
    crossings = [_last_crossing(log_lengths, row) for row in log_ratios]
    inside = np.array([crossing for crossing in crossings if math.isfinite(crossing)])
    if len(inside) < len(crossings):
        return _outside(lengths, crossings)
    notes = []
    repeated = sum(_num_crossings(row) > 1 for row in log_ratios)
    if repeated:
        notes.append(
            f"{repeated} of {len(crossings)} rounds cross more than once; the last crossing of each is taken."
        )
    interval = _interval(inside, confidence)
    ends = [end for end in (interval.low, interval.high) if end is not None]
    if not all(lengths[0] <= end <= lengths[-1] for end in ends):
        notes.append("The interval reaches beyond the lengths measured.")
    return Crossover("at", interval.value, interval.low, interval.high, " ".join(notes))


def slope_equivalence(
    lengths: Sequence[int], values_by_round: Sequence[Sequence[float]], margin: float
) -> Equivalence:
    """Whether a cost stays level over length: two one-sided tests on the ratio of last length to first.

    In each round a straight line is fitted to the logarithm of the cost over the logarithm of the length; the
    round's ratio is what the line rises by from the first length to the last. The tests are at 5 % each. A cost is not
    level either where the 95 % interval of any length's ratio to the first lies outside 1 ± margin.

    Args:
        lengths: Tokens, increasing, at least two.
        values_by_round: The cost of every round at every length.
        margin: Half-width of what counts as level: 0.05 for ratios within 0.95 to 1.05.

    Raises:
        RecordError: lengths do not increase, a round has not one value a length, or a value is not positive
            and finite.
        ConfigError: the margin is not between 0 and 1.
    """
    if not 0 < margin < 1:
        raise ConfigError(f"margin is {margin}, which is not between 0 and 1. Give e.g. 0.05 for within 5 %.")
    log_lengths = _log_lengths(lengths)
    if len(log_lengths) < 2:
        raise RecordError(f"one length ({lengths[0]}) has no slope. Measure at two lengths or more.")
    log_values = _log_table(log_lengths, values_by_round)
    centred = log_lengths - log_lengths.mean()
    slopes = log_values @ centred / (centred @ centred)
    rise = _interval(slopes * (log_lengths[-1] - log_lengths[0]), EQUIVALENCE_CONFIDENCE)
    if rise.low is None or rise.high is None:
        return Equivalence(
            rise.value, None, None, None, differs=False, apart=None, num_rounds=rise.num_rounds
        )
    apart = _farthest_outside(lengths, log_values, margin)
    return Equivalence(
        rise.value,
        rise.low,
        rise.high,
        equivalent=1 - margin < rise.low and rise.high < 1 + margin and apart is None,
        differs=_is_outside(rise, margin) or apart is not None,
        apart=apart,
        num_rounds=rise.num_rounds,
    )


def _is_outside(ratio: Interval, margin: float) -> bool:
    """Whether all of an interval lies outside 1 ± margin."""
    if ratio.low is None or ratio.high is None:
        return False
    return ratio.low > 1 + margin or ratio.high < 1 - margin


def _farthest_outside(
    lengths: Sequence[int], log_values: Array, margin: float
) -> tuple[int, Interval] | None:
    """The length whose ratio to the first is farthest from 1, of those whose interval is outside the margin."""
    rises = [_interval(log_values[:, i] - log_values[:, 0], CONFIDENCE) for i in range(1, len(lengths))]
    outside = [
        (length, rise) for length, rise in zip(lengths[1:], rises, strict=True) if _is_outside(rise, margin)
    ]
    return max(outside, key=lambda item: abs(math.log(item[1].value)), default=None)


def _interval(logs: Array, confidence: float) -> Interval:
    """Mean and Student's t interval of logarithms, taken back out of them."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}, which is not between 0 and 1. Give e.g. 0.95.")
    num_rounds = len(logs)
    mean = float(logs.mean())
    if num_rounds == 1:
        return Interval(_exp(mean), None, None, 1)
    error = float(logs.std(ddof=1)) / math.sqrt(num_rounds)
    half = float(stdtrit(num_rounds - 1, (1 + confidence) / 2)) * error
    return Interval(_exp(mean), _exp(mean - half), _exp(mean + half), num_rounds)


def _exp(value: float) -> float:
    """Exponential; infinite where a double cannot hold it (two rounds that differ wildly bound nothing)."""
    return math.exp(value) if value < _LARGEST_LOG else math.inf


def _logs(values: Sequence[float], what: str) -> Array:
    """Logarithms, of positive and finite values only."""
    if len(values) == 0:
        raise RecordError(f"no {what}: there is no round to speak of. Measure at least one.")
    for number, value in enumerate(values):
        if not 0 < value < math.inf:
            raise RecordError(
                f"{what}: number {number} is {value}, and a cost is positive and finite. "
                "Find the record that holds it."
            )
    return np.log(np.asarray(values, dtype=np.float64))


def _log_lengths(lengths: Sequence[int]) -> Array:
    """Logarithms of lengths that increase."""
    logs = _logs(lengths, "lengths")
    if any(later <= earlier for earlier, later in pairwise(lengths)):
        raise RecordError(f"lengths are {list(lengths)}, which do not increase. Sort them, each once.")
    return logs


def _log_table(log_lengths: Array, values_by_round: Sequence[Sequence[float]]) -> Array:
    """Logarithms of every round's values, (rounds, lengths)."""
    if len(values_by_round) == 0:
        raise RecordError("no rounds: there is nothing to compare. Measure at least one.")
    for number, values in enumerate(values_by_round):
        if len(values) != len(log_lengths):
            raise RecordError(
                f"round {number} has {len(values)} values for {len(log_lengths)} lengths. "
                "Keep the lengths that every round has."
            )
    return np.stack([_logs(values, f"round {number}") for number, values in enumerate(values_by_round)])


def _num_crossings(log_ratios: Array) -> int:
    """How often the first model goes ahead or falls back from one length to the next."""
    ahead = log_ratios < 0
    return int((ahead[1:] != ahead[:-1]).sum())


def _last_crossing(log_lengths: Array, log_ratios: Array) -> float:
    """Log of the length from which on a round's ratio stays below 1; -inf below the range, inf above it."""
    behind = np.flatnonzero(log_ratios >= 0)
    if len(behind) == 0:
        return -math.inf
    last = int(behind[-1])
    if last == len(log_ratios) - 1:
        return math.inf
    fraction = log_ratios[last] / (log_ratios[last] - log_ratios[last + 1])
    return float(log_lengths[last] + fraction * (log_lengths[last + 1] - log_lengths[last]))


def _outside(lengths: Sequence[int], crossings: Sequence[float]) -> Crossover:
    """The verdict where some round does not cross within the range: what all rounds agree on."""
    inside = [math.exp(crossing) for crossing in crossings if math.isfinite(crossing)]
    num_below, num_above = crossings.count(-math.inf), crossings.count(math.inf)
    ahead = f"ahead at every length from {lengths[0]:,} to {lengths[-1]:,} tokens"
    behind = f"not ahead at {lengths[-1]:,} tokens"
    if num_below == len(crossings):
        note = f"The first model is {ahead}: the crossover lies below, if there is one."
        return Crossover("none", None, None, float(lengths[0]), note)
    if num_above == len(crossings):
        note = f"The first model is {behind}: the crossover lies above, if there is one."
        return Crossover("none", None, float(lengths[-1]), None, note)
    seen = []
    if inside:
        seen.append(f"{len(inside)} cross between {min(inside):,.0f} and {max(inside):,.0f} tokens")
    if num_below:
        seen.append(f"in {num_below} the first model is {ahead}")
    if num_above:
        seen.append(f"in {num_above} it is {behind}")
    note = f"The {len(crossings)} rounds disagree: {'; '.join(seen)}."
    low = min(inside) if inside and not num_below else None
    high = max(inside) if inside and not num_above else None
    return Crossover("none", None, low, high, note)


def unpaired_ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """Return the ratio of two geometric means with Welch's t interval on the logarithms.

    For sides that were measured in different sessions, whose rounds are not paired.

    Raises:
        RecordError: a side has no rounds, or a value that is not positive and finite.
        ConfigError: the confidence is not between 0 and 1.
    """
    sides = [_logs(numerators, "numerators"), _logs(denominators, "denominators")]
    num_rounds = min(len(side) for side in sides)
    mean = float(sides[0].mean() - sides[1].mean())
    if num_rounds == 1:
        return Interval(_exp(mean), None, None, 1)
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}, which is not between 0 and 1. Give e.g. 0.95.")
    variances = [float(side.var(ddof=1)) / len(side) for side in sides]
    total = sum(variances)
    if total == 0:
        return Interval(_exp(mean), _exp(mean), _exp(mean), num_rounds)
    spread = sum(variance**2 / (len(side) - 1) for variance, side in zip(variances, sides, strict=True))
    half = float(stdtrit(total**2 / spread, (1 + confidence) / 2)) * math.sqrt(total)
    return Interval(_exp(mean), _exp(mean - half), _exp(mean + half), num_rounds)
