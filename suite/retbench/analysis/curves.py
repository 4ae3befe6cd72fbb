"""Figures of a value against context length: time per token, time to first token, share of the roofline."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.analysis import style
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
from retbench.units import format_seconds

HEIGHT_IN = 2.75
_WIDEST = 1.5
"""How far above the highest value an interval is drawn."""

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
        axes.annotate(scene.workload, xy=(0.03, 0.03), xycoords="axes fraction", color=style.MUTED)
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
    labels = _end_labels(last.rows(metric), last.models, size, lambda ratio: f"{100 * ratio:.0f} %")
    label_ends(panels[-1], labels)
    return figure


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
    rows: pd.DataFrame, models: Lineup, size: float, describe: Callable[[float], str]
) -> list[Label]:
    """Each model's name and value at the end of its line, in units of `size`."""
    labels = []
    for index, model in enumerate(models.models):
        mine = rows[rows["model"] == model].sort_values("context_len")
        if mine.empty:
            continue
        length, value = int(mine["context_len"].iloc[-1]), float(mine["value"].iloc[-1])
        text = f"{models.labels[model]}\n{describe(value)}"
        labels.append(Label(length, value / size, text, style.look(index).text))
    return labels


def _draw_lines(axes: Axes, rows: pd.DataFrame, models: Lineup, size: float) -> None:
    """A line a model, in units of `size`, with its interval at each point."""
    for index, model in enumerate(models.models):
        mine = rows[rows["model"] == model].sort_values("context_len")
        look = style.look(index)
        x = [int(length) for length in mine["context_len"]]
        value, low, high = ([float(item) / size for item in mine[name]] for name in ("value", "low", "high"))
        axes.plot(
            x, value, color=look.line, marker=look.marker, markeredgecolor=style.PAPER, markeredgewidth=0.4
        )
        axes.vlines(x, low, high, color=look.line, linewidth=0.8)
        for end in (low, high):
            axes.plot(x, end, "_", color=look.line, markersize=5, markeredgewidth=0.8, zorder=1.9)


def _mark_failures(axes: Axes, scene: Scene) -> None:
    """Above the plot, a row a model: a cross at every length without a value, and the reason."""
    place = axes.get_xaxis_transform()
    height_pt = axes.bbox.height / axes.figure.dpi * style.POINTS_PER_IN
    above_pt = 3.5
    for index, model in enumerate(scene.models.models):
        failed = scene.failed[scene.failed["model"] == model].sort_values("context_len")
        if failed.empty:
            continue
        lengths, look = [int(length) for length in failed["context_len"]], style.look(index)
        y = 1 + above_pt / height_pt
        above_pt += 6.0
        axes.plot(lengths, [y] * len(lengths), "x", color=look.line, transform=place, clip_on=False)
        left = lengths[0] > min(scene.lengths)
        axes.annotate(
            describe_status(str(failed["status"].iloc[0])),
            xy=(lengths[0] if left else lengths[-1], y),
            xycoords=place,
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=6.0,
            color=look.text,
            annotation_clip=False,
        )


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
