"""The figure of recall in text: the gain of a repeated pair of words against the bytes since it came last."""

from collections.abc import Iterator

import pandas as pd

from retbench.records.record import Record
from retbench.report import style
from retbench.report.curves import draw_row
from retbench.report.drawing import Drawing
from retbench.report.evaluations import Evaluations
from retbench.report.panels import Panel, frame_points
from retbench.report.points import TaskPoint, instance_row
from retbench.report.provenance import describe_conditions
from retbench.units import format_size

_GAIN = "hit_gain_by_distance"
_CAPTION = (
    "Loss of a word where its pair of words came first in the document, less the loss where the pair came again, in "
    "nats per word, against the bytes since the pair came last; higher is better. Only pairs are counted that are rare "
    "outside of the document. Each point is the mean of the distances since the previous point, with its 95 % interval "
    "over documents, where ten or more have such a pair; one line per seed. At 0 a model gains nothing from what it "
    "has read."
)


def draw_slices(scores: Evaluations, task_point: TaskPoint) -> Iterator[Drawing]:
    """Yield the gain of a repeated pair against its distance, a panel per size."""
    records = [record for record in scores.measured(task_point) if _GAIN in record.series]
    if not records:
        return
    data = pd.DataFrame([row for record in records for row in _data_rows(record)])
    panels = [
        Panel(
            frame_points(part.sort_values("seed", kind="stable"), axis="distance_bytes", curve="seed"),
            scores.models,
            format_size(size),
            tuple(sorted(set(data["distance_bytes"]))),
        )
        for size in scores.sizes(records)
        if len(part := data[data["size"] == size])
    ]
    title, conditions = "Gain of a repeated pair of words", describe_conditions(records)
    figure = draw_row(
        panels,
        (title, f"nats per word, {task_point.title}", conditions),
        lambda point: f"{point.value:.2f}",
        "bytes since the pair came last (log scale)",
        scale="span",
    )
    for axes in figure.axes:
        axes.axhline(0, color=style.MUTED, linewidth=0.7, zorder=1)
    name, experiments = task_point.stem("gain"), (task_point.experiment,)
    yield Drawing(name, experiments, title, _CAPTION, conditions, figure, data)


def _data_rows(record: Record) -> Iterator[dict[str, object]]:
    """Yield the points of a record's gain, with the ends of their intervals where they have some."""
    series = record.series[_GAIN]
    ends = {
        end: dict(zip(found.x, found.y, strict=True))
        for end in ("low", "high")
        if (found := record.series.get(f"{_GAIN}_{end}"))
    }
    for x, y, count in zip(series.x, series.y, series.counts, strict=True):
        row = {"metric": _GAIN, "unit": series.unit, "distance_bytes": x, "value": y, "count": count}
        yield instance_row(record) | row | {end: ends.get(end, {}).get(x) for end in ("low", "high")}
