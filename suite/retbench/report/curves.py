"""Curves of every model against one quantity: the drawing functions that figures of cost and of quality share.

A point is (model, x, value, interval, status) in base units. A model may have several curves in one panel: one per
seed of its training, or one per context length.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, nan
from typing import Literal, NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform, offset_copy

from retbench.report import style
from retbench.report.labels import Label, add_text, label_ends, label_width_in, shorten
from retbench.report.points import Lineup
from retbench.report.wording import describe_status
from retbench.units import GIB, MIB, format_tokens

HEIGHT_IN = 2.75
DOTTED = (0, (1, 1.6))
_ROW_IN, _GAP_IN = 1.2, 0.58
_NARROWEST_IN = 0.62
"""Least width of a panel with its ticks; panels that have no room side by side go into further rows."""
_TITLE_LETTER_IN = 0.068
"""Width of a letter in the title of a panel."""
_TITLE_LINE_PT = 8.5
_CROSSES_PT = 6.0
"""Height of a row of crosses."""
_MOST_REASONS = 2
"""Models whose crosses have the reason beside them; for more of them it stands in the subtitle."""
_MOST_MARKERS = 12
"""Points of a curve that have room for markers."""
_LONE_MARKER_PT = 5.2
"""Size of a marker that no line helps to find."""
_WIDEST = 1.5
"""Highest end of an interval that is drawn over the highest value, as a ratio."""

DATA_COLUMNS = ["model", "context_len", "metric", "unit", "value", "low", "high", "num_rounds", "status"]
"""Columns of the data of a figure of cost."""

Units = Sequence[tuple[float, str]]
"""Units from the largest down: size in base units, and name."""
TIME_UNITS: Units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
MEMORY_UNITS: Units = ((GIB, "GiB"), (MIB, "MiB"))
RATE_UNITS: Units = ((1e3, "thousand tokens/s"), (1.0, "tokens/s"))


class Point(NamedTuple):
    """One point of a figure: a value with its 95 % interval, or the reason why there is none."""

    model: str
    x: float
    value: float = nan
    low: float = nan
    high: float = nan
    status: str = "ok"
    curve: str = ""


Scale = Literal["zero", "span", "log"]
Describe = Callable[[Point], str]


def frame_points(
    rows: pd.DataFrame, failed: pd.DataFrame | None = None, axis: str = "context_len", curve: str = ""
) -> tuple[Point, ...]:
    """Return the points of one metric along an axis, and those without a value.

    Args:
        rows: Rows of a figure's data that have one metric; `low` and `high` may be absent.
        failed: Rows of `sweeps.failed_points`.
        axis: Column of the horizontal axis.
        curve: Column whose values name the curves; empty where a model has one curve.
    """
    ends = rows.reindex(columns=["low", "high"], fill_value=nan)
    names = rows[curve] if curve else [""] * len(rows)
    measured = [
        Point(str(model), float(x), float(value), float(low), float(high), curve=str(name))
        for model, x, value, low, high, name in zip(
            rows["model"], rows[axis], rows["value"], ends["low"], ends["high"], names, strict=True
        )
    ]
    if failed is None:
        return tuple(measured)
    missing = zip(failed["model"], failed[axis], failed["status"], strict=True)
    return (*measured, *(Point(str(model), float(x), status=str(status)) for model, x, status in missing))


def with_failures(rows: pd.DataFrame, failed: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return measured rows, and a row per metric of each point that failed: the data of a figure of cost."""
    missing = failed.drop(columns="error").merge(pd.DataFrame({"metric": metrics}), how="cross")
    frame = pd.concat([rows.assign(status="ok"), missing], ignore_index=True)
    return frame.sort_values(["metric", "model", "context_len", "batch_size"], ignore_index=True)


def highest(points: Sequence[Point]) -> float:
    """Return the highest value or end of an interval; far wider intervals are cut, for they would flatten all."""
    values = [point.value for point in points if point.value == point.value]
    if not values:
        return 1.0
    ends = [point.high for point in points if point.high == point.high]
    return min(max(ends), _WIDEST * max(values)) if ends else max(values)


def lowest(points: Sequence[Point]) -> float:
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
        aside_pt: Distance of the first model's points from those of the last at the same place.
    """

    points: tuple[Point, ...]
    models: Lineup
    title: str = ""
    places: tuple[float, ...] = ()
    units: Units = ((1.0, ""),)
    at_least: float = 0.0
    at_most: float = inf
    joined: str | None = None
    aside_pt: float = 0.0

    @cached_property
    def curves(self) -> dict[str, list[list[Point]]]:
        """The curves of each model, in the order of the models; each from left to right."""
        found: dict[str, dict[str, list[Point]]] = {}
        for point in self.measured:
            found.setdefault(point.model, {}).setdefault(point.curve, []).append(point)
        return {
            model: [sorted(points, key=lambda point: point.x) for points in found[model].values()]
            for model in self.models.models
            if model in found
        }

    @property
    def measured(self) -> list[Point]:
        """The points that have a value."""
        return [point for point in self.points if point.status == "ok"]

    @property
    def failed(self) -> list[Point]:
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

    def look(self, model: str) -> style.Look:
        """Return the look of a model."""
        return style.look(self.models.models.index(model))

    def name(self, model: str) -> str:
        """Return the label of a model, led by its marker where colours alone do not distinguish the models."""
        mark = f"{style.FILLED[self.look(model).marker]} " if style.repeats(len(self.models.models)) else ""
        return f"{mark}{shorten(self.models.labels[model])}"

    def words(self, point: Point, place: str) -> str:
        """Return a point in words: 'RetNet, 32K: 6.40 [6.21, 6.60] ms'."""
        value, low, high = (f"{number / self.size:,.3g}" for number in (point.value, point.low, point.high))
        interval = f" [{low}, {high}]" if point.low == point.low else ""
        curve = f" {point.curve}" if point.curve else ""
        return f"{self.models.labels[point.model]}{curve}, {place}: {value}{interval} {self.unit}".rstrip()


def draw_row(
    panels: Sequence[Panel],
    texts: tuple[str, str, str],
    describe: Describe,
    label: str = style.LOG_LENGTH_LABEL,
    set_axis: Callable[[Axes, Sequence[float]], None] = style.set_length_axis,
    *,
    scale: Scale = "zero",
) -> Figure:
    """Draw panels side by side with the same vertical axis; names of models stand to the right of the last one.

    Args:
        panels: From left to right.
        texts: Title, subtitle and conditions.
        describe: Words for the last value of a curve.
        label: Name of the horizontal axis.
        set_axis: Sets ticks and limits of the horizontal axis.
        scale: The vertical axis is linear from zero, or linear and spans the values, or logarithmic.
    """
    title, subtitle, conditions = texts
    labels = end_labels(panels[-1], describe)
    reasons = len(panels) == 1 and panels[0].num_failing <= _MOST_REASONS
    if not reasons:
        subtitle = "; ".join(
            [subtitle, *describe_crosses(p.status for panel in panels for p in panel.failed)]
        )
    right_in = _room_in(panels, labels)
    longest = max(len(line) for panel in panels for line in panel.title.split("\n"))
    narrowest_in = max(_NARROWEST_IN, _TITLE_LETTER_IN * longest)
    most_columns = min(len(panels), max(1, int((style.WIDTH_IN - right_in) / narrowest_in)))
    # Rows are full: the labels, which reach above the last row, stand beside its last panel.
    num_columns = max(count for count in range(1, most_columns + 1) if len(panels) % count == 0)
    num_rows = len(panels) // num_columns
    shares = [2.0 + len(panel.ticks) for panel in panels[:num_columns]]
    row_in = _height_in(labels) if num_rows == 1 else max(_ROW_IN, _height_in(labels) / num_rows)
    names = [""] * (num_rows - 1) + [label]
    axes = _add_panels(panels, shares, names, (title, subtitle, conditions), row_in=row_in, right_in=right_in)
    for each, panel in zip(axes, panels, strict=True):
        set_axis(each, panel.ticks)
        _set_value_axis(each, panels, scale)
        _fill(each, panel, max(panel.num_failing for panel in panels), reasons=reasons)
    figure, above = axes[0].figure.figure, axes[0].get_position().y1 - axes[-1].get_position().y1
    _name_curves(axes[-1], labels, above * figure.get_figheight() * style.POINTS_PER_IN)
    return figure


def _set_value_axis(axes: Axes, panels: Sequence[Panel], scale: Scale) -> None:
    """Make the vertical axis that panels share, in the unit of the first."""
    size, measured = panels[0].size, [point for panel in panels for point in panel.measured]
    top, values = max(panel.top for panel in panels) / size, [point.value / size for point in measured]
    if scale == "span":
        ends = [end / size for point in measured for end in (point.low, point.high) if end == end]
        style.set_value_axis(axes, max([*values, *ends]), min([*values, *ends]))
    elif scale == "log" and any(value > 0 for value in values):
        style.set_log_value_axis(axes, lowest(measured) / size, top)
    else:
        style.set_value_axis(axes, top)


def draw_column(
    panels: Sequence[Panel],
    labels: Sequence[Sequence[Label]],
    texts: tuple[str, str, str],
    axis_labels: Sequence[str],
) -> Figure:
    """Draw panels one above the other on linear axes, with labels beside each.

    Args:
        panels: From the top down.
        labels: Labels of each panel in its units; their height counts, their place along the axis does not.
        texts: Title, subtitle and conditions.
        axis_labels: Name of the horizontal axis of each panel.
    """
    right_in = _room_in(panels, [label for mine in labels for label in mine])
    row_in = max(_ROW_IN, *(_height_in(mine) for mine in labels))
    rows = _add_panels(panels, [1], axis_labels, texts, row_in=row_in, right_in=right_in, left_in=0.52)
    for axes, panel, mine in zip(rows, panels, labels, strict=True):
        style.set_linear_length_axis(axes, panel.ticks)
        style.set_value_axis(axes, panel.top / panel.size)
        _fill(axes, panel, panel.num_failing)
        _name_curves(axes, mine)
    return rows[0].figure.figure


def _add_panels(
    panels: Sequence[Panel],
    shares: Sequence[float],
    axis_labels: Sequence[str],
    texts: tuple[str, str, str],
    *,
    row_in: float,
    right_in: float,
    left_in: float = 0.38,
) -> list[Axes]:
    """Return axes for panels in a new figure, with room above each row for its crosses; see `style.add_panels`."""
    num_failing = max(panel.num_failing for panel in panels)
    # One panel without a title has room for a few rows of crosses anyway.
    num_crosses = num_failing if panels[0].title else max(0, num_failing - _MOST_REASONS)
    num_lines = max(panel.title.count("\n") for panel in panels)
    above_in = (num_crosses * _CROSSES_PT + num_lines * _TITLE_LINE_PT) / style.POINTS_PER_IN
    top_in, gap_in = style.HEADER_IN + above_in, _GAP_IN + above_in
    height_in = top_in + len(axis_labels) * (row_in + gap_in) - gap_in + style.BASE_IN
    figure = style.new_figure(max(HEIGHT_IN, height_in), *texts)
    axes = style.add_panels(
        figure, shares, axis_labels, right_in=right_in, left_in=left_in, top_in=top_in, gap_in=gap_in
    )
    for unused in axes[len(panels) :]:
        unused.remove()
    return axes[: len(panels)]


def _fill(axes: Axes, panel: Panel, num_failing: int, *, reasons: bool = True) -> None:
    """Draw curves, crosses and title of one panel, whose row has as many rows of crosses."""
    axes.yaxis.set_visible(bool(panel.measured))
    _draw_curves(axes, panel)
    _draw_crosses(axes, panel, reasons=reasons)
    pad = 4 + _CROSSES_PT * num_failing
    axes.set_title(
        panel.title.replace("{unit}", panel.unit), fontsize=6.8, fontweight="bold", loc="left", pad=pad
    )


def _room_in(panels: Sequence[Panel], labels: Sequence[Label]) -> float:
    """Return the inches that labels need beside the panels, at least those of the models' names."""
    names = map(panels[0].name, panels[0].models.models)
    return label_width_in([*names, *(label.text for label in labels)])


def _height_in(labels: Sequence[Label]) -> float:
    """Return the inches that labels need one above the other."""
    return sum(label.height_pt for label in labels) / style.POINTS_PER_IN


def _draw_curves(axes: Axes, panel: Panel) -> None:
    """Draw the curves of every model with their intervals, thinner where a model has several."""
    for model, curves in panel.curves.items():
        look = panel.look(model)
        place, last = panel.models.models.index(model), max(1, len(panel.models.models) - 1)
        aside_pt = panel.aside_pt * (place / last - 0.5)
        beside = offset_copy(axes.transData, axes.figure.figure, x=aside_pt, units="points")
        for points in curves:
            marker_pt = _LONE_MARKER_PT if len(points) == 1 else 3.9 if len(curves) == 1 else 3.4
            line = axes.plot(
                [point.x for point in points],
                [point.value / panel.size for point in points],
                color=look.line,
                linestyle=look.dash if panel.joined in (None, points[0].curve) else "",
                transform=beside,
                linewidth=1.3 if len(curves) == 1 else 0.9,
                marker=look.marker if len(points) <= _MOST_MARKERS else "",
                markersize=marker_pt * look.marker_scale,
                markeredgecolor=style.PAPER,
                markeredgewidth=0.4,
            )
            style.tag(axes, model, [*line, *draw_intervals(axes, points, panel.size, look.line, beside)])
            for point in points:
                at = (point.x, point.value / panel.size)
                style.mark(axes, model, at, panel.words(point, axes.format_xdata(point.x)))


def draw_intervals(
    axes: Axes, points: Sequence[Point], size: float, colour: str, transform: Transform | None = None
) -> list[Artist]:
    """Draw the intervals of the points that have one, placed as by `transform`, and return what was drawn."""
    bars = [(point.x, point.low / size, point.high / size) for point in points if point.low == point.low]
    if not bars:
        return []
    x, low, high = zip(*bars, strict=True)
    place = transform or axes.transData
    drawn: list[Artist] = [axes.vlines(x, low, high, color=colour, linewidth=0.8, transform=place)]
    for end in (low, high):
        caps = axes.plot(x, end, "_", color=colour, linestyle="", markersize=5, markeredgewidth=0.8)
        for cap in caps:
            cap.set(zorder=1.9, transform=place)
        drawn += caps
    return drawn


def _draw_crosses(axes: Axes, panel: Panel, *, reasons: bool) -> None:
    """Draw crosses above the axes at the places without a value, a row per model, with the reason."""
    height_pt = axes.bbox.height / axes.figure.dpi * style.POINTS_PER_IN
    above_pt = 3.5
    for model in panel.models.models:
        mine = sorted((point for point in panel.failed if point.model == model), key=lambda point: point.x)
        if not mine:
            continue
        x, y, transform = [point.x for point in mine], 1 + above_pt / height_pt, axes.get_xaxis_transform()
        above_pt += _CROSSES_PT
        drawn: list[Artist] = [
            *axes.plot(x, [y] * len(x), "x", color=panel.look(model).line, transform=transform, clip_on=False)
        ]
        if reasons:
            is_left = x[0] > panel.ticks[0]
            words = add_text(
                axes,
                describe_status(mine[0].status),
                (x[0] if is_left else x[-1], y),
                transform,
                (-5 if is_left else 5, 0),
                fontsize=6.0,
                color=panel.look(model).text,
                ha="right" if is_left else "left",
                va="center",
            )
            drawn.append(words)
        style.tag(axes, model, drawn)


def describe_crosses(statuses: Iterable[str]) -> list[str]:
    """Return what the crosses of a figure stand for, if it has any: 'crosses: out of memory'."""
    words = [describe_status(status) for status in sorted(set(statuses))]
    return [f"crosses: {', '.join(words)}"] if words else []


def end_labels(panel: Panel, describe: Describe) -> list[Label]:
    """Return each model's name and last value, of several curves the range, in the units of the panel."""
    labels = []
    for model, curves in panel.curves.items():
        named = [points for points in curves if points[0].curve == panel.joined] or curves
        last = max(points[-1].x for points in named)
        ends = sorted((points[-1] for points in named if points[-1].x == last), key=lambda point: point.value)
        words = "–".join(dict.fromkeys(describe(end) for end in (ends[0], ends[-1])))
        middle = (ends[0].value + ends[-1].value) / 2 / panel.size
        text = f"{panel.name(model)}\n{words}"
        labels.append(Label(ends[-1].x, middle, text, panel.look(model).text, model=model))
    return labels


def with_length(words: str, point: Point, longest: float) -> str:
    """Return words for the last value of a curve, with its context length if longer ones exist."""
    return words if point.x >= longest else f"{words}, {format_tokens(int(point.x))}"


def _name_curves(axes: Axes, labels: Sequence[Label], above_pt: float = 0.0) -> None:
    """Write the labels of `end_labels` beside the axes at the height of the ends of the curves."""
    edge, (low, top) = axes.get_xlim()[1], axes.get_ylim()
    ordered = sorted(labels, key=lambda label: label.y)
    inside = [replace(label, x=edge, y=max(low, min(top, label.y))) for label in ordered]
    label_ends(axes, inside, above_pt=above_pt)
