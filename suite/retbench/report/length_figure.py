"""The figure of recall beyond the trained length: accuracy against the ratio of the lengths, a panel per task."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from retbench.records.record import Record
from retbench.report import style
from retbench.report.curves import draw_row
from retbench.report.drawing import Drawing
from retbench.report.evaluations import Evaluations
from retbench.report.panels import Panel, frame_points
from retbench.report.points import TaskPoint, group, length_ratio, noted_trained_len
from retbench.report.provenance import describe_conditions
from retbench.report.recall_figure import PERCENT, describe_share, draw_levels, seed_means
from retbench.report.wording import file_stem
from retbench.units import format_size, format_tokens

_ASIDE_PT = 13.0
"""Distance of the first model's points from those of the last at one length, so that their intervals can be seen."""
_CAPTION = (
    "Share of right answers, the highest logit of the whole vocabulary, on test examples that are longer than those of "
    "the training; 1 is the trained length. Each model was trained once on examples of all tasks, in turn. A point is "
    "the mean over the seeds of the training, and a bar Student's 95 % interval over them, cut at 0 and 100 %. The "
    "points of one length stand side by side. Runs that have not learnt a task are shown as they are. The dashed lines "
    "are a guess among the symbols, and every answer right."
)


def draw_lengths(scores: Evaluations, task_points: Sequence[TaskPoint]) -> Iterator[Drawing]:
    """Yield the accuracy against the length of the examples, a figure per size and a panel per task."""
    records = [
        record for point in task_points for record in scores.measured(point) if noted_trained_len(record)
    ]
    for size in scores.sizes(records):
        yield _draw(scores, task_points[0], size, [r for r in records if r.model.size == size])


def _draw(scores: Evaluations, point: TaskPoint, size: str, records: Sequence[Record]) -> Drawing:
    data = seed_means(records)
    ratios = {record.point.context_len: length_ratio(record) for record in records}
    data["length_ratio"] = data["context_len"].map(ratios)
    tasks = group(records, lambda record: record.point.task)
    panels = [
        Panel(
            frame_points(data[data["task"] == task], axis="length_ratio"),
            scores.models,
            str(task).replace("_", " "),
            places=tuple(sorted(set(data["length_ratio"]))),
            units=PERCENT,
            at_least=1.0,
            at_most=1.0,
            aside_pt=_ASIDE_PT,
        )
        for task in tasks
    ]
    trained = " or ".join(
        format_tokens(length) for length in sorted({noted_trained_len(record) for record in records})
    )
    title, conditions = "Recall beyond the trained length", describe_conditions(records)
    figure = draw_row(
        panels,
        (title, f"accuracy, %, models of {format_size(size)} trained on {trained} tokens", conditions),
        describe_share,
        "length over trained length (log scale)",
        _set_ratio_axis,
    )
    for axes, mine in zip(figure.axes, tasks.values(), strict=True):
        draw_levels(axes, mine[0].metrics["guess"].value, is_first=axes is figure.axes[0])
    return Drawing(
        name=file_stem(f"{point.experiment}_{point.workload}_{size}"),
        experiments=(point.experiment,),
        title=title,
        caption=_CAPTION,
        conditions=conditions,
        figure=figure,
        data=data,
    )


def _set_ratio_axis(axes: Axes, ratios: Sequence[float]) -> None:
    style.set_count_axis(axes, ratios, [f"{ratio:g}" for ratio in ratios])
