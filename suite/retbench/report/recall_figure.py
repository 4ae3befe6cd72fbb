"""The figures of recall: accuracy against the bytes of the state, with the frontier of all models, and against pairs.

The seeds of a training are the replicates: a point is their mean, with Student's t interval over them.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import nan

import pandas as pd
from matplotlib.axes import Axes

from retbench.records.record import Record
from retbench.report import style
from retbench.report.curves import draw_row
from retbench.report.drawing import Drawing
from retbench.report.evaluations import Evaluations
from retbench.report.labels import Anchor, add_note, add_text
from retbench.report.panels import Panel, Point, frame_points
from retbench.report.points import TaskPoint, group, learning_rate, task_point_of
from retbench.report.provenance import describe_conditions
from retbench.report.wording import file_stem
from retbench.stats.intervals import mean_interval
from retbench.units import format_bytes, format_percent, format_size

_MEASURED = (
    "Share of right answers, the highest logit of the whole vocabulary, on test examples of multi-query associative "
    "recall. A point is the mean over the seeds of the training, and a bar Student's 95 % interval over them, cut at 0 "
    "and 100 %. Runs that have not learnt the task are shown as they are. "
)
_FRONTIER = (
    _MEASURED
    + "The horizontal axis has the measured bytes of the state that one sequence leaves; lines join the "
    "sizes of a model. The grey steps are the frontier: the best of all models within so many bytes. The dashed lines "
    "are a guess among the values of the example, and every answer right."
)
_PAIRS = _MEASURED + "The dashed line is a guess among the values of the example."
PERCENT = ((0.01, "%"),)


def draw_recall(scores: Evaluations, task_points: Sequence[TaskPoint]) -> Iterator[Drawing]:
    """Yield the accuracy against the bytes of the state, and of more than one number of pairs against these."""
    records = [record for point in task_points for record in scores.measured(point) if _has_state(record)]
    if not records:
        return
    data = seed_means(records)
    yield _draw_frontiers(scores, task_points, records, data)
    for length, points in group(task_points, lambda point: point.context_len).items():
        if len(points) > 1:
            chosen = [record for record in records if record.point.context_len == length]
            yield _draw_pairs(scores, points, chosen, data[data["context_len"] == length])


def seed_means(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per task point, model and size: the mean accuracy of the seeds with its interval.

    It has the number of pairs and the bytes of the state where records have them.

    The ends of the interval of a single seed are not a number.
    """
    rows = []
    sides = group(records, lambda record: (task_point_of(record), record.model.name, record.model.size))
    for (point, model, size), seeds in sides.items():
        state = seeds[0].metrics.get("state_bytes")
        rows.append(
            {
                "model": model,
                "size": size,
                "task": point.task,
                "task_point": point.title,
                "context_len": point.context_len,
                "num_pairs": point.num_pairs,
                "state_bytes": state and state.value,
                "num_params_nonembedding": seeds[0].model.num_params_nonembedding,
                "learning_rate": learning_rate(seeds[0]),
                "metric": "acc",
                "unit": "ratio",
                **mean_share([record.metrics["acc"].value for record in seeds]),
            }
        )
    absent = {name for name in ("num_pairs", "state_bytes") if all(row[name] is None for row in rows)}
    return pd.DataFrame(rows).drop(columns=sorted(absent))


def mean_share(values: Sequence[float]) -> dict[str, float]:
    """Return the mean of the seeds' accuracies with Student's interval, cut at 0 and 1, as columns of a row."""
    found = mean_interval(values)
    low, high = (nan if end is None else min(1.0, max(0.0, end)) for end in (found.low, found.high))
    return {"value": found.value, "low": low, "high": high, "num_seeds": found.num_rounds}


def _draw_frontiers(
    scores: Evaluations, task_points: Sequence[TaskPoint], records: Sequence[Record], data: pd.DataFrame
) -> Drawing:
    """Draw the accuracy of every model and size against the bytes of its state, a panel per task point."""
    parts = [data[data["task_point"] == point.title] for point in task_points]
    panels = [
        Panel(
            frame_points(part, axis="state_bytes"),
            scores.models,
            point.title if len(task_points) > 1 else "",
            places=tuple(sorted(set(data["state_bytes"]))),
            units=PERCENT,
            at_least=1.0,
            at_most=1.0,
        )
        for point, part in zip(task_points, parts, strict=True)
    ]
    title, conditions = "Recall against the size of the state", describe_conditions(records)
    where = "" if len(task_points) > 1 else f" with {task_points[0].title}"
    figure = draw_row(
        panels,
        (title, f"accuracy of multi-query associative recall{where}, %", conditions),
        describe_share,
        "state, bytes per sequence (log scale)",
        set_byte_axis,
    )
    for axes, point, part in zip(figure.axes, task_points, parts, strict=True):
        _draw_frontier(axes, part)
        if point.num_pairs:
            draw_levels(axes, 1 / point.num_pairs, is_first=axes is figure.axes[0])
    return Drawing(
        name=file_stem(f"{task_points[0].experiment}_{task_points[0].workload}_frontier"),
        experiments=(task_points[0].experiment,),
        title=title,
        caption=_FRONTIER,
        conditions=conditions,
        figure=figure,
        data=data,
    )


def _draw_pairs(
    scores: Evaluations, task_points: Sequence[TaskPoint], records: Sequence[Record], data: pd.DataFrame
) -> Drawing:
    """Draw the accuracy of every model against the number of pairs in examples of one length, a panel per size."""
    counts = [point.num_pairs or 0 for point in task_points]
    panels = [
        Panel(
            frame_points(data[data["size"] == size], axis="num_pairs"),
            scores.models,
            format_size(size),
            places=tuple(map(float, counts)),
            units=PERCENT,
            at_least=1.0,
            at_most=1.0,
        )
        for size in scores.sizes(records)
    ]
    length = task_points[0].context_len
    title, conditions = "Recall against the number of pairs", describe_conditions(records)
    figure = draw_row(
        panels,
        (title, f"accuracy of multi-query associative recall in {length} tokens, %", conditions),
        describe_share,
        "pairs of a key and a value (log scale)",
        _set_pair_axis,
    )
    for axes in figure.axes:
        guesses = [100 / count for count in counts]
        axes.plot(counts, guesses, color=style.MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
    return Drawing(
        name=file_stem(f"{task_points[0].experiment}_{task_points[0].workload}_{length}_pairs"),
        experiments=(task_points[0].experiment,),
        title=title,
        caption=_PAIRS,
        conditions=conditions,
        figure=figure,
        data=data,
    )


def _has_state(record: Record) -> bool:
    return record.metrics["state_bytes"].value > 0


def describe_share(point: Point) -> str:
    """Return the value of a point as a percentage."""
    return format_percent(point.value)


def set_byte_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """Make a logarithmic axis of bytes with a tick at each of these rising sizes."""
    style.set_count_axis(axes, sizes, [format_bytes(size) for size in sizes])


def _set_pair_axis(axes: Axes, counts: Sequence[float]) -> None:
    style.set_count_axis(axes, counts, [f"{count:.0f}" for count in counts])


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


def draw_levels(axes: Axes, guess: float, *, is_first: bool) -> None:
    """Draw the accuracy of a guess, and that of a model that answers everything; the first panel names them.

    The names stand beside the panel where the names of the models, which are beside the last one, leave room.
    """
    mine, last = axes.get_position(), axes.figure.figure.axes[-1].get_position()
    is_free = mine.y0 > last.y1 and mine.x1 > last.x1 - 0.001
    for share, name in ((guess, "guess"), (1.0, "ceiling")):
        axes.axhline(100 * share, color=style.MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
        height = 100 * share / axes.get_ylim()[1]
        if is_first and is_free:
            add_text(axes, name, (1.02, height), "axes fraction", (0, 0), color=style.MUTED, va="center")
        elif is_first:
            anchors = [Anchor(x, height, "axes fraction", x < 0.5, above=share < 1) for x in (0.03, 0.97)]
            add_note(axes, name, anchors)
