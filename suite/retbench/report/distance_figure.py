"""The figure of recall against distance: the accuracy by the tokens from a pair to its question."""

from collections.abc import Iterator, Sequence
from math import nan

import pandas as pd

from retbench.records.record import Record
from retbench.report import style
from retbench.report.drawing import Drawing
from retbench.report.evaluations import Evaluations
from retbench.report.model_panels import add_model_panels, draw_model_line
from retbench.report.points import TaskPoint, group
from retbench.report.provenance import describe_conditions
from retbench.report.recall_figure import PERCENT, mean_share
from retbench.units import format_tokens

_SERIES = "acc_by_distance"
_CAPTION = (
    "Share of right answers by the tokens from a key among the pairs to its question, {where}. A point is that of the "
    "distances since the previous point: the mean over the seeds of the training with Student's 95 % interval, cut at "
    "0 and 100 %, or that of a single seed with its interval over examples. The dashed line is a guess among the "
    "values of the example."
)


def draw_distances(scores: Evaluations, points: Sequence[TaskPoint]) -> Iterator[Drawing]:
    """Yield the accuracy against the distance, for each length of the examples with the most pairs of it."""
    for of_length in group(points, lambda point: point.context_len).values():
        records = [r for point in of_length for r in scores.measured(point) if _by_distance(r, "")]
        most = max((r.point.num_pairs or 0 for r in records), default=0)
        mine = [record for record in records if record.point.num_pairs == most]
        if most and any(len(_by_distance(record, "")) > 1 for record in mine):
            yield _draw(scores, next(p for p in of_length if p.num_pairs == most), mine)


def _draw(scores: Evaluations, point: TaskPoint, records: Sequence[Record]) -> Drawing:
    data = _data(records)
    distances = sorted(set(data["distance_tokens"]))
    title, conditions = "Recall against distance", describe_conditions(records)
    figure, lines = add_model_panels(
        data,
        scores.models,
        scores.sizes(records),
        (title, f"accuracy of multi-query associative recall, %; {point.title}", conditions),
        "tokens from a pair to its question (log scale)",
    )
    for axes in figure.axes:
        style.set_count_axis(axes, distances, [format_tokens(int(distance)) for distance in distances])
        style.set_value_axis(axes, 100.0)
        guess = 100 / (point.num_pairs or 1)
        axes.axhline(guess, color=style.MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
    for line in lines:
        draw_model_line(line, "distance_tokens", PERCENT[0])
    return Drawing(
        name=point.stem(f"{point.num_pairs}_distance"),
        experiments=(point.experiment,),
        title=title,
        caption=_CAPTION.format(where=point.title),
        conditions=conditions,
        figure=figure,
        data=data,
    )


def _data(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per model, size and distance: the mean of the seeds, or the only seed with its own interval."""
    rows = []
    for (model, size), seeds in group(records, lambda r: (r.model.name, r.model.size)).items():
        shares = [_by_distance(record, "") for record in seeds]
        for distance in sorted({distance for found in shares for distance in found}):
            row = mean_share([found[distance] for found in shares if distance in found])
            if len(seeds) == 1:
                row |= {end: _by_distance(seeds[0], f"_{end}").get(distance, nan) for end in ("low", "high")}
            identity = {"model": model, "size": size, "num_pairs": seeds[0].point.num_pairs}
            rows.append(identity | {"distance_tokens": distance, "metric": _SERIES, "unit": "ratio"} | row)
    return pd.DataFrame(rows)


def _by_distance(record: Record, end: str) -> dict[float, float]:
    """Return the accuracies of a record by distance, or an end of their intervals; bins end within twice the length."""
    series, longest = record.series.get(_SERIES + end), 2 * record.point.context_len
    return {x: y for x, y in zip(series.x, series.y, strict=True) if 0 < x < longest} if series else {}
