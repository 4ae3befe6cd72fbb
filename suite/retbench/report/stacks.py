"""The figure of memory against context length, split into weights, state or cache, and workspace."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import ValidationError

from retbench.architectures import costs
from retbench.architectures.configs import parse_model_config
from retbench.config.experiment import DTYPE_BYTES
from retbench.records.record import Record
from retbench.report import style
from retbench.report.labels import Label, label_ends, label_width_in
from retbench.report.sweeps import CostSweep
from retbench.report.wording import describe_status
from retbench.units import GIB, MIB, format_bytes

HEIGHT_IN = 2.9
PARTS = ("weight_bytes", "state_bytes", "workspace_bytes")
EXPECTED = "expected_weight_and_state_bytes"
"""Closed form of what a bar shows without the workspace."""


def memory_rows(scene: CostSweep) -> pd.DataFrame:
    """What the figure draws: a row a (model, length, part) in bytes, closed form included.

    The closed form is there also where the measurement failed: it says what would have been needed.
    """
    measured = scene.points[scene.points["metric"].isin(PARTS)]
    columns = ["model", "context_len", "metric", "unit", "value"]
    forms = {(record.model.name, record.point.context_len): closed_form(record) for record in scene.records}
    expected = pd.DataFrame(
        [
            (model, length, EXPECTED, "bytes", value)
            for (model, length), value in sorted(forms.items())
            if value is not None
        ],
        columns=columns,
    )
    return pd.concat([measured[columns], expected], ignore_index=True)


def closed_form(record: Record) -> int | None:
    """Bytes of weights and of the state or cache after the step at the record's depth; None without a formula."""
    dtype, point = str(record.settings.get("dtype")), record.point
    try:
        config = parse_model_config(record.model.config)
    except ValidationError:  # an architecture that this version has no closed form of
        return None
    if dtype not in DTYPE_BYTES:
        return None
    state = costs.state_bytes(config, dtype, point.batch_size, point.context_len + 1)
    return costs.weight_bytes(config, dtype) + state


def draw_memory(scene: CostSweep, title: str) -> Figure:
    """A panel a model, a bar a length: what the bytes are for, and the closed form as a thin line."""
    rows = memory_rows(scene)
    totals = rows[rows["metric"] != EXPECTED].groupby(["model", "context_len"])["value"].sum()
    largest = max([*totals, *rows["value"], 0.0])
    size, unit = (GIB, "GiB") if largest >= GIB else (MIB, "MiB")
    subtitle = f"{unit}, batch {scene.batch_size}; dotted: closed form of weights and state"
    figure = style.new_figure(HEIGHT_IN, title, subtitle, scene.conditions)
    models = scene.models.models
    panels = style.add_panels(figure, [1] * len(models), right_in=label_width_in(["workspace"]))
    for index, (axes, model) in enumerate(zip(panels, models, strict=True)):
        style.set_length_axis(axes, scene.lengths)
        style.set_value_axis(axes, largest / size)
        mine = rows[rows["model"] == model]
        _draw_bars(axes, mine, style.look(index), size)
        form = mine[mine["metric"] == EXPECTED].sort_values("context_len")
        _draw_closed_form(axes, form, size)
        _mark_failures(axes, scene.failed[scene.failed["model"] == model], form, size)
        axes.set_title(
            scene.models.labels[model],
            fontsize=6.8,
            color=style.look(index).text,
            loc="left",
            pad=3,
            fontweight="bold",
        )
        parts = _describe_parts(mine[mine["metric"] != EXPECTED], scene, model, style.look(index))
        if axes is panels[-1]:
            _label_beside(axes, parts, size)
        else:
            _label_above(axes, parts, size)
    return figure


def _draw_bars(axes: Axes, rows: pd.DataFrame, look: style.Look, size: float) -> None:
    """Bars stacked from weights up; a bar spans the same part of the logarithmic axis at every length."""
    parts = rows[rows["metric"] != EXPECTED].pivot(index="context_len", columns="metric", values="value")
    for length, row in parts.iterrows():
        left = float(str(length)) * 2**-0.3
        bottom = 0.0
        for part, colour in zip(PARTS, (style.NEUTRAL, look.line, look.tint), strict=True):
            height = float(row.get(part, 0.0)) / size
            axes.bar(left, height, width=left * (2**0.6 - 1), bottom=bottom, align="edge", color=colour)
            bottom += height


def _draw_closed_form(axes: Axes, form: pd.DataFrame, size: float) -> None:
    """A thin dotted line through what weights and state should take."""
    x = [int(length) for length in form["context_len"]]
    y = [float(value) / size for value in form["value"]]
    axes.plot(x, y, color=style.INK, linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=4)
    if len(x) == 1:
        axes.plot(x, y, "_", color=style.INK, zorder=4)


def _mark_failures(axes: Axes, failed: pd.DataFrame, form: pd.DataFrame, size: float) -> None:
    """A cross on the closed form at every length that could not be measured, the reason beside the first.

    Without a closed form the crosses stand on the axis.
    """
    needed = dict(zip(form["context_len"], form["value"], strict=True))
    for number, (length, status) in enumerate(zip(failed["context_len"], failed["status"], strict=True)):
        x, y = int(length), float(needed.get(length, 0.0)) / size
        axes.plot([x], [y], "x", color=style.INK, zorder=5, clip_on=False)
        if number == 0:
            left = len(form) > 0 and x > min(form["context_len"])
            axes.annotate(
                describe_status(str(status)),
                xy=(x, y),
                xytext=(-5, 1) if left else (-3, 8),
                textcoords="offset points",
                fontsize=6.2,
                color=style.INK,
                ha="right" if left else "left",
                va="center",
            )


def _describe_parts(
    rows: pd.DataFrame, scene: CostSweep, model: str, look: style.Look
) -> list[tuple[str, float, str]]:
    """Name, bytes and colour of each part of a model's deepest bar, from the bottom up; empty without a bar."""
    if rows.empty:
        return []
    bar = rows[rows["context_len"] == rows["context_len"].max()].set_index("metric")["value"]
    kind = next(record.model.architecture for record in scene.records if record.model.name == model)
    words = ("weights", "KV cache" if kind == "transformer" else "state", "workspace")
    colours = (style.MUTED, look.text, look.text)
    return [
        (word, float(bar[part]), colour)
        for part, word, colour in zip(PARTS, words, colours, strict=True)
        if part in bar
    ]


def _label_beside(axes: Axes, parts: Sequence[tuple[str, float, str]], size: float) -> None:
    """Names and sizes of parts to the right of the axes, each at the height of its part."""
    labels, base = [], 0.0
    for word, num_bytes, colour in parts:
        middle = (base + num_bytes / 2) / size
        labels.append(Label(axes.get_xlim()[1], middle, f"{word}\n{format_bytes(num_bytes)}", colour))
        base += num_bytes
    label_ends(axes, labels)


def _label_above(axes: Axes, parts: Sequence[tuple[str, float, str]], size: float) -> None:
    """Names and sizes of parts stacked above the bars, flush with the right edge of the axes."""
    top = sum(num_bytes for _, num_bytes, _ in parts) / size
    for index, (word, num_bytes, colour) in enumerate(parts):
        axes.annotate(
            f"{word} {format_bytes(num_bytes)}",
            xy=(1, top),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4 + 8.5 * index),
            textcoords="offset points",
            color=colour,
            fontsize=6.2,
            fontweight="bold",
            ha="right",
        )
