"""The memory figure: stacked bars of weights, state or cache, and workspace against the context length."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import ValidationError

from retbench.architectures import costs, recorded
from retbench.architectures.configs import parse_model_config
from retbench.mixers.mixer import DTYPE_BYTES
from retbench.records.record import Record
from retbench.report import style
from retbench.report.curves import DOTTED, MEMORY_UNITS, describe_crosses, unit_for
from retbench.report.labels import add_text, shorten
from retbench.report.sweeps import CostSweep
from retbench.units import format_bytes, format_tokens

PARTS = ("weight_bytes", "state_bytes", "workspace_bytes")
EXPECTED = "expected_weight_and_state_bytes"
"""Analytical size of what a bar shows without the workspace."""
_PANEL_IN, _GAP_IN = 1.72, 0.42
_MOST_COLUMNS = 2


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
    dtype, point = str(record.settings.get("dtype")), record.point
    try:
        config = parse_model_config(record.model.config)
    except ValidationError:  # an architecture that this version has no formula for
        return None
    if dtype not in DTYPE_BYTES:
        return None
    state = costs.state_bytes(config, dtype, point.batch_size, point.context_len + 1)
    return costs.weight_bytes(config, dtype) + state


def draw_memory(sweep: CostSweep, title: str) -> Figure:
    """Draw a panel per model and a bar per length; a thin dotted line is the analytical size."""
    rows = memory_rows(sweep)
    totals = rows[rows["metric"] != EXPECTED].groupby(["model", "context_len"])["value"].sum()
    largest = max([*totals, *rows["value"], 0.0])
    size, unit = unit_for(largest, MEMORY_UNITS)
    crosses = describe_crosses(sweep.failed["status"])
    subtitle = "; ".join([f"{unit}, batch {sweep.batch_size}", "dotted: analytical", *crosses])
    figure, panels = _add_grid(len(sweep.models.models), (title, subtitle, sweep.conditions))
    for index, (axes, model) in enumerate(zip(panels, sweep.models.models, strict=True)):
        look, mine = style.look(index), rows[rows["model"] == model]
        style.set_length_axis(axes, sweep.lengths)
        style.set_value_axis(axes, largest / size)
        _draw_bars(axes, mine, look, size)
        expected = mine[mine["metric"] == EXPECTED].sort_values("context_len")
        _draw_expected(axes, expected, size)
        failed = sweep.failed[sweep.failed["model"] == model]
        _draw_crosses(axes, failed, expected, size)
        label = shorten(sweep.models.labels[model])
        axes.set_title(label, fontsize=6.8, color=look.text, loc="left", pad=3, fontweight="bold")
        parts, names = mine[mine["metric"] != EXPECTED], ("weights", _state_name(sweep, model), "workspace")
        _name_parts(axes, parts, look, names)
        _mark_bars(axes, model, sweep.models.labels[model], parts, names, size)
        style.tag(axes, model, [*axes.patches, *axes.lines, *axes.texts, axes.title])
    return figure


def _mark_bars(
    axes: Axes, model: str, label: str, parts: pd.DataFrame, names: Sequence[str], size: float
) -> None:
    """Add the values of each bar: the sum, and each part."""
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
    return "KV cache" if found and recorded.has_cache(found.architecture, found.config) else "state"


def _add_grid(count: int, texts: tuple[str, str, str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels in rows of at most two."""
    columns, num_rows = min(count, _MOST_COLUMNS), -(-count // _MOST_COLUMNS)
    height_in = style.HEADER_IN + style.BASE_IN + num_rows * (_PANEL_IN + _GAP_IN) - _GAP_IN
    figure = style.new_figure(height_in, *texts)
    labels = [""] * (num_rows - 1) + [style.LOG_LENGTH_LABEL]
    panels = style.add_panels(figure, [1] * columns, labels, right_in=0.1, gap_in=_GAP_IN)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _draw_bars(axes: Axes, rows: pd.DataFrame, look: style.Look, size: float) -> None:
    """Draw bars stacked from weights up; a bar spans the same part of the logarithmic axis at every length."""
    parts = rows[rows["metric"] != EXPECTED].pivot(index="context_len", columns="metric", values="value")
    for length, row in parts.iterrows():
        left, bottom = float(str(length)) * 2**-0.3, 0.0
        for part, colour in zip(PARTS, (style.NEUTRAL, look.line, look.tint), strict=True):
            height = float(row.get(part, 0.0)) / size
            axes.bar(left, height, width=left * (2**0.6 - 1), bottom=bottom, align="edge", color=colour)
            bottom += height


def _draw_expected(axes: Axes, expected: pd.DataFrame, size: float) -> None:
    x = [int(length) for length in expected["context_len"]]
    y = [float(value) / size for value in expected["value"]]
    axes.plot(x, y, color=style.INK, linewidth=0.8, linestyle=DOTTED, zorder=4)
    if len(x) == 1:
        axes.plot(x, y, "_", color=style.INK, zorder=4)


def _draw_crosses(axes: Axes, failed: pd.DataFrame, expected: pd.DataFrame, size: float) -> None:
    """Draw a cross on the analytical size at every failed length; on the axis if there is no analytical size."""
    needed = dict(zip(expected["context_len"], expected["value"], strict=True))
    for length in failed["context_len"]:
        y = float(needed.get(length, 0.0)) / size
        axes.plot([int(length)], [y], "x", color=style.INK, zorder=5, clip_on=False)


def _name_parts(axes: Axes, rows: pd.DataFrame, look: style.Look, parts: Sequence[str]) -> None:
    """Write names and sizes of the parts of the bar at the longest context into the upper left corner."""
    bar = rows[rows["context_len"] == rows["context_len"].max()].set_index("metric")["value"]
    names = zip(PARTS, parts, (style.MUTED, look.text, look.text), strict=True)
    texts = [
        (f"{name} {format_bytes(float(bar[part]))}", colour) for part, name, colour in names if part in bar
    ]
    for line, (text, colour) in enumerate(reversed(texts)):
        offset_pt = (0, -6 - 8.5 * line)
        add_text(axes, text, (0.03, 1), "axes fraction", offset_pt, color=colour, fontweight="bold")
