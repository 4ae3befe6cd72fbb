"""Figures of times and shares of the roofline against context length, and of throughput against batch size."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.report import style
from retbench.report.labels import CORNERS, add_note, beside, label_ends
from retbench.report.lines import (
    describe_crosses,
    describe_rate,
    draw_crosses,
    draw_lines,
    end_labels,
    highest,
    margin_in,
    margin_labels,
    mark_failures,
    time_unit,
)
from retbench.report.sweeps import CostSweep
from retbench.report.wording import describe_absence, describe_crossover, rounds_disagree
from retbench.stats.intervals import Crossover
from retbench.units import format_seconds, format_tokens

HEIGHT_IN = 2.75


def draw_times(scene: CostSweep, metric: str, title: str, crossings: Mapping[str, Crossover]) -> Figure:
    """All models' times against context length.

    Args:
        scene: What is drawn.
        metric: Which time.
        title: The heading.
        crossings: Where each model overtakes the reference.
    """
    rows = scene.rows(metric)
    top = highest(rows)
    size, unit = time_unit(top)
    subtitle = f"{unit}, {scene.subtitle(metric)}"
    figure = style.new_figure(HEIGHT_IN, title, subtitle, scene.conditions)
    (axes,) = style.add_panels(figure, [1], right_in=margin_in(scene.models))
    style.set_length_axis(axes, scene.lengths)
    style.set_value_axis(axes, top / size)
    axes.yaxis.set_visible(not rows.empty)
    draw_lines(axes, rows, scene.models, size)
    label_ends(axes, end_labels(rows, scene.models, size, format_seconds))
    mark_failures(axes, scene.failed, scene.models, scene.lengths[0])
    for model, crossing in crossings.items():
        _mark_crossing(axes, crossing, scene, model)
    return figure


def draw_roofline(scenes: Sequence[CostSweep], title: str) -> Figure:
    """The share of what the machine could do at best that each point reached, a panel a workload."""
    first, metric, size = scenes[0], "roofline_ratio", 0.01
    figure = style.new_figure(HEIGHT_IN, title, f"%, {first.subtitle(metric)}", first.conditions)
    shares = [2 + len(scene.lengths) for scene in scenes]
    panels = style.add_panels(figure, shares, right_in=margin_in(first.models))
    top = max([1.0, *(highest(scene.rows(metric)) for scene in scenes)])
    for axes, scene in zip(panels, scenes, strict=True):
        style.set_length_axis(axes, scene.lengths)
        style.set_value_axis(axes, top / size)
        axes.axhline(1 / size, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
        draw_lines(axes, scene.rows(metric), scene.models, size)
        mark_failures(axes, scene.failed, scene.models, scene.lengths[0])
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
    labels = margin_labels(
        last.rows(metric), last.models, last.lengths[-1], lambda ratio: f"{100 * ratio:.0f} %"
    )
    label_ends(panels[-1], [replace(label, x=edge, y=label.y / size) for label in labels])
    for axes, scene in zip(panels, scenes, strict=True):
        add_note(axes, scene.workload, (*CORNERS[1:], CORNERS[0]))
    return figure


def draw_throughput(scenes: Sequence[CostSweep], title: str) -> Figure:
    """All models' tokens/s against batch size, a panel a context length.

    Args:
        scenes: Of one experiment and workload, one a batch size.
        title: The heading.
    """
    first, metric, axis = scenes[0], "tokens_per_s", "batch_size"
    rows = pd.concat([scene.rows(metric) for scene in scenes], ignore_index=True)
    failed = pd.concat([scene.failed for scene in scenes], ignore_index=True)
    lengths = sorted({length for scene in scenes for length in scene.lengths})
    subtitle = "; ".join(["tokens/s", *first.subtitle(metric).split("; ")[1:], *describe_crosses(failed)])
    figure = style.new_figure(HEIGHT_IN, title, subtitle, first.conditions)
    panels = style.add_panels(
        figure,
        [1] * len(lengths),
        right_in=margin_in(first.models),
        label="batch size (log scale); a panel a context",
    )
    for axes, length in zip(panels, lengths, strict=True):
        style.set_length_axis(axes, [scene.batch_size for scene in scenes])
        style.set_value_axis(axes, highest(rows))
        axes.yaxis.set_visible(not rows.empty)
        draw_lines(axes, rows[rows["context_len"] == length], first.models, 1.0, axis)
        draw_crosses(axes, failed[failed["context_len"] == length], first.models, axis)
        axes.annotate(
            format_tokens(length), xy=(0.05, 0.98), xycoords="axes fraction", va="top", color=style.MUTED
        )
    last = rows[rows["context_len"] == lengths[-1]]
    label_ends(panels[-1], end_labels(last, first.models, 1.0, describe_rate, axis))
    return figure


def _mark_crossing(axes: Axes, crossing: Crossover, scene: CostSweep, model: str) -> None:
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
