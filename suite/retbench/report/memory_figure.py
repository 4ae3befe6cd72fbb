"""The memory figure: stacked bars of weights, state or cache, and workspace against the context length."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import ValidationError

from retbench.architectures import costs, registry
from retbench.architectures.configs import parse_model_config
from retbench.config.experiment import DTYPE_BYTES
from retbench.records.record import Record
from retbench.report import style
from retbench.report.curves import DOTTED
from retbench.report.labels import Label, add_text, label_ends, label_width_in
from retbench.report.scenes import Scene, describe_status
from retbench.units import GIB, MIB, format_bytes

PARTS = ("weight_bytes", "state_bytes", "workspace_bytes")
EXPECTED = "expected_weight_and_state_bytes"
"""Analytical size of what a bar shows without the workspace."""
_PANEL_IN, _GAP_IN = 1.72, 0.42
_MOST_COLUMNS = 2


class Part(NamedTuple):
    """One part of a bar: its name, its bytes and the colour of its name."""

    name: str
    num_bytes: float
    colour: str


def memory_rows(scene: Scene) -> pd.DataFrame:
    """Return one row per (model, length, part) in bytes, the analytical size included.

    The analytical size is there also where the measurement failed: it says what would have been needed.
    """
    columns = ["model", "context_len", "metric", "unit", "value"]
    sizes = {
        (record.model.name, record.point.context_len): _analytical_bytes(record) for record in scene.records
    }
    expected = [
        (model, length, EXPECTED, "bytes", value)
        for (model, length), value in sorted(sizes.items())
        if value is not None
    ]
    measured = scene.points[scene.points["metric"].isin(PARTS)]
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


def draw_memory(scene: Scene, title: str) -> Figure:
    """Draw a panel per model and a bar per length; a thin dotted line is the analytical size."""
    rows = memory_rows(scene)
    totals = rows[rows["metric"] != EXPECTED].groupby(["model", "context_len"])["value"].sum()
    largest = max([*totals, *rows["value"], 0.0])
    size, unit = (GIB, "GiB") if largest >= GIB else (MIB, "MiB")
    subtitle = f"{unit}, batch {scene.batch_size}; dotted: analytical size of weights and state"
    figure, panels = _add_grid(len(scene.models.models), (title, subtitle, scene.conditions))
    for index, (axes, model) in enumerate(zip(panels, scene.models.models, strict=True)):
        look, mine = style.look(index), rows[rows["model"] == model]
        style.set_length_axis(axes, scene.lengths)
        style.set_value_axis(axes, largest / size)
        _draw_bars(axes, mine, look, size)
        expected = mine[mine["metric"] == EXPECTED].sort_values("context_len")
        _draw_expected(axes, expected, size)
        failed = scene.failed[scene.failed["model"] == model]
        _mark_failures(axes, failed, expected, size)
        label = scene.models.labels[model]
        axes.set_title(label, fontsize=6.8, color=look.text, loc="left", pad=3, fontweight="bold")
        parts = _describe_parts(mine[mine["metric"] != EXPECTED], scene, model, look)
        is_last = index == len(panels) - 1 or (index + 1) % _MOST_COLUMNS == 0
        if is_last:
            _label_beside(axes, parts, size)
        else:
            _label_inside(axes, parts, size, has_crosses=not failed.empty)
    return figure


def _add_grid(count: int, texts: tuple[str, str, str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels in rows of at most two."""
    columns, num_rows = min(count, _MOST_COLUMNS), -(-count // _MOST_COLUMNS)
    pitch_in = _PANEL_IN + _GAP_IN
    height_in = style.HEADER_IN + style.BASE_IN + num_rows * pitch_in - _GAP_IN
    figure = style.new_figure(height_in, *texts)
    panels: list[Axes] = []
    for row in range(num_rows):
        is_lowest = row == num_rows - 1
        panels += style.add_panels(
            figure,
            [1] * columns,
            right_in=label_width_in(["workspace"]),
            label=style.LOG_LENGTH_LABEL if is_lowest else "",
            top_in=style.HEADER_IN + row * pitch_in,
            base_in=style.BASE_IN + (num_rows - 1 - row) * pitch_in,
        )
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


def _mark_failures(axes: Axes, failed: pd.DataFrame, expected: pd.DataFrame, size: float) -> None:
    """Draw a cross on the analytical size at every failed length, the reason beside the first.

    Without an analytical size the crosses stand on the axis.
    """
    needed = dict(zip(expected["context_len"], expected["value"], strict=True))
    for number, (length, status) in enumerate(zip(failed["context_len"], failed["status"], strict=True)):
        x, y = int(length), float(needed.get(length, 0.0)) / size
        axes.plot([x], [y], "x", color=style.INK, zorder=5, clip_on=False)
        if number == 0:
            is_left = len(expected) > 0 and x > min(expected["context_len"])
            side, offset_pt = ("right", (-5, 1)) if is_left else ("left", (-3, 8))
            words = describe_status(str(status))
            add_text(axes, words, (x, y), "data", offset_pt, color=style.INK, ha=side, va="center")


def _describe_parts(rows: pd.DataFrame, scene: Scene, model: str, look: style.Look) -> list[Part]:
    """Return each part of a model's bar at the longest context, from the bottom up; empty without a bar."""
    if rows.empty:
        return []
    bar = rows[rows["context_len"] == rows["context_len"].max()].set_index("metric")["value"]
    architecture = next(r.model.architecture for r in scene.records if r.model.name == model)
    names = ("weights", "KV cache" if registry.has_cache(architecture) else "state", "workspace")
    colours = (style.MUTED, look.text, look.text)
    return [
        Part(name, float(bar[part]), colour)
        for part, name, colour in zip(PARTS, names, colours, strict=True)
        if part in bar
    ]


def _label_beside(axes: Axes, parts: Sequence[Part], size: float) -> None:
    """Write names and sizes of parts to the right of the axes, each at the height of its part."""
    labels, base = [], 0.0
    for part in parts:
        middle = (base + part.num_bytes / 2) / size
        text = f"{part.name}\n{format_bytes(part.num_bytes)}"
        labels.append(Label(axes.get_xlim()[1], middle, text, part.colour))
        base += part.num_bytes
    label_ends(axes, labels)


def _label_inside(axes: Axes, parts: Sequence[Part], size: float, *, has_crosses: bool) -> None:
    """Write names and sizes of parts above the bars at the right, or in the upper left corner beside crosses."""
    top = sum(part.num_bytes for part in parts) / size
    at, coordinates, side = (1.0, top), ("axes fraction", "data"), "right"
    lowest_pt = 4.0
    if has_crosses:
        at, coordinates, side = (0.03, 1.0), ("axes fraction", "axes fraction"), "left"
        lowest_pt = -8.5 * len(parts)
    for index, part in enumerate(parts):
        words, offset_pt = f"{part.name} {format_bytes(part.num_bytes)}", (0, lowest_pt + 8.5 * index)
        add_text(axes, words, at, coordinates, offset_pt, color=part.colour, fontweight="bold", ha=side)
