"""What figures of lines share: a line a model with its intervals, what failed, and the models' names at the ends.

Rows are those of `points.summarise` and `points.failed_points`; a size is that of the axes' unit in base units.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from retbench.report import style
from retbench.report.labels import Label, label_width_in
from retbench.report.points import Lineup
from retbench.report.wording import describe_status
from retbench.units import format_rate, format_tokens

_WIDEST = 1.5
"""How far above the highest value an interval is drawn."""
_TIME_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def draw_lines(
    axes: Axes, rows: pd.DataFrame, models: Lineup, size: float, axis: str = "context_len"
) -> None:
    """A line a model along `axis`, in units of `size`, with its interval at each point."""
    for index, model in enumerate(models.models):
        mine = rows[rows["model"] == model].sort_values(axis)
        look = style.look(index)
        x = [int(place) for place in mine[axis]]
        value, low, high = ([float(item) / size for item in mine[name]] for name in ("value", "low", "high"))
        axes.plot(
            x, value, color=look.line, marker=look.marker, markeredgecolor=style.PAPER, markeredgewidth=0.4
        )
        axes.vlines(x, low, high, color=look.line, linewidth=0.8)
        for end in (low, high):
            axes.plot(x, end, "_", color=look.line, markersize=5, markeredgewidth=0.8, zorder=1.9)


def highest(rows: pd.DataFrame) -> float:
    """The highest value or end of an interval; an interval far wider than that is cut, for it would flatten all."""
    if rows.empty:
        return 1.0
    value, high = float(rows["value"].max()), float(rows["high"].max())
    return min(high, _WIDEST * value) if high == high else value


def time_unit(top: float) -> tuple[float, str]:
    """The unit in which a longest time of `top` seconds is 1 or more: its size in seconds, and its name."""
    return next((step for step in _TIME_UNITS if top >= step[0]), _TIME_UNITS[-1])


def margin_in(models: Lineup) -> float:
    """Width that the labels of lines need."""
    return label_width_in(list(models.labels.values()))


def end_labels(
    rows: pd.DataFrame,
    models: Lineup,
    size: float,
    describe: Callable[[float], str],
    axis: str = "context_len",
) -> list[Label]:
    """Each model's name and value at the end of its line along `axis`, in units of `size`."""
    labels = []
    for index, model in enumerate(models.models):
        mine = rows[rows["model"] == model].sort_values(axis)
        if mine.empty:
            continue
        x, value = int(mine[axis].iloc[-1]), float(mine["value"].iloc[-1])
        text = f"{models.labels[model]}\n{describe(value)}"
        labels.append(Label(x, value / size, text, style.look(index).text))
    return labels


def margin_labels(
    rows: pd.DataFrame,
    models: Lineup,
    longest: int,
    describe: Callable[[float], str],
    more: Mapping[str, str] = MappingProxyType({}),
) -> list[Label]:
    """Each model's name and last value, with its length where that is not the longest, and what more is to say."""
    labels = end_labels(rows, models, 1.0, describe)
    drawn = [model for model in models.models if model in set(rows["model"])]
    return [
        replace(
            label,
            text=label.text
            + (f", {format_tokens(int(label.x))}" if label.x < longest else "")
            + more.get(model, ""),
        )
        for model, label in zip(drawn, labels, strict=True)
    ]


def describe_rate(per_second: float) -> str:
    """Tokens a second without their unit: 12345.6 -> '12.3 k'."""
    return format_rate(per_second, "").strip()


def mark_failures(
    axes: Axes, failed: pd.DataFrame, models: Lineup, first: int, axis: str = "context_len"
) -> None:
    """Above the plot, a row a model: a cross at every place along `axis` without a value, and the reason.

    Args:
        axes: Where.
        failed: Points that have no value.
        models: All models.
        first: The first place along the axis.
        axis: What is along it.
    """
    for row in draw_crosses(axes, failed, models, axis):
        left = row.places[0] > first
        axes.annotate(
            describe_status(row.status),
            xy=(row.places[0] if left else row.places[-1], row.y),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=6.0,
            color=row.look.text,
            annotation_clip=False,
        )


class Crosses(NamedTuple):
    """A row of crosses: where it is, as a fraction of the height of the axes and along them, and what it is of."""

    y: float
    places: list[int]
    status: str
    look: style.Look


def draw_crosses(
    axes: Axes, failed: pd.DataFrame, models: Lineup, axis: str = "context_len"
) -> list[Crosses]:
    """Above the plot, a row a model: a cross at every place along `axis` without a value."""
    height_pt = axes.bbox.height / axes.figure.dpi * style.POINTS_PER_IN
    above_pt, drawn = 3.5, []
    for index, model in enumerate(models.models):
        mine = failed[failed["model"] == model].sort_values(axis)
        if mine.empty:
            continue
        row = Crosses(
            1 + above_pt / height_pt,
            [int(place) for place in mine[axis]],
            str(mine["status"].iloc[0]),
            style.look(index),
        )
        above_pt += 6.0
        heights = [row.y] * len(row.places)
        transform = axes.get_xaxis_transform()
        axes.plot(row.places, heights, "x", color=row.look.line, transform=transform, clip_on=False)
        drawn.append(row)
    return drawn


def describe_crosses(failed: pd.DataFrame) -> list[str]:
    """What the crosses of a figure stand for, where it has any: 'crosses: out of memory'."""
    words = [describe_status(str(status)) for status in sorted(failed["status"].unique())]
    return [f"crosses: {', '.join(words)}"] if words else []
