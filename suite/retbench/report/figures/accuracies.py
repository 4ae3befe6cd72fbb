"""The figure of accuracy in zero-shot tasks: a dot per model and seed with its interval, and how models differ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from retbench.papers.tasks import chance
from retbench.records.record import Record
from retbench.report.document_comparisons import DocumentComparison
from retbench.report.evaluations import Evaluations
from retbench.report.figures import style
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.labels import add_text, label_width_in, shorten
from retbench.report.figures.looks import look_of
from retbench.report.figures.panels import PlotPoint
from retbench.report.lineup import Lineup
from retbench.report.points import TaskPoint, accuracy, instance_of, instance_row, task_point_of
from retbench.report.wording import POINTS, describe_p, file_stem, with_interval
from retbench.stats.paired import proportion_interval
from retbench.units import format_size, format_tokens

_ROW_IN, _NAME_IN, _NAMES_IN = 0.124, 0.125, 0.36
"""Height of one dot and of one line of the models' names, and distance of the first line from the top."""


@dataclass(frozen=True)
class TaskRows:
    """The accuracies of all models in one task, as ratios.

    Attributes:
        task: Name of the task, with its context length where there are several.
        points: In the order of the models.
        notes: How the model of each point differs from the reference; empty where they are not compared.
        chance: Accuracy of guessing; None where it is not known.
    """

    task: str
    points: tuple[PlotPoint, ...]
    notes: tuple[str, ...]
    chance: float | None


def draw_accuracies(scores: Evaluations, task_points: Sequence[TaskPoint]) -> Iterator[Drawing]:
    """Yield the accuracy in each task at the largest size that two models or more were evaluated at."""
    measured = [(r, *found) for q in task_points for r in scores.measured(q) if (found := accuracy(r))]
    sizes = [
        size
        for size in scores.sizes([record for record, *_ in measured])
        if len({record.model.name for record, *_ in measured if record.model.size == size}) > 1
    ]
    if not sizes:
        return
    largest = [each for each in measured if each[0].model.size == sizes[-1]]
    names = _names(task_points)
    tasks = [_task_rows(scores, task_point, names[task_point], largest) for task_point in task_points]
    shots = task_points[0].num_fewshot or 0
    view = View(
        name=f"{file_stem(task_points[0].experiment)}_zeroshot_{shots}shot",
        title=f"Accuracy, {shots}-shot",
        subtitle=f"%, models of {format_size(sizes[-1])}; bars: 95 % interval over questions",
        caption=f"Accuracy (acc) of the models of {sizes[-1]}, {shots}-shot, with Wilson's 95 % "
        "interval over the questions. The grey tick is the accuracy of guessing. The text beside a model is its "
        f"difference from the {scores.models.labels.get(str(scores.models.reference))} in percentage points, paired "
        "over the questions, and the p-value of McNemar's exact test.",
        records=[record for record, *_ in largest],
    )
    figure = _draw([rows for rows in tasks if rows.points], scores.models, view.texts)
    yield view.drawing(figure, pd.DataFrame([_data_row(*each) for each in largest]))


def _point(record: Record, share: float, count: int) -> PlotPoint:
    """Return an accuracy with its interval."""
    return PlotPoint(record.model.name, 0, share, *proportion_interval(round(share * count), count))


def _data_row(record: Record, share: float, count: int) -> dict[str, object]:
    point = _point(record, share, count)
    return instance_row(record) | {
        "task": record.point.task,
        "context_len": record.point.context_len,
        "metric": "acc",
        "unit": "ratio",
        "value": point.value,
        "low": point.low,
        "high": point.high,
        "num_documents": count,
        "chance": chance(record.point.task),
    }


def _names(task_points: Sequence[TaskPoint]) -> dict[TaskPoint, str]:
    """Return the name of each task, with its context length where there are several."""
    several = len({point.context_len for point in task_points}) > 1
    return {
        point: shorten(str(point.task)) + (f", {format_tokens(point.context_len)}" if several else "")
        for point in task_points
    }


def _task_rows(
    scores: Evaluations, task_point: TaskPoint, name: str, measured: Sequence[tuple[Record, float, int]]
) -> TaskRows:
    """Return the accuracies in a task, by model and seed."""
    models = scores.models.models
    mine = [each for each in measured if task_point_of(each[0]) == task_point]
    mine.sort(key=lambda each: (models.index(each[0].model.name), instance_of(each[0]).seed_word))
    compared = {(c.model, c.instance): c for c in scores.compared(task_point) if "acc" in c.accuracies}
    made = [compared.get((record.model.name, instance_of(record))) for record, *_ in mine]
    return TaskRows(
        name,
        tuple(_point(*each) for each in mine),
        tuple(_note(comparison) if comparison else "" for comparison in made),
        chance(task_point.task),
    )


def _note(comparison: DocumentComparison) -> str:
    pair = comparison.accuracies["acc"]
    return f"{POINTS * pair.difference:+.1f}, {describe_p(pair.p_value)}"


def _draw(tasks: Sequence[TaskRows], models: Lineup, texts: tuple[str, str, str]) -> Figure:
    """Draw the tasks from the top down."""
    num_rows = sum(len(rows.points) + 1 for rows in tasks) + 1
    present = {point.model for rows in tasks for point in rows.points}
    names = [name for name in models.models if name in present]
    labels = [shorten(models.labels[name]) for name in names]
    guesses = [100 * rows.chance for rows in tasks if rows.chance is not None]
    columns = int(style.WIDTH_IN / (label_width_in(labels) + 0.1)) or 1
    num_lines = -(-(len(names) + bool(guesses)) // columns)
    figure, (axes,) = style.new_panels(
        texts,
        [1],
        ["accuracy, %"],
        row_in=_ROW_IN * num_rows + _NAME_IN,
        right_in=label_width_in([note for rows in tasks for note in rows.notes]) * 0.74,
        left_in=label_width_in([rows.task for rows in tasks]) * 0.95,
        top_in=style.HEADER_IN + _NAME_IN * (num_lines - 1),
    )
    ends = [100 * end for rows in tasks for point in rows.points for end in (point.low, point.high)]
    axes.set_xlim(max(0, min(ends + guesses) - 2), min(100, max(ends + guesses) + 2))
    axes.xaxis.set_major_locator(style.round_ticks(5))
    axes.grid(axis="x")
    top, middles = 0, list[float]()
    for rows in tasks:
        middles.append(top + (len(rows.points) - 1) / 2)
        _draw_task(axes, rows, models, top)
        top += len(rows.points) + 1
    axes.set_ylim(top - 1, -1)
    axes.set_yticks(middles, [rows.task for rows in tasks])
    looks = [look_of(models, name) for name in names]
    marks = [(name, look.marker, look.line, look.text) for name, look in zip(labels, looks, strict=True)]
    marks += [("guessing", "|", style.MUTED, style.MUTED)] if guesses else []
    figure.legend(
        [Line2D([], [], marker=marker, color=colour, linestyle="") for _, marker, colour, _ in marks],
        [name for name, *_ in marks],
        labelcolor=[text for *_, text in marks],
        ncols=columns,
        loc="upper left",
        bbox_to_anchor=(0, 1 - _NAMES_IN / figure.get_figheight()),
        prop={"weight": "bold"},
        borderpad=0.5,
        handletextpad=0.0,
        labelspacing=0.3,
        columnspacing=0.6,
    )
    return figure


def _draw_task(axes: Axes, rows: TaskRows, models: Lineup, top: int) -> None:
    """Draw dots, intervals, notes and the accuracy of guessing of one task."""
    for y, (point, note) in enumerate(zip(rows.points, rows.notes, strict=True), top):
        look = look_of(models, point.model)
        interval = axes.hlines(y, 100 * point.low, 100 * point.high, color=look.line, linewidth=0.8)
        x = 100 * point.value
        dot = axes.plot(x, y, look.marker, color=look.line, **style.MARKER_EDGE)
        at, options = ("axes fraction", "data"), {"fontsize": 5.8, "color": look.text, "va": "center"}
        words = add_text(axes, note, (1, y), at, (6, 0), **options)
        style.tag(axes, point.model, [interval, *dot, words])
        value = with_interval(*(f"{100 * number:.1f}" for number in point.estimate))
        style.mark(axes, point.model, (x, y), f"{models.labels[point.model]}, {rows.task}: {value} %")
    if rows.chance is not None:
        x, bottom = 100 * rows.chance, top + len(rows.points) - 1
        axes.plot([x, x], [top - 0.6, bottom + 0.6], color=style.MUTED, linewidth=0.9, zorder=1)
