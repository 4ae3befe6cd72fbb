"""The figures of recall: the share of right answers against state, pairs, distance and length of the examples.

The seeds of a training are the replicates: a point is their mean, with Student's t interval over them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from math import nan
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.figures import style
from retbench.report.figures.curves import draw_row
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.labels import Anchor, add_note, add_text
from retbench.report.figures.model_panels import add_model_panels, draw_model_line
from retbench.report.figures.panels import PERCENT, Panel, frame_points
from retbench.report.lineup import Lineup
from retbench.report.points import (
    TaskPoint,
    group,
    learning_rate,
    length_ratio,
    noted_trained_len,
    task_point_of,
)
from retbench.report.wording import file_stem
from retbench.stats.intervals import mean_interval
from retbench.units import format_percent, format_size, format_tokens

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
_DISTANCE = (
    "Share of right answers by the tokens from a key among the pairs to its question, {where}. A point is that of the "
    "distances since the previous point: the mean over the seeds of the training with Student's 95 % interval, cut at "
    "0 and 100 %, or that of a single seed with its interval over examples. The dashed line is a guess among the "
    "values of the example."
)
_LENGTH = (
    "Share of right answers, the highest logit of the whole vocabulary, on test examples that are longer than those of "
    "the training; 1 is the trained length. Each model was trained once on examples of all tasks, in turn. A point is "
    "the mean over the seeds of the training, and a bar Student's 95 % interval over them, cut at 0 and 100 %. The "
    "points of one length stand side by side. Runs that have not learnt a task are shown as they are. The dashed lines "
    "are a guess among the symbols, and every answer right."
)
_BY_DISTANCE = "acc_by_distance"
_ASIDE_PT = 13.0
"""Distance of the first model's points from those of the last at one length, so that their intervals can be seen."""


def draw_recall(scores: Evaluations, task_points: Sequence[TaskPoint]) -> Iterator[Drawing]:
    """Yield the accuracy against the bytes of the state, then against pairs and distance where these differ."""
    records = [
        record
        for point in task_points
        for record in scores.measured(point)
        if record.metrics["state_bytes"].value > 0
    ]
    if not records:
        return
    data = seed_means(records)
    yield _draw_frontiers(scores, task_points, records, data)
    for length, points in group(task_points, lambda point: point.context_len).items():
        if len(points) > 1:
            chosen = [record for record in records if record.point.context_len == length]
            yield _draw_pairs(scores, points[0], chosen, data[data["context_len"] == length])


def _draw_frontiers(
    scores: Evaluations, task_points: Sequence[TaskPoint], records: Sequence[Record], data: pd.DataFrame
) -> Drawing:
    """Draw the accuracy of every model and size against the bytes of its state, a panel per task point."""
    first, several = task_points[0], len(task_points) > 1
    where = "" if several else f" with {first.title}"
    view = View(
        name=file_stem(f"{first.experiment}_{first.workload}_frontier"),
        title="Recall against the size of the state",
        subtitle=f"accuracy of multi-query associative recall{where}, %",
        caption=_FRONTIER,
        records=records,
    )
    parts = [(p.title if several else "", data[data["task_point"] == p.title]) for p in task_points]
    axis = "state_bytes", "state, bytes per sequence (log scale)", style.set_bytes_axis
    figure = _draw_shares(view, scores.models, parts, axis)
    for axes, (_, part) in zip(figure.axes, parts, strict=True):
        _draw_frontier(axes, part)
    _draw_levels(figure, [1 / point.num_pairs if point.num_pairs else None for point in task_points])
    return view.drawing(figure, data)


def _draw_pairs(
    scores: Evaluations, point: TaskPoint, records: Sequence[Record], data: pd.DataFrame
) -> Drawing:
    """Draw the accuracy of every model against the number of pairs in examples of one length, a panel per size."""
    view = View(
        name=file_stem(f"{point.experiment}_{point.workload}_{point.context_len}_pairs"),
        title="Recall against the number of pairs",
        subtitle=f"accuracy of multi-query associative recall in {point.context_len} tokens, %",
        caption=_PAIRS,
        records=records,
    )
    parts = [(format_size(size), data[data["size"] == size]) for size in scores.sizes(records)]
    axis = "num_pairs", "pairs of a key and a value (log scale)", _ticks("{:.0f}".format)
    figure = _draw_shares(view, scores.models, parts, axis, where="{} pairs")
    counts = sorted(set(data["num_pairs"]))
    for axes in figure.axes:
        axes.plot(counts, [100 / count for count in counts], **style.GUIDE)
    return view.drawing(figure, data)


def draw_length_recall(scores: Evaluations, task_points: Sequence[TaskPoint]) -> Iterator[Drawing]:
    """Yield the accuracy against the length of the examples, a figure per size and a panel per task."""
    trained = [
        record for point in task_points for record in scores.measured(point) if noted_trained_len(record)
    ]
    for size in scores.sizes(trained):
        records = [record for record in trained if record.model.size == size]
        lengths = map(format_tokens, sorted({noted_trained_len(record) for record in records}))
        view = View(
            name=file_stem(f"{task_points[0].experiment}_{task_points[0].workload}_{size}"),
            title="Recall beyond the trained length",
            subtitle=f"accuracy, %, models of {format_size(size)} trained on {' or '.join(lengths)} tokens",
            caption=_LENGTH,
            records=records,
        )
        data = seed_means(records)
        ratios = {record.point.context_len: length_ratio(record) for record in records}
        data["length_ratio"] = data["context_len"].map(ratios)
        tasks = group(records, lambda record: record.point.task)
        parts = [(str(task).replace("_", " "), data[data["task"] == task]) for task in tasks]
        axis = "length_ratio", "length over trained length (log scale)", _ticks("{:g}".format)
        figure = _draw_shares(
            view, scores.models, parts, axis, aside_pt=_ASIDE_PT, where="{} times the length"
        )
        _draw_levels(figure, [mine[0].metrics["guess"].value for mine in tasks.values()])
        yield view.drawing(figure, data)


def draw_distances(scores: Evaluations, points: Sequence[TaskPoint]) -> Iterator[Drawing]:
    """Yield the accuracy against the distance, for each length of the examples with the most pairs of it."""
    for of_length in group(points, lambda point: point.context_len).values():
        records = [r for point in of_length for r in scores.measured(point) if _by_distance(r)]
        most = max((r.point.num_pairs or 0 for r in records), default=0)
        mine = [record for record in records if record.point.num_pairs == most]
        if most and any(len(_by_distance(record)) > 1 for record in mine):
            yield _draw_distances(scores, next(p for p in of_length if p.num_pairs == most), mine)


def _draw_distances(scores: Evaluations, point: TaskPoint, records: Sequence[Record]) -> Drawing:
    """Draw a panel per model with a line per size."""
    view = View(
        name=point.stem(f"{point.num_pairs}_distance"),
        title="Recall against distance",
        subtitle=f"accuracy of multi-query associative recall, %; {point.title}",
        caption=_DISTANCE.format(where=point.title),
        records=records,
    )
    data = _distance_means(records)
    label = "tokens from a pair to its question (log scale)"
    figure, lines = add_model_panels(data, scores.models, scores.sizes(records), view.texts, label)
    for axes in figure.axes:
        distances = sorted(set(data["distance_tokens"]))
        style.set_count_axis(axes, distances, lambda distance: format_tokens(int(distance)))
        style.set_value_axis(axes, 100.0)
        axes.axhline(100 / (point.num_pairs or 1), **style.GUIDE)
    for line in lines:
        draw_model_line(line, "distance_tokens", PERCENT[0])
    return view.drawing(figure, data)


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
                **_mean_share([record.metrics["acc"].value for record in seeds]),
            }
        )
    absent = {name for name in ("num_pairs", "state_bytes") if all(row[name] is None for row in rows)}
    return pd.DataFrame(rows).drop(columns=sorted(absent))


def _distance_means(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per model, size and distance: the mean of the seeds, or the only seed with its own interval."""
    rows = []
    for (model, size), seeds in group(records, lambda r: (r.model.name, r.model.size)).items():
        shares = [_by_distance(record) for record in seeds]
        for distance in sorted({distance for found in shares for distance in found}):
            row = _mean_share([found[distance] for found in shares if distance in found])
            if len(seeds) == 1:
                row |= {end: _by_distance(seeds[0], f"_{end}").get(distance, nan) for end in ("low", "high")}
            identity = {"model": model, "size": size, "num_pairs": seeds[0].point.num_pairs}
            rows.append(
                identity | {"distance_tokens": distance, "metric": _BY_DISTANCE, "unit": "ratio"} | row
            )
    return pd.DataFrame(rows)


def _by_distance(record: Record, end: str = "") -> dict[float, float]:
    """Return the accuracies of a record by distance, or an end of their intervals; bins end within twice the length."""
    series, longest = record.series.get(_BY_DISTANCE + end), 2 * record.point.context_len
    return {x: y for x, y in zip(series.x, series.y, strict=True) if 0 < x < longest} if series else {}


def _mean_share(values: Sequence[float]) -> dict[str, float]:
    """Return the mean of the seeds' accuracies with Student's interval, cut at 0 and 1, as columns of a row."""
    found = mean_interval(values)
    low, high = (nan if end is None else min(1.0, max(0.0, end)) for end in (found.low, found.high))
    return {"value": found.value, "low": low, "high": high, "num_seeds": found.num_rounds}


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


def _draw_shares(
    view: View,
    models: Lineup,
    parts: Sequence[tuple[str, pd.DataFrame]],
    axis: tuple[str, str, Callable[[Axes, Sequence[float]], None]],
    **options: Any,
) -> Figure:
    """Draw shares from 0 to 100 %, a panel per part of the data of `seed_means`.

    Args:
        view: The figure's words.
        models: All models.
        parts: Title and rows of each panel.
        axis: Column of the horizontal axis, its name, and what sets its ticks and limits.
        options: Further fields of the panels.
    """
    column, label, set_axis = axis
    places = tuple(sorted({float(place) for _, part in parts for place in part[column]}))
    panels = [
        Panel(
            frame_points(part, axis=column),
            models,
            title,
            places=places,
            units=PERCENT,
            at_least=1.0,
            at_most=1.0,
            **options,
        )
        for title, part in parts
    ]
    return draw_row(panels, view.texts, lambda point: format_percent(point.value), label, set_axis)


def _ticks(describe: Callable[[float], str]) -> Callable[[Axes, Sequence[float]], None]:
    """Return what gives an axis a tick at each value, with its format."""
    return partial(style.set_count_axis, describe=describe)


def _draw_frontier(axes: Axes, part: pd.DataFrame) -> None:
    """Draw the frontier of a panel to the right edge of its axes."""
    if part.empty:
        return
    corners = frontier(list(zip(part["state_bytes"], part["value"], strict=True)))
    sizes, values = zip(*corners, (axes.get_xlim()[1], corners[-1][1]), strict=True)
    axes.step(
        sizes, [100 * value for value in values], where="post", color=style.MUTED, linewidth=0.8, zorder=1
    )


def _draw_levels(figure: Figure, guesses: Sequence[float | None]) -> None:
    """Draw the accuracy of a guess, and that of a model that answers everything; the first panel names them.

    The names stand beside the panel where the names of the models, which are beside the last one, leave room.
    """
    first, last = (figure.axes[place].get_position() for place in (0, -1))
    renderer = FigureCanvasAgg(figure).get_renderer()
    highest = max((text.get_window_extent(renderer).y1 for text in figure.axes[-1].texts), default=0.0)
    is_free = highest < figure.axes[0].bbox.y0 and first.x1 > last.x1 - 0.001
    for axes, guess in zip(figure.axes, guesses, strict=True):
        for share, name in ((guess, "guess"), (1.0, "ceiling")) if guess is not None else ():
            axes.axhline(100 * share, **style.GUIDE)
            height = 100 * share / axes.get_ylim()[1]
            if axes is not figure.axes[0]:
                continue
            if is_free:
                add_text(axes, name, (1.02, height), "axes fraction", (0, 0), color=style.MUTED, va="center")
            else:
                anchors = [Anchor(x, height, "axes fraction", x < 0.5, above=share < 1) for x in (0.03, 0.97)]
                add_note(axes, anchors, name)
