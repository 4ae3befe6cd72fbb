"""Figures of values against context length, and of the throughput against batch size.

Against length: times, share of the roofline, speed and memory of training.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.analysis import style
from retbench.analysis.comparisons import Line
from retbench.analysis.labels import CORNERS, Label, add_note, beside, label_ends, label_width_in
from retbench.analysis.points import Lineup
from retbench.analysis.scenes import (
    Scene,
    describe_absence,
    describe_crossover,
    describe_status,
    rounds_disagree,
)
from retbench.measure.statistics import Crossover
from retbench.units import (
    GIB,
    MIB,
    format_bytes,
    format_rate,
    format_seconds,
    format_tokens,
)

HEIGHT_IN = 2.75
TALL_IN = 4.4
_WIDEST = 1.5
"""How far above the highest value an interval is drawn."""
_TALLEST = 2.0
"""How far above the highest memory that is linear in the length any other is drawn."""

_TIME_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def draw_times(scene: Scene, metric: str, title: str, crossings: Mapping[str, Crossover]) -> Figure:
    """All models' times against context length.

    Args:
        scene: What is drawn.
        metric: Which time.
        title: The heading.
        crossings: Where each model overtakes the reference.
    """
    rows = scene.rows(metric)
    top = _top(rows)
    size, unit = next((step for step in _TIME_UNITS if top >= step[0]), _TIME_UNITS[-1])
    subtitle = f"{unit}, {scene.subtitle(metric)}"
    figure = style.new_figure(HEIGHT_IN, title, subtitle, scene.conditions)
    (axes,) = style.add_panels(figure, [1], right_in=_margin_in(scene.models))
    style.set_length_axis(axes, scene.lengths)
    style.set_value_axis(axes, top / size)
    axes.yaxis.set_visible(not rows.empty)
    _draw_lines(axes, rows, scene.models, size)
    label_ends(axes, _end_labels(rows, scene.models, size, format_seconds))
    _mark_failures(axes, scene)
    for model, crossing in crossings.items():
        _mark_crossing(axes, crossing, scene, model)
    return figure


def draw_roofline(scenes: Sequence[Scene], title: str) -> Figure:
    """The share of what the machine could do at best that each point reached, a panel a workload."""
    first, metric, size = scenes[0], "roofline_ratio", 0.01
    figure = style.new_figure(HEIGHT_IN, title, f"%, {first.subtitle(metric)}", first.conditions)
    shares = [2 + len(scene.lengths) for scene in scenes]
    panels = style.add_panels(figure, shares, right_in=_margin_in(first.models))
    top = max([1.0, *(_top(scene.rows(metric)) for scene in scenes)])
    for axes, scene in zip(panels, scenes, strict=True):
        style.set_length_axis(axes, scene.lengths)
        style.set_value_axis(axes, top / size)
        axes.axhline(1 / size, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
        _draw_lines(axes, scene.rows(metric), scene.models, size)
        _mark_failures(axes, scene)
    panels[0].annotate(
        "ceiling",
        xy=(0.03, 1 / size),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=6.2,
        color=style.MUTED,
    )
    last = scenes[-1]
    edge = panels[-1].get_xlim()[1]
    labels = _margin_labels(last.rows(metric), last, lambda ratio: f"{100 * ratio:.0f} %", {})
    label_ends(panels[-1], [replace(label, x=edge, y=label.y / size) for label in labels])
    for axes, scene in zip(panels, scenes, strict=True):
        add_note(axes, scene.workload, (*CORNERS[1:], CORNERS[0]))
    return figure


def draw_throughput(scenes: Sequence[Scene], title: str) -> Figure:
    """All models' tokens/s against batch size, a panel a context length.

    Args:
        scenes: Of one experiment and workload, one a batch size.
        title: The heading.
    """
    first, metric, axis = scenes[0], "tokens_per_s", "batch_size"
    rows = pd.concat([scene.rows(metric) for scene in scenes], ignore_index=True)
    failed = pd.concat([scene.failed for scene in scenes], ignore_index=True)
    lengths = sorted({length for scene in scenes for length in scene.lengths})
    subtitle = "; ".join(["tokens/s", *first.subtitle(metric).split("; ")[1:], *_describe_crosses(failed)])
    figure = style.new_figure(HEIGHT_IN, title, subtitle, first.conditions)
    panels = style.add_panels(
        figure,
        [1] * len(lengths),
        right_in=_margin_in(first.models),
        label="batch size (log scale); a panel a context",
    )
    for axes, length in zip(panels, lengths, strict=True):
        style.set_length_axis(axes, [scene.batch_size for scene in scenes])
        style.set_value_axis(axes, _top(rows))
        axes.yaxis.set_visible(not rows.empty)
        _draw_lines(axes, rows[rows["context_len"] == length], first.models, 1.0, axis)
        _draw_crosses(axes, failed[failed["context_len"] == length], first.models, axis)
        axes.annotate(
            format_tokens(length), xy=(0.05, 0.98), xycoords="axes fraction", va="top", color=style.MUTED
        )
    last = rows[rows["context_len"] == lengths[-1]]
    label_ends(panels[-1], _end_labels(last, first.models, 1.0, _describe_rate, axis))
    return figure


def _describe_rate(per_second: float) -> str:
    return format_rate(per_second, "").strip()


def _describe_crosses(failed: pd.DataFrame) -> list[str]:
    """What the crosses of a figure stand for, where it has any: 'crosses: out of memory'."""
    words = [describe_status(str(status)) for status in sorted(failed["status"].unique())]
    return [f"crosses: {', '.join(words)}"] if words else []


def draw_training(scene: Scene, title: str, lines: Mapping[str, Line]) -> Figure:
    """Tokens a second above peak memory, every model's line in each.

    Args:
        scene: What is drawn.
        title: The heading.
        lines: Through the peak memory of each model that has one.
    """
    rates, peaks = scene.rows("tokens_per_s"), scene.rows("peak_bytes")
    linear = {model: line for model, line in lines.items() if line.fits}
    slopes = {model: f"\n{format_bytes(line.slope)} a token" for model, line in linear.items()}
    speeds = _margin_labels(rates, scene, lambda rate: f"{rate:,.0f} tokens/s", {})
    sizes = _margin_labels(peaks, scene, format_bytes, slopes)
    subtitle = scene.subtitle("step_s") + ("; dotted: linear fit" if linear else "")
    figure = style.new_figure(TALL_IN, title, subtitle, scene.conditions)
    right_in = label_width_in([*scene.models.labels.values(), *(label.text for label in (*speeds, *sizes))])
    upper, lower = style.add_rows(figure, 2, right_in=right_in)
    top = _top(rates)
    size, unit = (1e3, "thousand tokens/s") if top >= 1e3 else (1.0, "tokens/s")
    style.set_value_axis(upper, top / size)
    _fill_row(upper, scene, rates, speeds, (size, unit))
    top = _top(peaks)
    if linear:  # what is far above these would flatten them, and leaves the plot
        top = min(top, _TALLEST * float(peaks[peaks["model"].isin(linear)]["value"].max()))
    size, unit = (GIB, "GiB") if top >= GIB else (MIB, "MiB")
    style.set_value_axis(lower, top / size)
    _fill_row(lower, scene, peaks, sizes, (size, f"peak memory, {unit}"))
    _draw_fits(lower, linear.values(), size)
    return figure


def _fill_row(
    axes: Axes, scene: Scene, rows: pd.DataFrame, labels: Sequence[Label], unit: tuple[float, str]
) -> None:
    """Lines and failures of one row; labels stand to the right of it, each at the height of its line's end."""
    size, words = unit
    style.set_linear_length_axis(axes, scene.lengths)
    axes.yaxis.set_visible(not rows.empty)
    axes.set_ylabel(words, fontsize=6.5, color=style.MUTED, labelpad=3)
    _draw_lines(axes, rows, scene.models, size)
    _mark_failures(axes, scene)
    edge, top = axes.get_xlim()[1], axes.get_ylim()[1]
    ordered = sorted(labels, key=lambda label: label.y)
    label_ends(axes, [replace(label, x=edge, y=min(top, label.y / size)) for label in ordered])


def _margin_labels(
    rows: pd.DataFrame, scene: Scene, describe: Callable[[float], str], more: Mapping[str, str]
) -> list[Label]:
    """Each model's name and last value, with its length where other lines are longer, and what more is to say."""
    labels = _end_labels(rows, scene.models, 1.0, describe)
    drawn = [model for model in scene.models.models if model in set(rows["model"])]
    return [
        replace(
            label,
            text=label.text
            + (f", {format_tokens(int(label.x))}" if label.x < max(scene.lengths) else "")
            + more.get(model, ""),
        )
        for model, label in zip(drawn, labels, strict=True)
    ]


def _draw_fits(axes: Axes, lines: Iterable[Line], size: float) -> None:
    """A thin dotted line, from no token on, through each memory that is linear in the length."""
    for line in lines:
        x = [0.0, float(line.lengths[-1])]
        y = [(line.intercept + line.slope * length) / size for length in x]
        axes.plot(x, y, color=style.INK, linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=2.5)


def _top(rows: pd.DataFrame) -> float:
    """The highest value or end of an interval; an interval far wider than that is cut, for it would flatten all."""
    if rows.empty:
        return 1.0
    value, high = float(rows["value"].max()), float(rows["high"].max())
    return min(high, _WIDEST * value) if high == high else value


def _margin_in(models: Lineup) -> float:
    """Width that the labels of lines need."""
    return label_width_in(list(models.labels.values()))


def _end_labels(
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


def _draw_lines(
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


def _mark_failures(axes: Axes, scene: Scene) -> None:
    """Above the plot, a row a model: a cross at every length without a value, and the reason."""
    for row in _draw_crosses(axes, scene.failed, scene.models):
        left = row.places[0] > min(scene.lengths)
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


class _Crosses(NamedTuple):
    """A row of crosses: where it is, as a fraction of the height of the axes and along them, and what it is of."""

    y: float
    places: list[int]
    status: str
    look: style.Look


def _draw_crosses(
    axes: Axes, failed: pd.DataFrame, models: Lineup, axis: str = "context_len"
) -> list[_Crosses]:
    """Above the plot, a row a model: a cross at every place along `axis` without a value."""
    height_pt = axes.bbox.height / axes.figure.dpi * style.POINTS_PER_IN
    above_pt, drawn = 3.5, []
    for index, model in enumerate(models.models):
        mine = failed[failed["model"] == model].sort_values(axis)
        if mine.empty:
            continue
        row = _Crosses(
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


def _mark_crossing(axes: Axes, crossing: Crossover, scene: Scene, model: str) -> None:
    """Where `model` overtakes the reference, its interval shaded; or the words that it does not."""
    label = scene.models.labels[model]
    if crossing.value is None:
        lead = "rounds disagree" if rounds_disagree(crossing, scene.lengths) else "none in range"
        words = f"crossover: {lead}\n{describe_absence(crossing, scene.lengths, label)}"
        add_note(axes, words, CORNERS)
        return
    if crossing.low is not None and crossing.high is not None:
        axes.axvspan(crossing.low, crossing.high, color=style.GRID, linewidth=0, zorder=0)
    axes.axvline(crossing.value, color=style.MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
    words = f"{label} overtakes at\n{describe_crossover(crossing)}"
    add_note(axes, words, beside(crossing.value))
