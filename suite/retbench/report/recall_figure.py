"""The figure of recall: accuracy against the bytes of the state, with the frontier of all models."""

from collections.abc import Sequence
from itertools import accumulate

import pandas as pd
from matplotlib.axes import Axes

from retbench.records.record import Record
from retbench.report import style
from retbench.report.curves import Panel, Point, draw_row, frame_points
from retbench.report.evaluations import Evaluations
from retbench.report.labels import Anchor, add_note
from retbench.report.points import TaskPoint, instance_row, task_point_of
from retbench.report.provenance import describe_conditions
from retbench.report.style import Drawing
from retbench.report.wording import file_stem
from retbench.units import format_bytes, format_percent

_CAPTION = (
    "Share of right answers, the highest logit of the whole vocabulary, on test examples of multi-query associative "
    "recall, against the measured bytes of the state that one sequence leaves. One point per size and seed; lines join "
    "the sizes of a seed. The grey steps are the frontier: the best of all models within so many bytes. The dashed "
    "line is a guess among the values of the example. Runs that have not learnt the task are shown as they are."
)
_PERCENT = ((0.01, "%"),)


def draw_recall(scores: Evaluations, task_points: Sequence[TaskPoint]) -> Drawing:
    """Draw the accuracy of every model, size and seed against the bytes of its state, a panel per task point."""
    records = [record for point in task_points for record in scores.measured(point) if _has_both(record)]
    data = pd.DataFrame([_data_row(record) for record in records])
    parts = [data[data["task_point"] == point.title] for point in task_points]
    panels = [
        Panel(
            frame_points(part, axis="state_bytes", curve="seed"),
            scores.models,
            point.title if len(task_points) > 1 else "",
            places=tuple(sorted(set(data["state_bytes"]))),
            units=_PERCENT,
            at_least=1.0,
        )
        for point, part in zip(task_points, parts, strict=True)
    ]
    title, conditions = "Recall against the size of the state", describe_conditions(records)
    where = "" if len(task_points) > 1 else f" with {task_points[0].title}"
    figure = draw_row(
        panels,
        (title, f"accuracy of multi-query associative recall{where}, %", conditions),
        _describe,
        "state, bytes per sequence (log scale)",
        set_byte_axis,
    )
    for axes, point, part in zip(figure.axes, task_points, parts, strict=True):
        _draw_frontier(axes, part)
        _draw_guess(axes, point, is_first=axes is figure.axes[0])
    return Drawing(
        name=file_stem(f"{task_points[0].experiment}_{task_points[0].workload}_frontier"),
        experiments=(task_points[0].experiment,),
        title=title,
        caption=_CAPTION,
        conditions=conditions,
        figure=figure,
        data=data,
    )


def _has_both(record: Record) -> bool:
    return {"acc", "state_bytes"} <= record.metrics.keys() and record.metrics["state_bytes"].value > 0


def _data_row(record: Record) -> dict[str, object]:
    error = record.metrics.get("acc_stderr")
    return instance_row(record) | {
        "task_point": task_point_of(record).title,
        "context_len": record.point.context_len,
        "num_pairs": record.point.num_pairs,
        "state_bytes": record.metrics["state_bytes"].value,
        "num_params_nonembedding": record.model.num_params_nonembedding,
        "metric": "acc",
        "unit": "ratio",
        "value": record.metrics["acc"].value,
        "stderr": error.value if error else None,
    }


def _describe(point: Point) -> str:
    return format_percent(point.value)


def set_byte_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """Make a logarithmic axis of bytes with a tick at each of these rising sizes."""
    style.set_count_axis(axes, sizes, [format_bytes(size) for size in sizes])


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the highest accuracy that any model reaches within so many bytes, as the corners of a rising staircase.

    Args:
        points: Bytes and accuracy of each model.
    """
    ordered = sorted(points, key=lambda point: (point[0], -point[1]))
    best = accumulate((value for _, value in ordered), max)
    corners: list[tuple[float, float]] = []
    for (size, _), value in zip(ordered, best, strict=True):
        if not corners or value > corners[-1][1]:
            corners.append((size, value))
    return corners


def _draw_frontier(axes: Axes, part: pd.DataFrame) -> None:
    """Draw the frontier of a panel to the right edge of its axes."""
    if part.empty:
        return
    corners = frontier(list(zip(part["state_bytes"], part["value"], strict=True)))
    sizes, values = zip(*corners, (axes.get_xlim()[1], corners[-1][1]), strict=True)
    axes.step(
        sizes, [100 * value for value in values], where="post", color=style.MUTED, linewidth=0.8, zorder=1
    )


def _draw_guess(axes: Axes, point: TaskPoint, *, is_first: bool) -> None:
    """Draw the accuracy of a guess among the values of an example."""
    if not point.num_pairs:
        return
    level = 100 / point.num_pairs
    axes.axhline(level, color=style.MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
    if is_first:
        height = level / axes.get_ylim()[1]
        add_note(
            axes, "guess", [Anchor(x, height, "axes fraction", x < 0.5, above=True) for x in (0.03, 0.97)]
        )
