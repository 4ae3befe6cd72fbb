"""Figures of quality: loss along documents and along a training, quality over sizes, answers to tasks.

A seed is a line or point of its own: never a mean over seeds, never an interval over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

from retbench.report import style
from retbench.report.labels import Label, add_note, beside, label_ends, label_width_in
from retbench.report.points import Lineup
from retbench.units import format_count

HEIGHT_IN = 2.75
_ROW_IN = 0.2
"""Height of a model's dot in the figure of answers."""


@dataclass(frozen=True)
class Curve:
    """One line: of a model, and of one seed of it."""

    model: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """The curves of one size.

    Attributes:
        name: What stands in its corner.
        curves: Of all models and seeds.
        trained_len: Where to mark what the models were trained at; None where that is not known.
    """

    name: str
    curves: tuple[Curve, ...]
    trained_len: int | None = None


@dataclass(frozen=True)
class Answer:
    """The accuracy of one seed of a model in a task, as a ratio, with its interval."""

    model: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Exam:
    """The answers of all models in a task.

    Attributes:
        task: Its name.
        answers: In the order of the models.
        chance: What guessing reaches; None where that is not known.
        note: Beside them: how the models differ.
    """

    task: str
    answers: tuple[Answer, ...]
    chance: float | None
    note: str


def draw_positions(
    panels: Sequence[Panel], models: Lineup, title: str, subtitle: str, conditions: str
) -> Figure:
    """Loss against the position in the document, a panel a size; what the models were trained at is marked."""
    label = "position in the document, tokens (log scale)"
    figure, axes = _new(panels, models, (title, subtitle, conditions), label)
    lengths = sorted({int(x) for panel in panels for curve in panel.curves for x in curve.x})
    for number, (place, panel) in enumerate(zip(axes, panels, strict=True)):
        style.set_length_axis(place, lengths)
        _fill(place, panel, models, markers=True)
        if panel.trained_len is not None and min(lengths) <= panel.trained_len <= max(lengths):
            place.axvline(
                panel.trained_len, color=style.MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1
            )
            if number == 0:
                add_note(place, "training\nlength", beside(panel.trained_len))
    _label_last(axes[-1], panels[-1], models)
    return figure


def draw_training(
    panels: Sequence[Panel], models: Lineup, title: str, subtitle: str, conditions: str
) -> Figure:
    """Validation loss against the tokens learned from, a panel a size."""
    figure, axes = _new(panels, models, (title, subtitle, conditions), "tokens learned from")
    last = max(x for panel in panels for curve in panel.curves for x in curve.x)
    for place, panel in zip(axes, panels, strict=True):
        place.set_xlim(0, 1.06 * last)
        ticks = [
            x
            for x in MaxNLocator(nbins=1 if len(panels) > 2 else 4 // len(panels)).tick_values(0, last)
            if x <= last
        ]
        place.set_xticks(ticks, [_short(x) for x in ticks])
        place.get_xticklabels()[0].set_horizontalalignment("left")  # panels stand close to each other
        place.get_xticklabels()[-1].set_horizontalalignment("right")
        _fill(place, panel, models, markers=False)
    _label_last(axes[-1], panels[-1], models)
    return figure


def draw_sizes(
    panel: Panel,
    lines: Sequence[Curve],
    sizes: Sequence[tuple[str, float]],
    models: Lineup,
    texts: tuple[str, str, str],
) -> Figure:
    """A loss against the size of the models.

    Args:
        panel: A curve a seed and model: its points.
        lines: The seed that every size has, of each model: it is joined by a line.
        sizes: Name and parameters of each size.
        models: All models.
        texts: Title, subtitle and conditions.
    """
    label = "parameters without embedding (log scale)"
    figure, (axes,) = _new([panel], models, texts, label)
    style.set_count_axis(
        axes, [count for _, count in sizes], [f"{format_count(count)}" for _, count in sizes]
    )
    for index, model in enumerate(models.models):
        # Matched models are as large as each other: without this their points would hide one another.
        aside = 4.4 * (index - (len(models.models) - 1) / 2)
        look, place = style.look(index), offset_copy(axes.transData, figure, x=aside, units="points")
        for curve in (line for line in lines if line.model == model):
            axes.plot(curve.x, curve.y, color=look.line, linewidth=0.9, transform=place)
        for curve in (points for points in panel.curves if points.model == model):
            axes.plot(
                curve.x,
                curve.y,
                look.marker,
                color=look.line,
                markersize=3.4,
                markeredgecolor=style.PAPER,
                markeredgewidth=0.3,
                transform=place,
            )
    _label_last(axes, Panel("", tuple(lines) or panel.curves), models)
    return figure


def draw_answers(exams: Sequence[Exam], models: Lineup, texts: tuple[str, str, str]) -> Figure:
    """Accuracy in each task, a row a task: a dot a model and seed with its interval, a tick where guessing leads."""
    title, subtitle, conditions = texts
    rows = sum(max(1, len(exam.answers)) + 1 for exam in exams)
    height_in = style.HEADER_IN + style.FOOTER_IN + 0.33 + _ROW_IN * 0.62 * (rows + 1)
    figure = style.new_figure(height_in, title, subtitle, conditions)
    left_in = label_width_in([exam.task for exam in exams]) * 0.95
    right_in = label_width_in([exam.note for exam in exams]) * 0.74
    (axes,) = style.add_panels(figure, [1], right_in=right_in, left_in=left_in, label="accuracy, %")
    ends = [100 * end for exam in exams for answer in exam.answers for end in (answer.low, answer.high)]
    ends += [100 * exam.chance for exam in exams if exam.chance is not None]
    axes.set_xlim(max(0, min(ends) - 2), min(100, max(ends) + 2))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="x")
    middles = _fill_exams(axes, exams, models)
    axes.yaxis.set_major_locator(FixedLocator(middles))
    axes.yaxis.set_major_formatter(FixedFormatter([exam.task for exam in exams]))
    axes.yaxis.set_minor_locator(NullLocator())
    present = {answer.model for exam in exams for answer in exam.answers}
    _name_models(axes, models, present, chance=any(exam.chance is not None for exam in exams))
    return figure


def _fill_exams(axes: Axes, exams: Sequence[Exam], models: Lineup) -> list[float]:
    """Dots, intervals, chance and notes from the top down; the middle of each task's rows."""
    middles, y = [], 0.0
    for exam in exams:
        places = [y + index for index in range(max(1, len(exam.answers)))]
        middles.append((places[0] + places[-1]) / 2)
        for place, answer in zip(places, exam.answers, strict=False):
            look = style.look(models.models.index(answer.model))
            axes.hlines(place, 100 * answer.low, 100 * answer.high, color=look.line, linewidth=0.8)
            axes.plot(
                100 * answer.value,
                place,
                look.marker,
                color=look.line,
                markeredgecolor=style.PAPER,
                markeredgewidth=0.4,
            )
        if exam.chance is not None:
            x = 100 * exam.chance
            axes.plot([x, x], [places[0] - 0.6, places[-1] + 0.6], color=style.MUTED, linewidth=0.9, zorder=1)
        axes.annotate(
            exam.note,
            xy=(1, middles[-1]),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=5.8,
            color=style.INK,
            va="center",
            annotation_clip=False,
        )
        y = places[-1] + 2
    axes.set_ylim(y - 1, -1)
    return middles


def _name_models(axes: Axes, models: Lineup, present: set[str], *, chance: bool) -> None:
    """The models' names in their colours above the axes, each with its marker, and the mark of guessing.

    What does not fit in that line stands in further ones, for which the axes make room at their top.
    """
    looks = [
        (models.labels[name], style.look(index))
        for index, name in enumerate(models.models)
        if name in present
    ]
    marks = [(name, look.marker, look.line, look.text) for name, look in looks]
    if chance:
        marks.append(("guessing", "|", style.MUTED, style.MUTED))
    x_pt, room_pt, line = 2.0, (1 - axes.get_position().x0) * style.WIDTH_IN * style.POINTS_PER_IN, 0
    for name, marker, colour, text in marks:
        if x_pt > 2 and x_pt + 5 + 4.2 * len(name) > room_pt:
            x_pt, line = 2.0, line + 1
        y_pt = 7.0 - 10 * line
        place = offset_copy(axes.transAxes, axes.figure.figure, x=x_pt, y=y_pt, units="points")
        axes.plot(0, 1, marker, color=colour, transform=place, clip_on=False)
        axes.annotate(
            name,
            xy=(0, 1),
            xycoords="axes fraction",
            xytext=(x_pt + 5, y_pt),
            textcoords="offset points",
            color=text,
            fontweight="bold",
            fontsize=6.2,
            va="center",
        )
        x_pt += 18 + 4.2 * len(name)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top - 1.2 * line)


def _new(
    panels: Sequence[Panel], models: Lineup, texts: tuple[str, str, str], label: str
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each, their shared value axis around all that they hold."""
    figure = style.new_figure(HEIGHT_IN, *texts)
    axes = style.add_panels(
        figure, [1] * len(panels), right_in=label_width_in(list(models.labels.values())), label=label
    )
    values = [y for panel in panels for curve in panel.curves for y in curve.y]
    style.set_range_axis(axes[0], min(values), max(values))
    for other in axes[1:]:
        other.grid(axis="y")
    for place, panel in zip(axes, panels, strict=True):
        place.set_title(panel.name, fontsize=6.5, color=style.MUTED, loc="left", pad=3)
    return figure, axes


def _fill(axes: Axes, panel: Panel, models: Lineup, *, markers: bool) -> None:
    """The curves of a panel; where a model has several seeds its lines are thin."""
    for curve in panel.curves:
        look = style.look(models.models.index(curve.model))
        seeds = sum(other.model == curve.model for other in panel.curves)
        axes.plot(
            curve.x,
            curve.y,
            color=look.line,
            linewidth=1.2 if seeds == 1 else 0.7,
            markeredgecolor=style.PAPER,
            markeredgewidth=0.3,
            marker=look.marker if markers else "",
            markersize=3.2,
        )


def _label_last(axes: Axes, panel: Panel, models: Lineup) -> None:
    """Each model's name and last value, of several seeds the range, to the right of the axes."""
    labels = []
    edge = axes.get_xlim()[1]
    for index, model in enumerate(models.models):
        ends = sorted(curve.y[-1] for curve in panel.curves if curve.model == model)
        if ends:
            texts = list(dict.fromkeys(f"{end:.3f}" for end in (ends[0], ends[-1])))
            middle = (ends[0] + ends[-1]) / 2
            labels.append(
                Label(edge, middle, f"{models.labels[model]}\n{'–'.join(texts)}", style.look(index).text)
            )
    label_ends(axes, labels)


def _short(count: float) -> str:
    """A number of tokens for a tick: '20 M'."""
    size, unit = next(
        ((size, unit) for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if count >= size), (1, "")
    )
    return f"{count / size:.3g} {unit}".strip()
