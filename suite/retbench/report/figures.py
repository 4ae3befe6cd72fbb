"""The figures of cost: which are drawn from the records of which workload, with title, caption and data.

The metrics of a workload decide on its figure: a time becomes curves against the context length, memory becomes
stacked bars, and a workload that measures both becomes two rows (`training_figure`). `score_figures` draws quality,
`figure6` the RetNet paper's Figure 6.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.report import memory_figure, style
from retbench.report.comparisons import find_primary_crossover
from retbench.report.curves import draw_row, with_length
from retbench.report.drawing import Drawing
from retbench.report.figure6 import draw_figure6
from retbench.report.labels import CORNERS, add_note, add_text, beside, shorten
from retbench.report.panels import (
    PERCENT,
    Panel,
    Point,
    frame_points,
    highest,
    sweep_panel,
    units_of,
)
from retbench.report.points import group, state_bytes_of
from retbench.report.provenance import describe_conditions
from retbench.report.readable_tables import format_metric
from retbench.report.selection import Selection
from retbench.report.sweeps import (
    DATA_COLUMNS,
    CostSweep,
    by_workload,
    describe_rounds,
    make_sweeps,
    swept_by_batch,
    with_failures,
)
from retbench.report.training_figure import draw_training
from retbench.report.wording import (
    crossing_ends,
    describe_absence,
    file_stem,
    format_length,
    join_words,
    with_interval,
)
from retbench.stats.intervals import Crossover
from retbench.units import format_rate, format_tokens
from retbench.workloads.workload import WORKLOADS, Workload

_POINTS = (
    "Points are geometric means of the rounds' medians, bars their 95 % intervals (often narrower than the marker; "
    "cut where they leave the plot)."
)
_CROSSOVERS = (
    "A crossover is the geometric mean of those of the rounds, each interpolated between the measured lengths, "
    "linearly on logarithmic axes; the lines of the means may cross elsewhere."
)
_NOTE_WIDTH = 26
"""Characters in a line of a note in a figure."""
_MOST_CROSSINGS = 2
"""Crossovers that have room in a figure; more of them stand in its data and in the tables only."""


def make_drawings(selection: Selection) -> list[Drawing]:
    """Return every figure that the records of a selection allow, in the order of the report."""
    sweeps = make_sweeps(selection)
    with style.house_style():
        by_name = [
            drawing
            for workload in WORKLOADS.values()
            for of_one in by_workload(sweeps)
            if of_one[0].workload == workload.name
            for drawing in _of_workload(of_one, workload)
        ]
        return [*by_name, *draw_figure6(sweeps), *_rooflines(sweeps)]


def _of_workload(sweeps: Sequence[CostSweep], workload: Workload) -> list[Drawing]:
    """Return the figures of one experiment's sweeps of a workload."""
    metrics = {metric.name for metric in workload.metrics}
    if workload.primary.name == "peak_bytes":
        return [_memory(sweeps, workload)]
    if {"tokens_per_s", "peak_bytes"} <= metrics:
        return [draw_training(sweep, workload) for sweep in sweeps]
    if not workload.primary.has_interval:
        return []
    if workload.primary.name == "tokens_per_s":
        by_batch = [_throughput(sweeps)] if swept_by_batch(sweeps) else []
        return [*by_batch, *_throughput_by_state(sweeps, workload)]
    if "tokens_per_s" in metrics and swept_by_batch(sweeps):
        return [_throughput(sweeps)]
    return [_lengths(sweeps, workload)] if units_of(workload.primary.name) else []


def _drawing(
    sweep: CostSweep, name: str, texts: tuple[str, str], figure: Figure, data: pd.DataFrame
) -> Drawing:
    """Return a drawing under the conditions of a sweep, with title and caption."""
    return Drawing(name, (sweep.experiment,), *texts, sweep.conditions, figure, data)


# ---- a metric against context length ---------------------------------------------------------------------------------


def _lengths(sweeps: Sequence[CostSweep], workload: Workload) -> Drawing:
    """Draw the primary metric against context length on logarithmic axes, a panel per batch size, with crossovers."""
    first, metric = sweeps[0], workload.primary.name
    crossings = [_crossings(sweep) for sweep in sweeps]
    figure, unit = _draw_batches(sweeps, workload)
    # Without the crossovers: they are interpolated on logarithmic axes, so the lines meet elsewhere on linear ones.
    linear, _ = _draw_batches(sweeps, workload, is_linear=True)
    marked = [found if len(found) <= _MOST_CROSSINGS else {} for found in crossings]
    for axes, sweep, found in zip(figure.axes, sweeps, marked, strict=True):
        for model, crossing in found.items():
            _mark_crossing(axes, crossing, sweep, model, with_note=len(sweeps) == 1)
    has_crossing = any(crossing.value is not None for found in marked for crossing in found.values())
    caption = (
        f"{workload.quantity.capitalize()}, {unit}, against the context length, {_batches(sweeps)}. {_POINTS}"
        + (f" {_CROSSOVERS}" if has_crossing else "")
    )
    rows = [
        [
            (
                model,
                "crossover_context_len",
                "tokens",
                crossing.value,
                crossing.low,
                crossing.high,
                crossing.kind,
            )
            for model, crossing in found.items()
        ]
        for found in crossings
    ]
    data = [sweep.data([metric], more) for sweep, more in zip(sweeps, rows, strict=True)]
    drawing = _drawing(first, _name(sweeps), (workload.title, caption), figure, _stack(sweeps, data))
    return replace(drawing, linear=linear)


def _crossings(sweep: CostSweep) -> dict[str, Crossover]:
    """Return the crossover of each model with the reference, where both have two lengths."""
    found = {model: find_primary_crossover(sweep, model) for model in sweep.models.challengers}
    return {model: crossing[1] for model, crossing in found.items() if crossing is not None}


def _draw_batches(
    sweeps: Sequence[CostSweep], workload: Workload, *, is_linear: bool = False
) -> tuple[Figure, str]:
    """Draw the primary metric against the context length, a panel per batch size.

    Args:
        sweeps: One per batch size.
        workload: Their workload, whose primary metric has units.
        is_linear: Both axes are linear, else both are logarithmic.

    Returns:
        The figure, and the unit.
    """
    metric, several = workload.primary.name, len(sweeps) > 1
    units = units_of(metric)
    assert units is not None
    top = max(highest(frame_points(sweep.rows(metric))) for sweep in sweeps)
    panels = [
        sweep_panel(s, metric, f"batch {s.batch_size}" if several else "", units=units, at_least=top)
        for s in sweeps
    ]
    subtitle = _subtitle(panels[0].unit, sweeps[0], metric, several=several)
    figure = draw_row(
        panels,
        (workload.title, subtitle, sweeps[0].conditions),
        lambda point: with_length(format_metric(metric, point.value), point, sweeps[-1].lengths[-1]),
        style.LENGTH_LABEL if is_linear else style.LOG_LOG_LENGTH_LABEL,
        **_scales(is_linear=is_linear),
    )
    return figure, panels[0].unit


def _scales(*, is_linear: bool) -> dict[str, Any]:
    """Return the options of `draw_row` for axes that are both linear or both logarithmic."""
    return {"set_axis": style.set_linear_length_axis} if is_linear else {"scale": "log"}


def _subtitle(unit: str, sweep: CostSweep, metric: str, *, several: bool) -> str:
    """Return unit, batch size unless the panels name it, and the meaning of the error bars."""
    return (
        f"{unit}; {describe_rounds(sweep.rows(metric))}" if several else f"{unit}, {sweep.subtitle(metric)}"
    )


def _batches(sweeps: Sequence[CostSweep]) -> str:
    sizes = join_words([str(sweep.batch_size) for sweep in sweeps])
    return f"batch {sizes}" if len(sweeps) == 1 else f"a panel per batch size ({sizes})"


def _name(sweeps: Sequence[CostSweep]) -> str:
    """Return the name of the figure of sweeps that differ in the batch size."""
    return sweeps[0].name if len(sweeps) == 1 else sweeps[0].stem


def _stack(sweeps: Sequence[CostSweep], data: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the data of several sweeps in one table, with their batch size if they differ in it."""
    if len(data) == 1:
        return data[0]
    frames = [each.assign(batch_size=sweep.batch_size) for sweep, each in zip(sweeps, data, strict=True)]
    return pd.concat(frames, ignore_index=True)


def _mark_crossing(axes: Axes, crossing: Crossover, sweep: CostSweep, model: str, *, with_note: bool) -> None:
    """Mark where `model` becomes faster than the reference, its interval shaded; with a note, also if it does not."""
    label = shorten(sweep.models.labels[model])
    if crossing.value is None:
        words = f"{label} is {describe_absence(crossing, sweep.lengths)}"
        text, anchors = textwrap.fill(words, _NOTE_WIDTH), CORNERS
    else:
        if crossing.low is not None and crossing.high is not None:
            axes.axvspan(crossing.low, crossing.high, color=style.GRID, linewidth=0, zorder=0)
        axes.axvline(crossing.value, **style.GUIDE)
        length = with_interval(format_length(crossing.value), *crossing_ends(crossing))
        text = f"{label} faster from\n{length} tokens\n(interpolated)"
        anchors = (*beside(crossing.value), *CORNERS)
    if with_note:
        add_note(axes, text, anchors)


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
    subtitle = _subtitle("tokens/s", first, metric, several=True)
    figure, linear = (
        draw_row(
            panels,
            (title, subtitle, first.conditions),
            _describe_rate,
            f"batch size{'' if is_linear else ' (log scales)'}; one panel per context length",
            **_scales(is_linear=is_linear),
        )
        for is_linear in (False, True)
    )
    caption = (
        f"Tokens/s of all sequences of a batch against the batch size, at each context length. {_POINTS}"
    )
    data = [sweep.data([metric]).assign(batch_size=sweep.batch_size) for sweep in sweeps]
    all_data = pd.concat(data, ignore_index=True)
    return replace(
        _drawing(first, f"{first.stem}_throughput", (title, caption), figure, all_data), linear=linear
    )


def _throughput_by_state(sweeps: Sequence[CostSweep], workload: Workload) -> list[Drawing]:
    """Draw tokens/s of one experiment against the bytes of the state, a panel per batch size.

    Nothing is drawn of models whose state is not known analytically.
    """
    metric = workload.primary.name
    sized = [
        (sweep, _with_states(sweep.rows(metric), sweep), _with_states(sweep.failed, sweep))
        for sweep in sweeps
    ]
    known = [(sweep, rows, failed) for sweep, rows, failed in sized if len(rows) or len(failed)]
    if not known:
        return []
    first = known[0][0]
    top = max(highest(frame_points(rows)) for _, rows, _ in known)
    panels = [
        Panel(
            frame_points(rows, failed, axis="state_bytes"),
            sweep.models,
            f"batch {sweep.batch_size}",
            at_least=top,
        )
        for sweep, rows, failed in known
    ]
    title = f"{workload.title} against the size of the state"
    figure = draw_row(
        panels,
        (title, _subtitle("tokens/s", first, metric, several=True), first.conditions),
        _describe_rate,
        style.STATE_LABEL,
        style.set_bytes_axis,
        scale="log",
    )
    caption = (
        "Tokens/s of all sequences of a batch against the analytical bytes of state or key-value cache of one "
        "sequence, on logarithmic axes. One point per context length; a line joins those of a model, and a state of "
        "fixed size has them at one place. Bars are 95 % intervals."
    )
    name = _name([sweep for sweep, _, _ in known])
    frames = [with_failures(rows, failed, [metric]) for _, rows, failed in known]
    data = pd.concat(frames, ignore_index=True).reindex(columns=[*DATA_COLUMNS, "batch_size", "state_bytes"])
    return [_drawing(first, f"{name}_by_state", (title, caption), figure, data)]


def _describe_rate(point: Point) -> str:
    return format_rate(point.value, "").strip()


def _with_states(rows: pd.DataFrame, sweep: CostSweep) -> pd.DataFrame:
    """Return the points of a sweep with the bytes of their state, where these are known."""
    sizes = {(r.model.name, r.point.context_len): state_bytes_of(r) for r in sweep.records}
    keys = zip(rows["model"], rows["context_len"], strict=True)
    found = pd.Series([sizes[key] for key in keys], rows.index, dtype="float64")
    return rows.assign(state_bytes=found).dropna(subset="state_bytes")


def _rooflines(sweeps: Sequence[CostSweep]) -> list[Drawing]:
    """Draw % of roofline, one figure per experiment, one panel per workload and batch size."""
    timed = [
        sweep
        for of_one in by_workload(sweeps)
        if not swept_by_batch(of_one)
        for sweep in of_one
        if "roofline_ratio" in set(sweep.metrics["metric"])
    ]

    return [_roofline(of_one) for of_one in group(timed, lambda sweep: sweep.experiment).values()]


def _roofline(sweeps: Sequence[CostSweep]) -> Drawing:
    first, metric, title = sweeps[0], "roofline_ratio", "% of roofline"
    longest, several = sweeps[-1].lengths[-1], len({sweep.batch_size for sweep in sweeps}) > 1
    conditions = describe_conditions([record for sweep in sweeps for record in sweep.records], first.models)
    titles = [
        f"{sweep.workload}, batch {sweep.batch_size}" if several else sweep.workload for sweep in sweeps
    ]
    panels = [
        sweep_panel(sweep, metric, name, units=PERCENT, at_least=1.0)
        for sweep, name in zip(sweeps, titles, strict=True)
    ]
    figure = draw_row(
        panels,
        (title, _subtitle("%", first, metric, several=several), conditions),
        lambda point: with_length(f"{100 * point.value:.0f} %", point, longest),
    )
    for axes in figure.axes:
        axes.axhline(100, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
    at = ("axes fraction", "data")
    add_text(figure.axes[0], "ceiling", (0.03, 100), at, (0, 2), color=style.MUTED)
    caption = (
        "The least time that the bytes and operations of a point allow on this machine, as measured in the "
        f"same run, as a percentage of the measured time{'' if several else f', batch {first.batch_size}'}. The dashed "
        "line is the ceiling of the machine."
    )
    name = f"{file_stem(first.experiment)}_roofline{'' if several else f'_batch{first.batch_size}'}"
    data = [
        sweep.data([metric]).assign(workload=sweep.workload, batch_size=sweep.batch_size) for sweep in sweeps
    ]
    drawing = _drawing(first, name, (title, caption), figure, pd.concat(data, ignore_index=True))
    return replace(drawing, conditions=conditions)


# ---- memory ----------------------------------------------------------------------------------------------------------


def _memory(sweeps: Sequence[CostSweep], workload: Workload) -> Drawing:
    """Draw memory by part, or the sum of the parts if there are too many models and batch sizes for that."""
    if sum(len(sweep.models.models) for sweep in sweeps) > memory_figure.MOST_PANELS:
        figure, _ = _draw_batches(sweeps, workload)
        caption = (
            "Bytes of weights, recurrent state or key-value cache, and workspace of one decode step together at each "
            f"context length, {_batches(sweeps)}; both axes are logarithmic. The table has each part."
        )
    else:
        figure = memory_figure.draw_memory(sweeps, workload.title)
        caption = (
            "Bytes of the weights, of the recurrent state or the key-value cache, and of the workspace of "
            f"one decode step at each context length, {_batches(sweeps)}. The thin line is the analytical size of "
            "weights and state."
        )
    data = [
        with_failures(memory_figure.memory_rows(sweep), sweep.failed, memory_figure.PARTS).reindex(
            columns=DATA_COLUMNS
        )
        for sweep in sweeps
    ]
    return _drawing(sweeps[0], _name(sweeps), (workload.title, caption), figure, _stack(sweeps, data))
