"""The figure of accuracy in zero-shot tasks: a dot per model and seed with its interval, and how models differ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from retbench.records.record import Record
from retbench.report import style
from retbench.report.curves import Point
from retbench.report.document_comparisons import DocumentComparison
from retbench.report.evaluations import Evaluations, chance
from retbench.report.labels import add_text, label_width_in
from retbench.report.points import Lineup, TaskPoint, accuracy, instance_of, instance_row, task_point_of
from retbench.report.provenance import describe_conditions
from retbench.report.style import Drawing
from retbench.report.wording import POINTS, file_stem, format_p
from retbench.stats.paired import proportion_interval

_ROW_IN = 0.124
"""Height of one dot."""


@dataclass(frozen=True)
class TaskRows:
    """The accuracies of all models in one task, as ratios.

    Attributes:
        task: Name of the task.
        points: In the order of the models.
        chance: Accuracy of guessing; None where it is not known.
        note: How the models differ.
    """

    task: str
    points: tuple[Point, ...]
    chance: float | None
    note: str

    @property
    def height(self) -> int:
        """Rows of dots."""
        return max(1, len(self.points))


def draw_accuracies(scores: Evaluations, task_points: Sequence[TaskPoint]) -> Iterator[Drawing]:
    """Yield the accuracy in each task at the largest size that two models or more were evaluated at."""
    records = [r for q in task_points for r in scores.measured(q) if accuracy(r)]
    sizes = [
        size
        for size in scores.sizes(records)
        if len({record.model.name for record in records if record.model.size == size}) > 1
    ]
    if not sizes:
        return
    largest = [record for record in records if record.model.size == sizes[-1]]
    tasks = [_task_rows(scores, task_point, largest) for task_point in task_points]
    shots = task_points[0].num_fewshot or 0
    title, conditions = f"Accuracy, {shots}-shot", describe_conditions(largest)
    subtitle = f"%, models of {sizes[-1]}; bars: 95 % interval over questions"
    yield Drawing(
        name=f"{file_stem(task_points[0].experiment)}_zeroshot_{shots}shot",
        experiments=(task_points[0].experiment,),
        title=title,
        caption=f"Accuracy (acc) of the models of {sizes[-1]}, {shots}-shot, with Wilson's 95 % "
        "interval over the questions. The grey tick is the accuracy of guessing. The text beside it is the difference "
        "in percentage points, paired over the questions, and the p-value of McNemar's exact test.",
        conditions=conditions,
        figure=_draw([rows for rows in tasks if rows.points], scores.models, (title, subtitle, conditions)),
        data=pd.DataFrame([_data_row(record) for record in largest]),
    )


def _point(record: Record) -> Point:
    """Return an accuracy with its interval."""
    value, count = accuracy(record) or (0.0, 1)  # figures show only those that have one
    return Point(record.model.name, 0, value, *proportion_interval(round(value * count), count))


def _data_row(record: Record) -> dict[str, object]:
    point = _point(record)
    return instance_row(record) | {
        "task": record.point.task,
        "metric": "acc",
        "unit": "ratio",
        "value": point.value,
        "low": point.low,
        "high": point.high,
        "num_documents": (accuracy(record) or (0, 0))[1],
        "chance": chance(record.point.task, "acc"),
    }


def _task_rows(scores: Evaluations, task_point: TaskPoint, records: Sequence[Record]) -> TaskRows:
    """Return the accuracies in a task, by model and seed."""
    models = scores.models
    mine = [record for record in records if task_point_of(record) == task_point]
    mine.sort(key=lambda record: (models.models.index(record.model.name), instance_of(record).seed_word))
    notes = [
        (f"{models.labels[model]} " if len(models.challengers) > 1 else "") + _note(comparison)
        for model in models.challengers  # in the order of their dots
        for comparison in scores.compared(task_point, model)
        if comparison.instance.size == records[0].model.size and "acc" in comparison.accuracies
    ]
    points = tuple(_point(record) for record in mine)
    return TaskRows(str(task_point.task), points, chance(task_point.task, "acc"), "\n".join(notes))


def _note(comparison: DocumentComparison) -> str:
    pair = comparison.accuracies["acc"]
    p_value = format_p(pair.p_value)
    return f"{POINTS * pair.difference:+.1f}, p {p_value if p_value.startswith('<') else f'= {p_value}'}"


def _draw(tasks: Sequence[TaskRows], models: Lineup, texts: tuple[str, str, str]) -> Figure:
    """Draw the tasks from the top down."""
    num_rows = sum(rows.height + 1 for rows in tasks) + 1
    figure = style.new_figure(style.HEADER_IN + style.BASE_IN + _ROW_IN * num_rows, *texts)
    (axes,) = style.add_panels(
        figure,
        [1],
        ["accuracy, %"],
        right_in=label_width_in([rows.note for rows in tasks]) * 0.74,
        left_in=label_width_in([rows.task for rows in tasks]) * 0.95,
    )
    ends = [100 * end for rows in tasks for point in rows.points for end in (point.low, point.high)]
    guesses = [100 * rows.chance for rows in tasks if rows.chance is not None]
    axes.set_xlim(max(0, min(ends + guesses) - 2), min(100, max(ends + guesses) + 2))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="x")
    top, middles = 0, list[float]()
    for rows in tasks:
        middles.append(top + (rows.height - 1) / 2)
        _draw_task(axes, rows, models, top)
        top += rows.height + 1
    axes.set_ylim(top - 1, -1)
    axes.set_yticks(middles, [rows.task for rows in tasks])
    _name_models(
        axes, models, {point.model for rows in tasks for point in rows.points}, guesses=bool(guesses)
    )
    return figure


def _draw_task(axes: Axes, rows: TaskRows, models: Lineup, top: int) -> None:
    """Draw dots, intervals, the accuracy of guessing and the note of one task."""
    for y, point in enumerate(rows.points, top):
        look = style.look(models.models.index(point.model))
        axes.hlines(y, 100 * point.low, 100 * point.high, color=look.line, linewidth=0.8)
        x = 100 * point.value
        axes.plot(x, y, look.marker, color=look.line, markeredgecolor=style.PAPER, markeredgewidth=0.4)
    bottom = top + rows.height - 1
    if rows.chance is not None:
        x = 100 * rows.chance
        axes.plot([x, x], [top - 0.6, bottom + 0.6], color=style.MUTED, linewidth=0.9, zorder=1)
    at = (1, (top + bottom) / 2)
    add_text(
        axes, rows.note, at, ("axes fraction", "data"), (6, 0), fontsize=5.8, color=style.INK, va="center"
    )


def _name_models(axes: Axes, models: Lineup, present: set[str], *, guesses: bool) -> None:
    """Write the models' names in their colours above the axes, each with its marker, and the mark of guessing.

    Names that do not fit in one line continue in further ones, for which the axes make room at their top.
    """
    looks = [(models.labels[name], style.look(i)) for i, name in enumerate(models.models) if name in present]
    marks = [(name, look.marker, look.line, look.text) for name, look in looks]
    if guesses:
        marks.append(("guessing", "|", style.MUTED, style.MUTED))
    x_pt, room_pt, line = 2.0, (1 - axes.get_position().x0) * style.WIDTH_IN * style.POINTS_PER_IN, 0
    for name, marker, colour, text in marks:
        if x_pt > 2 and x_pt + 5 + 4.2 * len(name) > room_pt:
            x_pt, line = 2.0, line + 1
        y_pt = 7.0 - 10 * line
        place = offset_copy(axes.transAxes, axes.figure.figure, x=x_pt, y=y_pt, units="points")
        axes.plot(0, 1, marker, color=colour, transform=place, clip_on=False)
        at = (x_pt + 5, y_pt)
        add_text(axes, name, (0, 1), "axes fraction", at, color=text, fontweight="bold", va="center")
        x_pt += 18 + 4.2 * len(name)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top - 1.2 * line)
