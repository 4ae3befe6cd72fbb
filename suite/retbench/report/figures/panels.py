"""Panels of figures: points of every model along one quantity, with their units, looks and words.

A point is (model, x, value, interval, status) in base units. A model may have several curves in one panel: one per
seed of its training, or one per context length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isnan, nan
from typing import Any, NamedTuple

import pandas as pd

from retbench.report.figures.labels import shorten
from retbench.report.figures.looks import FILLED, Look, look_of, repeats
from retbench.report.lineup import Lineup
from retbench.report.sweeps import CostSweep
from retbench.report.wording import with_interval
from retbench.units import GIB, MIB
from retbench.workloads.workload import MetricSpec

_WIDEST = 1.5
"""Highest end of an interval that is drawn over the highest value, as a ratio."""

Units = Sequence[tuple[float, str]]
"""Units from the largest down: size in base units, and name."""
TIME_UNITS: Units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
MEMORY_UNITS: Units = ((GIB, "GiB"), (MIB, "MiB"))
PERCENT: Units = ((0.01, "%"),)
RATE_UNITS: Units = ((1e3, "thousand tokens/s"), (1.0, "tokens/s"))
UNITS = {"tokens/s": RATE_UNITS, "s": TIME_UNITS, "bytes": MEMORY_UNITS, "ratio": PERCENT}
"""Units that figures draw a metric in, by its base unit."""


class PlotPoint(NamedTuple):
    """One point of a figure: a value with its 95 % interval, or the reason why there is none."""

    model: str
    x: float
    value: float = nan
    low: float = nan
    high: float = nan
    status: str = "ok"
    curve: str = ""

    @property
    def estimate(self) -> tuple[float, ...]:
        """Value, and the ends of its interval if it has one."""
        return (self.value, self.low, self.high) if not isnan(self.low) else (self.value,)


def frame_points(
    rows: pd.DataFrame, failed: pd.DataFrame | None = None, axis: str = "context_len", curve: str = ""
) -> tuple[PlotPoint, ...]:
    """Return the points of one metric along an axis, and those without a value.

    Args:
        rows: Rows of a figure's data that have one metric; `low` and `high` may be absent.
        failed: Rows of `sweeps.failed_points`.
        axis: Column of the horizontal axis.
        curve: Column whose values name the curves; empty where a model has one curve.
    """
    ends = rows.reindex(columns=["low", "high"], fill_value=nan).astype(float)  # None: too few documents
    names = rows[curve] if curve else [""] * len(rows)
    measured = [
        PlotPoint(str(model), float(x), float(value), float(low), float(high), curve=str(name))
        for model, x, value, low, high, name in zip(
            rows["model"], rows[axis], rows["value"], ends["low"], ends["high"], names, strict=True
        )
    ]
    if failed is None:
        return tuple(measured)
    missing = zip(failed["model"], failed[axis], failed["status"], strict=True)
    return (*measured, *(PlotPoint(str(model), float(x), status=str(status)) for model, x, status in missing))


def seed_points(rows: pd.DataFrame, axis: str) -> tuple[PlotPoint, ...]:
    """Return the points of rows that have a seed along an axis, with a curve per seed; see `seed_curve`."""
    return frame_points(rows.assign(seed=rows["seed"].map(seed_curve)), axis=axis, curve="seed")


def seed_curve(seed: str) -> str:
    """Return the name of the curve of a seed in the data of a figure: 'seed 0'."""
    return "without seed" if seed == "none" else f"seed {seed}"


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 99.95 else f"{number:#.3g}"


def highest(points: Sequence[PlotPoint]) -> float:
    """Return the highest value or end of an interval; far wider intervals are cut, for they would flatten all."""
    values = [point.value for point in points if not isnan(point.value)]
    if not values:
        return 1.0
    ends = [point.high for point in points if not isnan(point.high)]
    return min(max(ends), _WIDEST * max(values)) if ends else max(values)


def lowest(points: Sequence[PlotPoint]) -> float:
    """Return the lowest value or end of an interval above zero; far wider intervals are cut, as by `highest`."""
    least = min(point.value for point in points if point.value > 0)
    ends = [point.low for point in points if point.low > 0]
    return max(min([least, *ends]), least / _WIDEST)


def unit_for(top: float, units: Units) -> tuple[float, str]:
    """Return the largest unit of which `top` is at least one; else the smallest."""
    return next((unit for unit in units if top >= unit[0]), units[-1])


@dataclass(frozen=True)
class Panel:
    """The curves of one pair of axes.

    Attributes:
        points: Points of every model.
        models: All models of the selection, so that each has the same look in every figure.
        title: What distinguishes the panel from others of its figure, with "{unit}" for the unit; empty for a panel
            alone.
        places: Ticks of the horizontal axis; those of the points when empty.
        units: Units that the vertical axis may have.
        at_least: The vertical axis reaches this value, in base units.
        at_most: Values above this one, in base units, leave the panel.
        joined: Name of the only curve of each model that is drawn as a line and labelled; None for every curve.
        ends_apart: The curves of a model may end at different places, and the last value of each of them counts.
        aside_pt: Distance of the first model's points from those of the last at the same place.
        where: Words for the place of a point, with "{}" for what the horizontal axis says: 'batch {}'.
    """

    points: tuple[PlotPoint, ...]
    models: Lineup
    title: str = ""
    places: tuple[float, ...] = ()
    units: Units = ((1.0, ""),)
    at_least: float = 0.0
    at_most: float = inf
    joined: str | None = None
    ends_apart: bool = False
    aside_pt: float = 0.0
    where: str = "{}"

    @cached_property
    def curves(self) -> dict[str, list[list[PlotPoint]]]:
        """The curves of each model, in the order of the models; each from left to right."""
        found: dict[str, dict[str, list[PlotPoint]]] = {}
        for point in self.measured:
            found.setdefault(point.model, {}).setdefault(point.curve, []).append(point)
        return {
            model: [sorted(points, key=lambda point: point.x) for points in found[model].values()]
            for model in self.models.models
            if model in found
        }

    @property
    def measured(self) -> list[PlotPoint]:
        """The points that have a value."""
        return [point for point in self.points if point.status == "ok"]

    @property
    def failed(self) -> list[PlotPoint]:
        """The points that have none."""
        return [point for point in self.points if point.status != "ok"]

    @property
    def ticks(self) -> tuple[float, ...]:
        """Ticks of the horizontal axis, in order."""
        return self.places or tuple(sorted({point.x for point in self.points}))

    @property
    def num_failing(self) -> int:
        """Models that have a point without a value."""
        return len({point.model for point in self.failed})

    @cached_property
    def top(self) -> float:
        """The highest value that the vertical axis has room for, in base units."""
        return min(self.at_most, max(highest(self.points), self.at_least))

    @property
    def size(self) -> float:
        """One unit of the vertical axis in base units."""
        return unit_for(self.top, self.units)[0]

    @property
    def unit(self) -> str:
        """Name of the unit of the vertical axis."""
        return unit_for(self.top, self.units)[1]

    def look(self, model: str) -> Look:
        """Return the look of a model."""
        return look_of(self.models, model)

    def name(self, model: str) -> str:
        """Return the label of a model, led by its marker where colours alone do not distinguish the models."""
        mark = f"{FILLED[self.look(model).marker]} " if repeats(len(self.models.models)) else ""
        return f"{mark}{shorten(self.models.labels[model])}"

    def words(self, point: PlotPoint, place: str) -> str:
        """Return a point in words: 'RetNet, 32K: 6.40 [6.21, 6.60] ms'."""
        value = with_interval(*(_three_digits(number / self.size) for number in point.estimate))
        curve = f" {point.curve}" if point.curve else ""
        return f"{self.models.labels[point.model]}{curve}, {self.where.format(place)}: {value} {self.unit}".rstrip()


def sweep_panel(sweep: CostSweep, metric: str, title: str = "", **options: Any) -> Panel:
    """Return a metric of a sweep against the context length; the options are further fields of the panel."""
    points = frame_points(sweep.rows(metric), sweep.failed)
    return Panel(points, sweep.models, title, sweep.lengths, **options)


def batch_panels(sweeps: Sequence[CostSweep], metric: MetricSpec) -> list[Panel]:
    """Return a metric with a unit of `UNITS` against the context length, a panel per batch size, all of one height."""
    units, several = UNITS[metric.unit], len(sweeps) > 1
    top = max(highest(frame_points(sweep.rows(metric.name))) for sweep in sweeps)
    return [
        sweep_panel(s, metric.name, f"batch {s.batch_size}" if several else "", units=units, at_least=top)
        for s in sweeps
    ]
