"""The figures of cost: which are drawn from the records of which workload, with title, caption and data.

The metrics of a workload decide on its figure: a time becomes curves against the context length, memory becomes
stacked bars, and a workload that measures both becomes two rows. `score_figures` draws quality, `figure6` the RetNet
paper's Figure 6.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.report import memory_figure, style
from retbench.report.comparisons import LINEAR_MARGIN, Line, find_crossover, fit_line
from retbench.report.curves import (
    DATA_COLUMNS,
    DOTTED,
    MEMORY_UNITS,
    RATE_UNITS,
    TIME_UNITS,
    Panel,
    Point,
    draw_column,
    draw_row,
    end_labels,
    frame_points,
    highest,
    with_failures,
    with_length,
)
from retbench.report.figure6 import draw_figure6
from retbench.report.labels import CORNERS, add_note, add_text, beside, shorten
from retbench.report.selection import Selection
from retbench.report.style import Drawing
from retbench.report.sweeps import CostSweep, by_workload, make_sweeps, swept_by_batch
from retbench.report.wording import (
    describe_absence,
    describe_crossover,
    file_stem,
    section_title,
)
from retbench.stats.intervals import Crossover
from retbench.units import format_bytes, format_rate, format_seconds, format_tokens
from retbench.workloads.workload import WORKLOADS, Workload

_POINTS = (
    "Points are geometric means of the rounds' medians, bars their 95 % intervals (often narrower than the marker; "
    "cut where they leave the plot)."
)
_MOST_CROSSINGS = 2
"""Crossovers that have room in a figure; more of them stand in its data and in the tables only."""
_TALLEST = 2.0
"""Highest memory that is drawn over the highest one that is linear in the length, as a ratio."""


def make_drawings(selection: Selection) -> list[Drawing]:
    """Return every figure that the records of a selection allow, in the order of the report."""
    sweeps = make_sweeps(selection)
    with style.house_style():
        groups = by_workload(sweeps)
        by_name = [
            drawing
            for workload in WORKLOADS.values()
            for group in groups
            if group[0].workload == workload.name
            for drawing in _of_workload(group, workload)
        ]
        return [*by_name, *draw_figure6(sweeps), *_rooflines(sweeps)]


def _of_workload(sweeps: Sequence[CostSweep], workload: Workload) -> list[Drawing]:
    """Return the figures of one experiment's sweeps of a workload."""
    metrics = {metric.name for metric in workload.metrics}
    if workload.primary.name == "peak_bytes":
        return [_memory(sweep, workload) for sweep in sweeps]
    if {"tokens_per_s", "peak_bytes"} <= metrics:
        return [_training(sweep, workload) for sweep in sweeps]
    if not workload.primary.has_interval:
        return []
    if "tokens_per_s" in metrics and swept_by_batch(sweeps):
        return [_throughput(sweeps)]
    return [_times(sweep, workload) for sweep in sweeps]


def _panel(sweep: CostSweep, metric: str, title: str = "", **options: Any) -> Panel:
    """Return a metric of a sweep against the context length; the options are further fields of the panel."""
    points = frame_points(sweep.rows(metric), sweep.failed)
    return Panel(points, sweep.models, title, sweep.lengths, **options)


def _drawing(
    sweep: CostSweep, name: str, texts: tuple[str, str], figure: Figure, data: pd.DataFrame
) -> Drawing:
    """Return a drawing under the conditions of a sweep, with title and caption."""
    return Drawing(name, (sweep.experiment,), *texts, sweep.conditions, figure, data)


# ---- time against context length -------------------------------------------------------------------------------------


def _times(sweep: CostSweep, workload: Workload) -> Drawing:
    """Draw time against context length, with the crossovers."""
    metric, reference = workload.primary.name, str(sweep.models.reference)
    found = {
        model: find_crossover(sweep.metrics, metric, model, reference) for model in sweep.models.challengers
    }
    crossings = {model: crossing[1] for model, crossing in found.items() if crossing is not None}
    panel = _panel(sweep, metric, units=TIME_UNITS)
    figure = draw_row(
        [panel],
        (workload.title, f"{panel.unit}, {sweep.subtitle(metric)}", sweep.conditions),
        lambda point: with_length(format_seconds(point.value), point, sweep.lengths[-1]),
    )
    for model, crossing in crossings.items() if len(crossings) <= _MOST_CROSSINGS else ():
        _mark_crossing(figure.axes[0], crossing, sweep, model)
    caption = (
        f"{workload.quantity.capitalize()} against the context length, batch {sweep.batch_size}. {_POINTS}"
    )
    rows = [
        (model, "crossover_context_len", "tokens", found.value, found.low, found.high, found.kind)
        for model, found in crossings.items()
    ]
    return _drawing(sweep, sweep.name, (workload.title, caption), figure, _data(sweep, [metric], rows))


def _mark_crossing(axes: Axes, crossing: Crossover, sweep: CostSweep, model: str) -> None:
    """Mark where `model` becomes faster than the reference, its interval shaded, or say that there is no such place."""
    label = shorten(sweep.models.labels[model])
    if crossing.value is None:
        where = describe_absence(crossing, sweep.lengths)
        add_note(axes, f"{label} is\n{where}", CORNERS)
        return
    if crossing.low is not None and crossing.high is not None:
        axes.axvspan(crossing.low, crossing.high, color=style.GRID, linewidth=0, zorder=0)
    axes.axvline(crossing.value, color=style.MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
    add_note(axes, f"{label} faster from\n{describe_crossover(crossing)}", beside(crossing.value))


# ---- throughput against batch size, % of roofline --------------------------------------------------------------------


def _throughput(sweeps: Sequence[CostSweep]) -> Drawing:
    """Draw tokens/s against batch size, of one experiment, a panel per context length."""
    first, metric, axis = sweeps[0], "tokens_per_s", "batch_size"
    rows = pd.concat([sweep.rows(metric) for sweep in sweeps], ignore_index=True)
    failed = pd.concat([sweep.failed for sweep in sweeps], ignore_index=True)
    lengths = sorted({length for sweep in sweeps for length in sweep.lengths})
    batches, top = tuple(float(sweep.batch_size) for sweep in sweeps), highest(frame_points(rows, failed))
    panels = [
        Panel(
            frame_points(rows[rows["context_len"] == length], failed[failed["context_len"] == length], axis),
            first.models,
            format_tokens(length),
            batches,
            at_least=top,
        )
        for length in lengths
    ]
    title = f"{first.workload.capitalize()} throughput"
    subtitle = "; ".join(["tokens/s", *first.subtitle(metric).split("; ")[1:]])
    label = "batch size (log scale); one panel per context length"
    figure = draw_row(
        panels, (title, subtitle, first.conditions), lambda point: format_rate(point.value, "").strip(), label
    )
    caption = (
        f"Tokens/s of all sequences of a batch against the batch size, at each context length. {_POINTS}"
    )
    name = f"{file_stem(section_title(first.experiment, first.workload, '_'))}_throughput"
    data = [_data(sweep, [metric]).assign(batch_size=sweep.batch_size) for sweep in sweeps]
    return _drawing(first, name, (title, caption), figure, pd.concat(data, ignore_index=True))


def _rooflines(sweeps: Sequence[CostSweep]) -> list[Drawing]:
    """Draw % of roofline, one figure per experiment and batch size, one panel per workload."""
    timed = [
        sweep
        for group in by_workload(sweeps)
        if not swept_by_batch(group)
        for sweep in group
        if "roofline_ratio" in set(sweep.metrics["metric"])
    ]

    def place(sweep: CostSweep) -> tuple[str, int]:
        return sweep.experiment, sweep.batch_size

    return [_roofline(list(group)) for _, group in groupby(sorted(timed, key=place), place)]


def _roofline(sweeps: Sequence[CostSweep]) -> Drawing:
    first, metric, title = sweeps[0], "roofline_ratio", "% of roofline"
    longest = sweeps[-1].lengths[-1]
    panels = [_panel(s, metric, s.workload, units=((0.01, "%"),), at_least=1.0) for s in sweeps]
    figure = draw_row(
        panels,
        (title, f"%, {first.subtitle(metric)}", first.conditions),
        lambda point: with_length(f"{100 * point.value:.0f} %", point, longest),
    )
    for axes in figure.axes:
        axes.axhline(100, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
    at = ("axes fraction", "data")
    add_text(figure.axes[0], "ceiling", (0.03, 100), at, (0, 2), color=style.MUTED)
    caption = (
        "The least time that the bytes and operations of a point allow on this machine, as measured in the "
        f"same run, as a percentage of the measured time, batch {first.batch_size}. The dashed line is the ceiling "
        "of the machine."
    )
    name = f"{file_stem(first.experiment)}_roofline_batch{first.batch_size}"
    data = [_data(sweep, [metric]).assign(workload=sweep.workload) for sweep in sweeps]
    return _drawing(first, name, (title, caption), figure, pd.concat(data, ignore_index=True))


# ---- memory, and time with memory ------------------------------------------------------------------------------------


def _memory(sweep: CostSweep, workload: Workload) -> Drawing:
    """Draw memory by part."""
    caption = (
        "Bytes of the weights, of the recurrent state or the key-value cache, and of the workspace of "
        f"one decode step at each context length, batch {sweep.batch_size}. The thin line is the analytical size of "
        "weights and state."
    )
    data = with_failures(memory_figure.memory_rows(sweep), sweep.failed, memory_figure.PARTS)
    figure = memory_figure.draw_memory(sweep, workload.title)
    return _drawing(sweep, sweep.name, (workload.title, caption), figure, data.reindex(columns=DATA_COLUMNS))


def _training(sweep: CostSweep, workload: Workload) -> Drawing:
    """Draw speed and peak memory of training."""
    lines = {
        model: line for model in sweep.models.models if (line := fit_line(sweep.points, "peak_bytes", model))
    }
    caption = (
        "Tokens/s and peak memory of a whole training step (forward, backward, AdamW) on sequences of "
        f"each length, batch {sweep.batch_size}. Points are geometric means of the rounds' medians, bars their 95 % "
        "intervals. Memory is weights, gradients, the optimizer's averages, activations and temporaries. A dotted "
        "line is the linear fit of a memory that differs from it by at most "
        f"{100 * LINEAR_MARGIN:.0f} % at every point. Memory far above these leaves the plot; its value is beside its "
        "name."
    )
    rows = [
        (model, f"fitted_{name}", unit, value, None, None, "linear" if line.fits else "not linear")
        for model, line in lines.items()
        for name, unit, value in (
            ("slope_bytes_per_token", "bytes/token", line.slope),
            ("intercept_bytes", "bytes", line.intercept),
            ("largest_residual_ratio", "ratio", line.largest_residual),
        )
    ]
    figure = _draw_training(
        sweep, workload.title, {model: line for model, line in lines.items() if line.fits}
    )
    data = _data(sweep, ["tokens_per_s", "peak_bytes"], rows)
    return _drawing(sweep, sweep.name, (workload.title, caption), figure, data)


def _draw_training(sweep: CostSweep, title: str, linear: Mapping[str, Line]) -> Figure:
    """Draw tokens/s above peak memory, with the lines of the models whose memory is linear in the length."""

    def describe_speed(point: Point) -> str:
        return with_length(f"{point.value:,.0f} tokens/s", point, sweep.lengths[-1])

    def describe_memory(point: Point) -> str:
        words = with_length(format_bytes(point.value), point, sweep.lengths[-1])
        line = linear.get(point.model)
        return f"{words}\n{format_bytes(line.slope)} per token" if line else words

    speed = _panel(sweep, "tokens_per_s", "{unit}", units=RATE_UNITS)
    memory = _memory_panel(sweep, linear)
    subtitle = sweep.subtitle("step_s") + ("; dotted: linear fit" if linear else "")
    figure = draw_column(
        [speed, memory],
        [end_labels(speed, describe_speed), end_labels(memory, describe_memory)],
        (title, subtitle, sweep.conditions),
        [style.LENGTH_LABEL] * 2,
    )
    for line in linear.values():
        x = [0.0, float(line.lengths[-1])]
        y = [(line.intercept + line.slope * length) / memory.size for length in x]
        figure.axes[1].plot(x, y, color=style.INK, linewidth=0.8, linestyle=DOTTED, zorder=2.5)
    return figure


def _memory_panel(sweep: CostSweep, linear: Mapping[str, Line]) -> Panel:
    """Return peak memory; values far above the linear ones, which would flatten those, leave the panel."""
    panel = _panel(sweep, "peak_bytes", "peak memory, {unit}", units=MEMORY_UNITS)
    values = [point.value for point in panel.measured if point.model in linear]
    return replace(panel, at_most=_TALLEST * max(values)) if values else panel


# ---- the data beside the figures -------------------------------------------------------------------------------------


def _data(sweep: CostSweep, metrics: list[str], more: Sequence[tuple[object, ...]] = ()) -> pd.DataFrame:
    """Return the points of some metrics, those that failed, and `more` rows, of what was computed from all."""
    rows = sweep.points[sweep.points["metric"].isin(metrics)]
    data = with_failures(rows, sweep.failed, metrics).reindex(columns=DATA_COLUMNS)
    columns = ["model", "metric", "unit", "value", "low", "high", "status"]
    computed = pd.DataFrame(list(more), columns=columns).reindex(columns=DATA_COLUMNS).astype(data.dtypes)
    return pd.concat([data, computed], ignore_index=True)
