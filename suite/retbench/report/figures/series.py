"""The figures of a series of each record: the loss along documents or along a training, and the gain of repetition.

Every seed has its own curve: there is no mean over seeds, nor an interval over them.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.figures import style
from retbench.report.figures.curves import draw_row, three_decimals
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.labels import add_note, beside
from retbench.report.figures.panels import Panel, seed_points
from retbench.report.points import TaskPoint, instance_row, is_final, loss_unit
from retbench.report.trainings import describe_rates
from retbench.units import format_count, format_size, format_tokens

_MOST_PANELS = 4
"""Sizes that have room side by side."""
_GAIN = (
    "Loss of a word where its pair of words came first in the document, less the loss where the pair came again, in "
    "nats per word, against the bytes since the pair came last; higher is better. Only pairs are counted that are rare "
    "outside of the document. Each point is the mean of the distances since the previous point, with its 95 % interval "
    "over documents, where ten or more have such a pair; one line per seed. At 0 a model gains nothing from what it "
    "has read."
)


def draw_positions(scores: Evaluations, task_point: TaskPoint) -> Iterator[Drawing]:
    """Yield the loss along the documents, a panel per size."""
    series = "loss_by_position"
    for part, records in _parts(scores, task_point, series):
        data, panels = _size_panels(scores, records, series, "position {}")
        marks = [
            scores.trained_length(
                [record for record in records if format_size(record.model.size) == panel.title]
            )
            for panel in panels
        ]
        caption = (
            f"Nats per token against the position of the token in its document, {task_point.title}; "
            "each point is the mean of the positions since the previous point, one line per seed."
            + (" The dashed line is the sequence length of the training." if any(marks) else "")
        )
        view = View(
            name=task_point.stem(f"by_position{part}"),
            title="Loss along the document",
            subtitle=f"nats per token, {task_point.title}",
            caption=caption,
            records=records,
        )
        label = "position in the document, tokens (log scale)"
        figure = draw_row(panels, view.texts, three_decimals, label, scale="span")
        _mark_lengths(figure.axes, marks, panels[0].ticks)
        yield view.drawing(figure, data)


def _mark_lengths(axes: Sequence[Axes], marks: Sequence[int | None], ticks: Sequence[float]) -> None:
    """Mark the length that the models of each panel were trained at, if it is in the range."""
    for each, length in zip(axes, marks, strict=True):
        if length is not None and ticks[0] <= length <= ticks[-1]:
            each.axvline(length, **style.GUIDE)
            if each is axes[0]:
                add_note(each, beside(length), "training\nlength")


def draw_learning(scores: Evaluations, task_point: TaskPoint) -> Iterator[Drawing]:
    """Yield the validation loss along the final trainings, a panel per size."""
    series = "validation_loss_nats"
    corpus, length = task_point.corpus, format_tokens(task_point.context_len)
    for part, records in _parts(scores, task_point, series):
        data, panels = _size_panels(scores, records, series, "{} tokens", ends_apart=True)
        view = View(
            name=task_point.stem(f"learning{part}"),
            title="Learning curves",
            subtitle=f"validation loss, nats per {loss_unit(records[0])}; sequences of {length}, {corpus}",
            caption=f"Loss on the validation split of {corpus} during training on its training split, in "
            f"sequences of {length}; one line per seed. {describe_rates(scores, records)}",
            records=records,
        )
        set_axis = partial(_set_token_axis, density=1 if len(panels) > 2 else 4 // len(panels))
        figure = draw_row(panels, view.texts, three_decimals, "tokens learned from", set_axis, scale="span")
        yield view.drawing(figure, data)


def _set_token_axis(axes: Axes, places: Sequence[float], density: int) -> None:
    """Make a linear axis of tokens from zero; its outer ticks are aligned inwards, for panels are close together.

    Runs of one evaluation each have one tick, in the middle: curves that stand aside of it stay in the panel.
    """
    last = max(places)
    if len(places) == 1:
        style.set_linear_length_axis(axes, places, format_count)
        return
    axes.set_xlim(0, style.LINEAR_EDGE * last)
    ticks = [x for x in MaxNLocator(nbins=density).tick_values(0, last) if x <= style.LINEAR_EDGE * last]
    axes.set_xticks(ticks, [_short(x) for x in ticks])
    axes.fmt_xdata = format_count
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[-1].set_horizontalalignment("right")


def _short(count: float) -> str:
    """Return a number of tokens for a tick: '20 M'."""
    steps = ((1e9, "B"), (1e6, "M"), (1e3, "K"), (0, ""))
    size, unit = next((size, unit) for size, unit in steps if count >= size)
    return f"{count / (size or 1):.3g} {unit}".strip()


def draw_gains(scores: Evaluations, task_point: TaskPoint) -> Iterator[Drawing]:
    """Yield the gain of a repeated pair against its distance, a panel per size."""
    series = "hit_gain_by_distance"
    records = _with_series(scores.measured(task_point), series)
    if not records:
        return
    view = View(
        name=task_point.stem("gain"),
        title="Gain of a repeated pair of words",
        subtitle=f"nats per word, {task_point.title}",
        caption=_GAIN,
        records=records,
    )
    data, panels = _size_panels(scores, records, series, "{} bytes", ends=("low", "high"))
    label = "bytes since the pair came last (log scale)"
    figure = draw_row(panels, view.texts, lambda point: f"{point.value:.2f}", label, scale="span")
    for axes in figure.axes:
        axes.axhline(0, color=style.MUTED, linewidth=0.7, zorder=1)
    yield view.drawing(figure, data)


def _parts(scores: Evaluations, task_point: TaskPoint, series: str) -> Iterator[tuple[str, list[Record]]]:
    """Yield the records of as many sizes as one figure has room for, with the suffix of its name."""
    records = _with_series(filter(is_final, scores.measured(task_point)), series)
    sizes = scores.sizes(records)
    for start in range(0, len(sizes), _MOST_PANELS):
        shown = sizes[start : start + _MOST_PANELS]
        suffix = f"_{start // _MOST_PANELS + 1}" if start else ""
        yield suffix, [record for record in records if record.model.size in shown]


def _with_series(records: Iterable[Record], series: str) -> list[Record]:
    """Return the records that have points of a series."""
    return [record for record in records if series in record.series and record.series[series].x]


def _size_panels(
    scores: Evaluations,
    records: Sequence[Record],
    series: str,
    where: str,
    ends: Sequence[str] = (),
    *,
    ends_apart: bool = False,
) -> tuple[pd.DataFrame, list[Panel]]:
    """Return the points of a series of each record, and a panel per size with a curve per seed.

    Args:
        scores: All scores.
        records: Records that have points of the series.
        series: Its name.
        where: Words for the place of a point; see `Panel`.
        ends: Names of the ends of its intervals, which are series too; a point may have none.
        ends_apart: See `Panel`.
    """
    rows = []
    for record in records:
        values = record.series[series]
        found = {end: record.series.get(f"{series}_{end}") for end in ends}
        by_place = {end: dict(zip(one.x, one.y, strict=True)) if one else {} for end, one in found.items()}
        counts = values.counts or (1,) * len(values.x)
        for x, y, count in zip(values.x, values.y, counts, strict=True):
            row = {"metric": series, "unit": values.unit, values.x_name: x, "value": y, "count": count}
            rows.append(instance_row(record) | row | {end: by_place[end].get(x) for end in ends})
    data, axis = pd.DataFrame(rows), records[0].series[series].x_name
    by_size = dict(iter(data.sort_values("seed", kind="stable").groupby("size")))
    places = tuple(sorted(set(data[axis])))
    return data, [
        Panel(
            seed_points(by_size[size], axis),
            scores.models,
            format_size(size),
            places,
            units=((1.0, str(data["unit"].iloc[0])),),
            where=where,
            ends_apart=ends_apart,
        )
        for size in scores.sizes(records)
    ]
