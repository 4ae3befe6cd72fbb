"""The memory figure: weights, state or cache, and workspace on top of each other, against the context length."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.architectures import recorded
from retbench.records.record import Record
from retbench.report.figures import style
from retbench.report.figures.curves import describe_crosses
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.labels import add_text, shorten
from retbench.report.figures.lengths import draw_batches
from retbench.report.figures.looks import Look, look_of
from retbench.report.figures.panels import MEMORY_UNITS, batch_panels, unit_for
from retbench.report.sweeps import (
    DATA_COLUMNS,
    CostSweep,
    describe_batches,
    name_of,
    stack_data,
    subtitle_of,
    with_failures,
)
from retbench.units import format_bytes, format_tokens
from retbench.workloads.workload import Workload

PARTS = ("weight_bytes", "state_bytes", "workspace_bytes")
EXPECTED = "expected_weight_and_state_bytes"
"""Analytical size of the stacked areas without the workspace."""
_PANEL_IN, _GAP_IN = 1.72, 0.42
_MOST_COLUMNS = 2
_NAMES_FROM = 0.65
"""Height of the lowest name of a part, as a share of the axes."""
_MOST_PANELS = 4
"""Panels that have room; for more of them only sums are drawn."""


def memory_rows(sweep: CostSweep) -> pd.DataFrame:
    """Return one row per (model, length, part) in bytes, the analytical size included.

    The analytical size is there also where the measurement failed: it says what would have been needed.
    """
    columns = ["model", "context_len", "metric", "unit", "value"]
    sizes = {
        (record.model.name, record.point.context_len): _analytical_bytes(record) for record in sweep.records
    }
    expected = [
        (model, length, EXPECTED, "bytes", value)
        for (model, length), value in sorted(sizes.items())
        if value is not None
    ]
    measured = sweep.points[sweep.points["metric"].isin(PARTS)]
    return pd.concat([measured[columns], pd.DataFrame(expected, columns=columns)], ignore_index=True)


def _analytical_bytes(record: Record) -> int | None:
    """Return the bytes of weights and of state or cache after one step; None where no formula is known."""
    dtype, point, model = str(record.settings.get("dtype")), record.point, record.model
    weights = recorded.weight_bytes(model, dtype)
    state = recorded.state_bytes(model, dtype, point.context_len + 1, point.batch_size)
    return None if weights is None or state is None else weights + state


def draw_memory(sweeps: Sequence[CostSweep], workload: Workload) -> Drawing:
    """Draw memory by part, or the sum of the parts if there are too many models and batch sizes for that."""
    if sum(len(sweep.models.models) for sweep in sweeps) > _MOST_PANELS:
        return _draw_sums(sweeps, workload)
    view, figure = _draw_by_part(sweeps, workload)
    data = [
        with_failures(memory_rows(sweep), sweep.failed, PARTS).reindex(columns=DATA_COLUMNS)
        for sweep in sweeps
    ]
    return view.drawing(figure, stack_data(sweeps, data))


def _draw_sums(sweeps: Sequence[CostSweep], workload: Workload) -> Drawing:
    """Draw a curve per model, a panel per batch size, on logarithmic axes."""
    metric, first = workload.primary, sweeps[0]
    panels = batch_panels(sweeps, metric)
    caption = (
        "Bytes of weights, recurrent state or key-value cache, and workspace of one decode step together at each "
        f"context length, {describe_batches(sweeps)}; both axes are logarithmic. The table has each part."
    )
    subtitle = subtitle_of(panels[0].unit, sweeps, metric.name)
    view = View(name_of(sweeps), workload.title, subtitle, caption, first.records, first.models)
    data = stack_data(sweeps, [sweep.data([metric.name]) for sweep in sweeps])
    return view.drawing(next(draw_batches(panels, view.texts, metric)), data)


def _draw_by_part(sweeps: Sequence[CostSweep], workload: Workload) -> tuple[View, Figure]:
    """Draw a panel per model and batch size on linear axes; a thin dotted line is the analytical size."""
    rows = [memory_rows(sweep) for sweep in sweeps]
    tops = [_largest(each) for each in rows]
    size, unit = unit_for(max(tops), MEMORY_UNITS)
    several = len(sweeps) > 1
    failed = [status for sweep in sweeps for status in sweep.failed["status"]]
    batch = unit if several else f"{unit}, batch {sweeps[0].batch_size}"
    has_expected = any((each["metric"] == EXPECTED).any() for each in rows)
    view = View(
        name=name_of(sweeps),
        title=workload.title,
        subtitle="; ".join(
            [batch, *(["dotted: analytical"] if has_expected else []), *describe_crosses(failed)]
        ),
        caption="Bytes of the weights, of the recurrent state or the key-value cache, and of the workspace of "
        f"one decode step at each context length, {describe_batches(sweeps)}."
        + (" The thin line is the analytical size of weights and state." if has_expected else ""),
        records=sweeps[0].records,
        models=sweeps[0].models,
    )
    places = [
        (sweep, each, model)
        for sweep, each in zip(sweeps, rows, strict=True)
        for model in sweep.models.models
    ]
    num_columns, num_rows = min(len(places), _MOST_COLUMNS), -(-len(places) // _MOST_COLUMNS)
    figure, panels = style.new_panels(
        view.texts,
        [1] * num_columns,
        [""] * (num_rows - 1) + [style.LENGTH_LABEL],
        row_in=_PANEL_IN,
        gap_in=_GAP_IN,
        count=len(places),
    )
    for axes, (sweep, each, model) in zip(panels, places, strict=True):
        style.set_linear_length_axis(axes, sweep.lengths)
        style.set_value_axis(axes, max(tops) / size)
        _draw_model(axes, sweep, each[each["model"] == model], model, size)
        look = look_of(sweep.models, model)
        label = shorten(sweep.models.labels[model]) + (f", batch {sweep.batch_size}" if several else "")
        heading = axes.set_title(label, color=look.text, pad=3)
        style.tag(axes, model, [*axes.patches, *axes.collections, *axes.lines, *axes.texts, heading])
    return view, figure


def _largest(rows: pd.DataFrame) -> float:
    """Return the largest sum of parts or analytical size."""
    totals = rows[rows["metric"] != EXPECTED].groupby(["model", "context_len"])["value"].sum()
    return float(max([*totals, *rows["value"], 0.0]))


def _draw_model(axes: Axes, sweep: CostSweep, rows: pd.DataFrame, model: str, size: float) -> None:
    """Draw the parts of one model, their analytical size and what failed, with the names of the parts."""
    look = look_of(sweep.models, model)
    measured = rows[rows["metric"] != EXPECTED]
    expected = rows[rows["metric"] == EXPECTED].sort_values("context_len")
    _draw_parts(axes, measured, look, size)
    _draw_expected(axes, expected, size)
    _draw_crosses(axes, sweep.failed[sweep.failed["model"] == model], expected, size)
    names = ("weights", _state_name(sweep, model), "workspace")
    _name_parts(axes, measured, look, names, is_left=not _rises_on_the_left(axes, rows, size))
    _mark_sums(axes, model, sweep.models.labels[model], measured, names, size)


def _mark_sums(
    axes: Axes, model: str, label: str, parts: pd.DataFrame, names: Sequence[str], size: float
) -> None:
    """Add the values at each length: the sum, and each part."""
    for length, bar in parts.groupby("context_len"):
        values = bar.set_index("metric")["value"]
        named = [(name, part) for part, name in zip(PARTS, names, strict=True) if part in values]
        found = [f"{name} {format_bytes(values[part])}" for name, part in named]
        total = float(values.sum())
        text = f"{label}, {format_tokens(int(str(length)))}: {format_bytes(total)} ({', '.join(found)})"
        style.mark(axes, model, (float(str(length)), total / size), text)


def _state_name(sweep: CostSweep, model: str) -> str:
    # A model of the experiment may have no record of this workload.
    found = next((record.model for record in sweep.records if record.model.name == model), None)
    return "KV cache" if found and recorded.has_cache(found) else "state"


def _draw_parts(axes: Axes, rows: pd.DataFrame, look: Look, size: float) -> None:
    """Draw areas stacked from weights up; a bar where there is only one length."""
    parts = (
        rows.pivot(index="context_len", columns="metric", values="value")
        .reindex(columns=list(PARTS))
        .fillna(0.0)
        .astype("float64")  # also where a record has none of the parts
    )
    lengths, colours = [float(str(length)) for length in parts.index], (style.NEUTRAL, look.line, look.tint)
    if len(lengths) == 1:
        half = 0.04 * axes.get_xlim()[1]
        parts, lengths = pd.concat([parts, parts]), [lengths[0] - half, lengths[0] + half]
    if lengths:
        areas = [parts[part].to_numpy(dtype=float) / size for part in PARTS]
        axes.stackplot(lengths, areas, colors=colours, linewidth=0)


def _draw_expected(axes: Axes, expected: pd.DataFrame, size: float) -> None:
    x = [int(length) for length in expected["context_len"]]
    y = [float(value) / size for value in expected["value"]]
    axes.plot(x, y, **style.DOTTED, zorder=4)
    if len(x) == 1:
        axes.plot(x, y, "_", color=style.INK, zorder=4)


def _draw_crosses(axes: Axes, failed: pd.DataFrame, expected: pd.DataFrame, size: float) -> None:
    """Draw a cross on the analytical size at every failed length; on the axis if there is no analytical size."""
    needed = dict(zip(expected["context_len"], expected["value"], strict=True))
    for length in failed["context_len"]:
        y = float(needed.get(length, 0.0)) / size
        axes.plot([int(length)], [y], "x", color=style.INK, zorder=5, clip_on=False)


def _rises_on_the_left(axes: Axes, rows: pd.DataFrame, size: float) -> bool:
    """Return whether a sum of parts or analytical size in the left half reaches where names of parts stand."""
    sums = rows.groupby(["context_len", rows["metric"] == EXPECTED])["value"].sum()
    left, high = axes.get_xlim()[1] / 2, _NAMES_FROM * axes.get_ylim()[1]
    return bool(((sums.index.get_level_values("context_len") < left) & (sums / size > high)).any())


def _name_parts(axes: Axes, rows: pd.DataFrame, look: Look, parts: Sequence[str], *, is_left: bool) -> None:
    """Write names and sizes of the parts of the bar at the longest context into one of the upper corners."""
    bar = rows[rows["context_len"] == rows["context_len"].max()].set_index("metric")["value"]
    names = zip(PARTS, parts, (style.MUTED, look.text, look.text), strict=True)
    texts = [
        (f"{name} {format_bytes(float(bar[part]))}", colour) for part, name, colour in names if part in bar
    ]
    for line, (text, colour) in enumerate(reversed(texts)):
        offset_pt = (0, -6 - 8.5 * line)
        # Lines of the grid end before the words, which they would strike out.
        options = {
            "color": colour,
            "fontweight": "bold",
            "bbox": {"facecolor": style.PAPER, "linewidth": 0, "pad": 0.6},
            "ha": "left" if is_left else "right",
        }
        add_text(axes, text, (0.03 if is_left else 0.97, 1), "axes fraction", offset_pt, **options)
