"""Advantages in words: a ratio of two costs, in the direction in which it is an advantage or a disadvantage.

Ratios of 1.2 and more are factors ("7.63× faster"), smaller ones percentages ("12 % slower") unless an end of their
interval is a factor of 2 or more. Of a time both are of speed where it is shorter: 1.25 times as fast is 25 % faster.
Of memory a percentage is a share of the reference's.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import pandas as pd

from retbench.report.wording import format_factor
from retbench.units import format_tokens
from retbench.workloads.workload import MetricSpec

Outcome = Literal["better", "worse", "equal"]

_LEAST_FACTOR = 1.2
"""Ratios below this one are percentages."""
_LEAST_PERCENT = 0.01
"""Smaller percentages are only said to be smaller: bytes are counted, so that a few of them can differ."""
_FACTOR_OF_ENDS = 2.0
"""An end of an interval from which on it and its ratio are factors."""
_OPPOSITES = {
    "faster": "slower",
    "better": "worse",
    "smaller": "larger",
    "less": "more",
    "fewer": "more",
    "more": "less",
    "more sequences": "fewer sequences",
}
_SUPERLATIVES = {
    "faster": "fastest",
    "better": "best",
    "smaller": "smallest",
    "less": "least",
    "more": "most",
}


class Advantage(NamedTuple):
    """A model compared with the reference at one point.

    Attributes:
        size: Ratio in words, as the model's: "7.63× faster", "12 % slower", "no difference".
        interval: "95 % CI [6.94, 8.39]"; empty where there is none, or where both ends are written as the value is.
        outcome: Whether the model is better or worse, or not significantly different. Without an interval the value
            decides.
        verb: "is", "needs" or "reaches", before the size.
        unpaired: Whether the models were measured in different sessions.
        is_lone: Whether one round alone has a value of a metric that varies between rounds.
    """

    size: str
    interval: str
    outcome: Outcome
    verb: str
    unpaired: bool
    is_lone: bool = False

    @property
    def lead(self) -> str:
        """The size; of two models that are not significantly different, that they are not."""
        if self.outcome == "equal" and self.interval:
            return "no significant difference"
        return self.size

    @property
    def notes(self) -> list[str]:
        """Interval, and what has to be said of it."""
        unclear = "not significantly different" if self.interval and self.outcome == "equal" else ""
        unpaired = "unpaired: the models were measured in different sessions" if self.unpaired else ""
        lone = "one round, no interval" if self.is_lone else ""
        return [note for note in (self.interval, unclear, unpaired, lone) if note]

    def clause(self, label: str, other: str) -> str:
        """Return the comparison as a clause: 'RetNet is 7.63× faster (95 % CI [6.94, 8.39])'.

        Args:
            label: The model, as `Lineup.named` names it.
            other: The reference likewise: 'the Transformer'.
        """
        if self.size == _EQUAL:
            return f"{label} and {other} are equal"
        notes = f" ({', '.join(self.notes)})" if self.notes else ""
        return f"{label} {self.verb} {self.size}{notes}"


_EQUAL = "no difference"


def advantage(metric: MetricSpec, ratio: pd.Series) -> Advantage:
    """Return a ratio to the reference as an advantage of the model.

    Args:
        metric: The metric compared.
        ratio: ratio, low, high and unpaired, as in `comparisons.CostRatio`.
    """
    value, low, high = (float(ratio[name]) for name in ("ratio", "low", "high"))
    has_interval, unpaired = not math.isnan(low), bool(ratio["unpaired"])
    if value == 1 and not (has_interval and low < high):
        return Advantage(_EQUAL, "", "equal", "", unpaired)
    widest = max(high, _inverse(low)) if has_interval else 1.0
    as_factor = _is_factor(value) or widest >= _FACTOR_OF_ENDS
    is_better = (value < 1) == bool(metric.lower_is_better)
    outcome: Outcome = "better" if is_better else "worse"
    interval = ""
    if has_interval:
        outcome = "equal" if low <= 1 <= high else outcome
        written = {_number(_of_speed(metric, end), as_factor=as_factor) for end in (value, low, high)}
        if len(written) > 1 or outcome == "equal":
            interval = f"95 % CI {_interval(metric, low, high, as_factor=as_factor)}"
    words = _comparative(metric, is_better=is_better)
    size = f"{_number(_of_speed(metric, value), as_factor=as_factor)} {words}"
    is_lone = metric.has_interval and not has_interval
    return Advantage(size, interval, outcome, _verb(metric), unpaired, is_lone)


def _is_factor(ratio: float) -> bool:
    return max(ratio, _inverse(ratio)) >= _LEAST_FACTOR


def _inverse(ratio: float) -> float:
    """Return the inverse; infinity of 0, which an end of an interval over very different rounds is in a double."""
    return 1 / ratio if ratio > 0 else math.inf


def _of_speed(metric: MetricSpec, ratio: float) -> float:
    """Return the ratio of which a percentage is written: of a shorter time that of the speeds."""
    return _inverse(ratio) if metric.better == "faster" and ratio < 1 else ratio


def _number(ratio: float, *, as_factor: bool, unit: bool = True) -> str:
    """Return a ratio as a factor of at least 1 with three digits, or as a percentage with two."""
    if as_factor:
        return f"{format_factor(max(ratio, _inverse(ratio)))}{'×' if unit else ''}"
    percent = 100 * abs(ratio - 1)
    # Two digits would be written with an exponent beyond these.
    if 0 < percent < _LEAST_PERCENT:
        text = f"under {_LEAST_PERCENT}"
    else:
        text = f"{percent:,.0f}" if percent >= 99.5 else f"{percent:#.2g}".rstrip(".")
    return f"{text}{' %' if unit else ''}"


def _interval(metric: MetricSpec, low: float, high: float, *, as_factor: bool) -> str:
    """Return both ends, from the smaller advantage to the larger; with their direction if they differ in it."""
    if low < 1 < high:
        worse, better = (high, low) if metric.lower_is_better else (low, high)
        sides = ((worse, False), (better, True))
        words = (
            f"{_number(_of_speed(metric, end), as_factor=as_factor)} {first}"
            for end, side in sides
            for first in [_comparative(metric, is_better=side).partition(" ")[0]]
        )
        return f"[{', '.join(words)}]"
    ends = sorted((_of_speed(metric, low), _of_speed(metric, high)), key=lambda end: abs(end - 1))
    numbers = ", ".join(_number(end, as_factor=as_factor, unit=False) for end in ends)
    return f"[{numbers}]{'' if as_factor else ' %'}"


def _comparative(metric: MetricSpec, *, is_better: bool) -> str:
    """Return the comparative of a metric: 'faster', or 'slower' where the model is worse."""
    words = metric.better or "better"
    first, space, rest = words.partition(" ")
    if is_better:
        return words
    if words in _OPPOSITES:
        return _OPPOSITES[words]
    return f"{_OPPOSITES[first]}{space}{rest}" if first in _OPPOSITES else "worse"


def superlative(metric: MetricSpec) -> str:
    """Return the superlative of a metric: 'fastest', 'least memory'."""
    first, space, rest = (metric.better or "better").partition(" ")
    return f"{_SUPERLATIVES.get(first, 'best')}{space}{rest}"


def _verb(metric: MetricSpec) -> str:
    if metric.better.partition(" ")[0] not in ("less", "fewer", "more"):
        return "is"
    return "needs" if metric.lower_is_better else "reaches"


def lead_of_ends(ends: Sequence[tuple[Advantage, int]]) -> str:
    """Return the advantage at the longest context, with that at the shortest one where it says something else.

    Args:
        ends: Advantage and context length: of the shortest and of the longest context, or of the only one.
    """
    (first, shortest), (last, longest) = ends[0], ends[-1]
    at_last = f"{last.lead} at {format_tokens(longest)}"
    if shortest == longest or (last.outcome != "equal" and first.outcome in ("equal", last.outcome)):
        return at_last
    if first.lead == last.lead:
        return f"{last.lead} at {format_tokens(shortest)} and {format_tokens(longest)}"
    return f"{first.lead} at {format_tokens(shortest)}, {at_last}"
