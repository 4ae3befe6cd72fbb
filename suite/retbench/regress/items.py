"""The items of a comparison: each time, each ratio of a model to the reference, and each curve as a whole.

Each item is a weighted sum of log-ratios of times, so that one arithmetic serves all. A time is itself. A ratio of two
models is one time less the other. A curve is the mean over its context lengths, which averages out their noise.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Literal

from retbench.stats.intervals import LogRatio, paired
from retbench.stats.sequential import DecisionRules, InterimAnalysis, SequentialTest
from retbench.units import format_tokens
from retbench.workloads.workload import WORKLOADS

Kind = Literal["time", "ratio", "curve"]
WALL_TIME = "wall time"
"""In place of a workload: the time of a command or a callable, which has no batch size and no context length (0)."""
Pair = tuple[float, float]
"""Seconds on the first and on the second side."""


def is_compared(workload: str) -> bool:
    """Return whether a workload is compared by a cost of which less is better."""
    found = WORKLOADS.get(workload)
    return found is not None and found.measures_cost and found.primary.lower_is_better is True


def is_timed(workload: str) -> bool:
    """Return whether a workload is compared by a time."""
    if workload == WALL_TIME:
        return True
    return is_compared(workload) and WORKLOADS[workload].primary.unit == "s"


@dataclass(frozen=True, order=True)
class MeasurementPoint:
    """A model at one batch size and context length of a workload."""

    experiment: str
    workload: str
    model: str
    batch_size: int
    context_len: int

    @property
    def curve(self) -> tuple[str, str, str, int]:
        """The fields that all context lengths of a curve share."""
        return self.experiment, self.workload, self.model, self.batch_size

    def __str__(self) -> str:
        return str(time_of(self))


Times = Mapping[MeasurementPoint, Pair]
"""The times of one round on both sides."""

Values = Mapping[MeasurementPoint, float]
"""The values of one round on one side: seconds, or bytes where a workload is compared by bytes."""


@dataclass(frozen=True)
class ComparedItem:
    """One time, ratio or curve: the points whose log-ratios are summed, with their weights.

    The subject is the model, or "retnet/transformer" for a ratio.
    """

    kind: Kind
    subject: str
    weights: tuple[tuple[MeasurementPoint, float], ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Hash of the fields, computed once: a test of all items looks each one up many times."""
        return hash((self.kind, self.subject, self.weights))

    @cached_property
    def points(self) -> tuple[MeasurementPoint, ...]:
        """The points that it needs."""
        return tuple(point for point, _ in self.weights)

    @property
    def workload(self) -> str:
        """The workload of its points."""
        return self.points[0].workload

    def log_values(self, rounds: Iterable[Values]) -> list[float]:
        """Return the weighted sum of logarithms of every round that has all of its points."""
        logs = (
            {point: math.log(values[point]) for point in self.points if point in values} for values in rounds
        )
        return [total for one in logs if (total := self.weighted_sum(one)) is not None]

    def weighted_sum(self, logs: Mapping[MeasurementPoint, float]) -> float | None:
        """Return the weighted sum of logarithms by point; None if a point is missing."""
        try:
            return math.fsum([weight * logs[point] for point, weight in self.weights])
        except KeyError:
            return None

    def __str__(self) -> str:
        if self.workload == WALL_TIME:
            return f"{self.workload} of {self.subject}"
        lengths = sorted({point.context_len for point in self.points})
        ends = [format_tokens(length) for length in dict.fromkeys((lengths[0], lengths[-1]))]
        return f"{self.workload} of {self.subject}, batch {self.points[0].batch_size}, {' to '.join(ends)}"


def time_of(point: MeasurementPoint) -> ComparedItem:
    """Return the time of a point as an item."""
    return ComparedItem("time", point.model, ((point, 1.0),))


def curve_of(points: Sequence[MeasurementPoint]) -> ComparedItem:
    """Return the mean over some lengths of a curve as an item."""
    share = 1 / len(points)
    return ComparedItem("curve", points[0].model, tuple((point, share) for point in points))


def combine_blocks(blocks: Sequence[Pair]) -> Pair:
    """Return one pair for the sample blocks of a point in a round; its ratio is the median of the blocks' ratios.

    Each block measured both sides one right after the other: a disturbance changes one ratio of several.
    """
    first = median(one for one, _ in blocks)
    return first, first * math.exp(median(math.log(second / first) for first, second in blocks))


def curves_of(points: Iterable[MeasurementPoint]) -> list[list[MeasurementPoint]]:
    """Return the points of each curve, by context length."""
    curves: dict[tuple[str, str, str, int], list[MeasurementPoint]] = {}
    for point in sorted(set(points)):
        curves.setdefault(point.curve, []).append(point)
    return list(curves.values())


def make_items(points: Iterable[MeasurementPoint], reference: str | None) -> list[ComparedItem]:
    """Return all items: times, ratios to the reference if there is one, and curves of two lengths or more."""
    ordered = sorted(set(points))
    items = [time_of(point) for point in ordered]
    for point in ordered:
        if reference is not None and point.model != reference:
            other = MeasurementPoint(*point.curve[:2], reference, point.batch_size, point.context_len)
            if other in ordered:
                weights = ((point, 1.0), (other, -1.0))
                items.append(ComparedItem("ratio", f"{point.model}/{reference}", weights))
    return items + [curve_of(curve) for curve in curves_of(ordered) if len(curve) > 1]


def make_test(
    items: Sequence[ComparedItem], seconds: Values, rules: DecisionRules, analyses: Sequence[InterimAnalysis]
) -> SequentialTest[ComparedItem]:
    """Return the sequential test of items, where `seconds` gives the rough time of each point for the floor.

    The margin of an item is the widest of its points. Half of the rate of false alarms goes to the curves, which have
    the least noise: a slower step is slower at most lengths, so that its curve shows it first.
    """
    margins = {
        item: max(rules.log_margin(seconds.get(point, math.inf)) for point in item.points) for item in items
    }
    num_curves = sum(item.kind == "curve" for item in items)
    # Without curves, or with curves alone, all items have the same weight.
    shares = {True: len(items) - num_curves or 1, False: num_curves or 1}
    weights = {item: shares[item.kind == "curve"] for item in items}
    return SequentialTest(margins, rules, analyses, weights)


def paired_changes(items: Iterable[ComparedItem], rounds: Sequence[Times]) -> dict[ComparedItem, LogRatio]:
    """Estimate the change of every item that some round has."""
    # Items share points, so the logarithms are taken once per point.
    rises = [
        {point: math.log(after) - math.log(before) for point, (before, after) in times.items()}
        for times in rounds
    ]
    changes = {
        item: [rise for one in rises if (rise := item.weighted_sum(one)) is not None] for item in items
    }
    return {item: paired(logs) for item, logs in changes.items() if logs}
