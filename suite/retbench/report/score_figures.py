"""The figures of quality: loss along documents and along a training, quality by size, accuracy in tasks.

Every seed has its own curve or point: there is no mean over seeds, nor an interval over them. The figures of
recall are another matter; see `recall_figure`.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from retbench.records.record import Record
from retbench.report import style
from retbench.report.accuracy_figure import draw_accuracies
from retbench.report.curves import draw_row
from retbench.report.distance_figure import draw_distances
from retbench.report.drawing import Drawing
from retbench.report.evaluations import Evaluations, describe_rates
from retbench.report.labels import add_note, beside
from retbench.report.length_figure import draw_lengths
from retbench.report.needle_figure import draw_needles
from retbench.report.panels import Panel, Point, frame_points
from retbench.report.points import TaskPoint, fact, group, instance_of, instance_row, is_final
from retbench.report.provenance import describe_conditions
from retbench.report.rate_figure import draw_rates
from retbench.report.recall_figure import draw_recall
from retbench.report.slices_figure import draw_slices
from retbench.report.state_figure import draw_states
from retbench.report.wording import file_stem, join_words
from retbench.units import format_count, format_size, format_tokens

_MOST_PANELS = 4
"""Sizes that have room side by side."""
_LARGEST_LOSS = math.log(sys.float_info.max)
"""In nats; the perplexity of a larger one is not a number."""
_POINT_PER_SEED = "Each point is one seed of the training; the points of the models stand side by side."


def draw_scores(scores: Evaluations) -> list[Drawing]:
    """Return every figure that the scores allow, in the order of the report."""
    trainings = scores.task_points("seed")
    with style.house_style():
        return [
            *(each for task_point in trainings for each in _draw_figure5(scores, task_point)),
            *_draw_bits(scores),
            *draw_states(scores),
            *(each for task_point in scores.longest_texts() for each in _draw_positions(scores, task_point)),
            *(each for points in scores.groups("answers") for each in draw_accuracies(scores, points)),
            *(each for task_point in scores.scored("slices") for each in draw_slices(scores, task_point)),
            *(each for points in scores.groups("needles") for each in draw_needles(scores, points)),
            *(each for points in scores.groups("recall") for each in draw_recall(scores, points)),
            *(each for points in scores.groups("recall") for each in draw_distances(scores, points)),
            *(each for points in scores.groups("lengths") for each in draw_lengths(scores, points)),
            *(each for task_point in trainings for each in _draw_learning(scores, task_point)),
            *(each for task_point in trainings for each in draw_rates(scores, task_point)),
        ]


def _drawing(
    task_point: TaskPoint,
    what: str,
    texts: tuple[str, str],
    records: Sequence[Record],
    figure: Figure,
    data: pd.DataFrame,
) -> Drawing:
    """Return a drawing of a question's records, with title and caption."""
    name, experiments = task_point.stem(what), (task_point.experiment,)
    return Drawing(name, experiments, *texts, describe_conditions(records), figure, data)


# ---- loss along documents and along a training -----------------------------------------------------------------------


def _draw_positions(scores: Evaluations, task_point: TaskPoint) -> Iterator[Drawing]:
    """Yield the loss along the documents, a panel per size."""
    series, title = "loss_by_position", "Loss along the document"
    for part, records, data, panels in _parts(scores, task_point, series):
        figure = draw_row(
            panels,
            (title, f"nats per token, {task_point.title}", describe_conditions(records)),
            _three_decimals,
            "position in the document, tokens (log scale)",
            scale="span",
        )
        marks = [
            scores.trained_length(
                [record for record in records if format_size(record.model.size) == panel.title]
            )
            for panel in panels
        ]
        _mark_lengths(figure.axes, marks, panels[0].ticks)
        caption = (
            f"Nats per token against the position of the token in its document, {task_point.title}; "
            "each point is the mean of the positions since the previous point, one line per seed."
            + (" The dashed line is the sequence length of the training." if any(marks) else "")
        )
        yield _drawing(task_point, f"by_position{part}", (title, caption), records, figure, data)


def _mark_lengths(axes: Sequence[Axes], marks: Sequence[int | None], ticks: Sequence[float]) -> None:
    """Mark the length that the models of each panel were trained at, if it is in the range."""
    for each, length in zip(axes, marks, strict=True):
        if length is not None and ticks[0] <= length <= ticks[-1]:
            each.axvline(length, color=style.MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
            if each is axes[0]:
                add_note(each, "training\nlength", beside(length))


def _draw_learning(scores: Evaluations, task_point: TaskPoint) -> Iterator[Drawing]:
    """Yield the validation loss along the final trainings, a panel per size."""
    series, title = "validation_loss_nats", "Learning curves"
    corpus, length = task_point.task or "its own text", format_tokens(task_point.context_len)
    for part, records, data, panels in _parts(scores, task_point, series):
        unit = "token" if fact(records[0], "tokenizer") else "answer"
        subtitle = f"validation loss, nats per {unit}; sequences of {length}, {corpus}"
        figure = draw_row(
            panels,
            (title, subtitle, describe_conditions(records)),
            _three_decimals,
            "tokens learned from",
            partial(_set_token_axis, density=1 if len(panels) > 2 else 4 // len(panels)),
            scale="span",
        )
        caption = (
            f"Loss on the validation split of {corpus} during training on its training split, in "
            f"sequences of {length}; one line per seed. {describe_rates(scores, records)}"
        )
        yield _drawing(task_point, f"learning{part}", (title, caption), records, figure, data)


def _set_token_axis(axes: Axes, places: Sequence[float], density: int) -> None:
    """Make a linear axis of tokens from zero; its outer ticks are aligned inwards, for panels are close together."""
    last = max(places)
    axes.set_xlim(0, style.LINEAR_EDGE * last)
    ticks = [x for x in MaxNLocator(nbins=density).tick_values(0, last) if x <= last]
    axes.set_xticks(ticks, [_short(x) for x in ticks])
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[-1].set_horizontalalignment("right")


def _short(count: float) -> str:
    """Return a number of tokens for a tick: '20 M'."""
    steps = ((1e9, "B"), (1e6, "M"), (1e3, "K"), (0, ""))
    size, unit = next((size, unit) for size, unit in steps if count >= size)
    return f"{count / (size or 1):.3g} {unit}".strip()


def _three_decimals(point: Point) -> str:
    return f"{point.value:.3f}"


def _parts(
    scores: Evaluations, task_point: TaskPoint, series: str
) -> Iterator[tuple[str, list[Record], pd.DataFrame, list[Panel]]]:
    """Yield as many sizes as one figure has room for: suffix of its name, records, data, and a panel per size."""
    final = [record for record in scores.measured(task_point) if is_final(record)]
    records = [record for record in final if series in record.series and record.series[series].x]
    sizes = scores.sizes(records)
    for start in range(0, len(sizes), _MOST_PANELS):
        shown = sizes[start : start + _MOST_PANELS]
        mine = [record for record in records if record.model.size in shown]
        data, axis = _series_data(mine, series), mine[0].series[series].x_name
        by_size = dict(iter(data.sort_values("seed", kind="stable").groupby("size")))
        places = tuple(sorted(set(data[axis])))
        points = {size: frame_points(by_size[size], axis=axis, curve="seed") for size in shown}
        panels = [Panel(points[size], scores.models, format_size(size), places) for size in shown]
        yield f"_{start // _MOST_PANELS + 1}" if start else "", mine, data, panels


def _series_data(records: Sequence[Record], series: str) -> pd.DataFrame:
    """Return the points of a series of each record."""
    rows = []
    for record in records:
        values = record.series[series]
        counts = values.counts or (1,) * len(values.x)
        for x, y, count in zip(values.x, values.y, counts, strict=True):
            row = {"metric": series, "unit": values.unit, values.x_name: x, "value": y, "count": count}
            rows.append(instance_row(record) | row)
    return pd.DataFrame(rows)


# ---- quality by size -------------------------------------------------------------------------------------------------


class _SizePart(NamedTuple):
    """One panel of quality against size: its title, records, and rows of `_size_data`."""

    title: str
    records: list[Record]
    data: pd.DataFrame


def _draw_bits(scores: Evaluations) -> Iterator[Drawing]:
    """Yield bits per byte against the parameters, a figure per protocol, a panel per corpus with two sizes or more.

    A model that reads beyond its trained length can lose so much that it would flatten the panels of another protocol.
    """
    metric, found = "bits_per_byte", dict[TaskPoint, list[Record]]()
    for task_point in scores.longest_texts():
        records = [r for r in scores.measured(task_point) if metric in r.metrics and _params(r)]
        if len(scores.sizes(records)) > 1:
            found[task_point] = records
    for names, points in group(found, lambda p: (p.experiment, p.workload, p.protocol)).items():
        parts = [
            _SizePart(
                p.title, found[p], _size_data(found[p], metric, "bits", lambda r: r.metrics[metric].value)
            )
            for p in points
        ]
        where = join_words([part.title for part in parts])
        caption = (
            f"Bits per byte on {where} against the size of the models; lower is better. {_POINT_PER_SEED}"
        )
        texts = "Quality by size", "bits per byte" if len(parts) > 1 else f"bits per byte, {where}", caption
        stem = file_stem("_".join(filter(None, (*names, "by_size"))))
        yield _draw_sizes(scores, stem, texts, parts)


def _draw_figure5(scores: Evaluations, task_point: TaskPoint) -> Iterator[Drawing]:
    """Yield the RetNet paper's Figure 5: validation perplexity against the parameters, of two sizes or more.

    Perplexities per token of different tokenizers cannot be compared, and a task has none: there is no figure then.
    """
    metric = "validation_loss_nats"
    records = [
        record
        for record in scores.measured(task_point)
        if is_final(record)
        and _params(record)
        and {metric, "num_tokens"} <= record.metrics.keys()
        and record.metrics[metric].value < _LARGEST_LOSS
    ]
    tokenizers = {fact(record, "tokenizer_fingerprint") for record in records}
    if len(scores.sizes(records)) < 2 or len(tokenizers) > 1 or tokenizers == {None}:
        return
    data = _size_data(
        records, "validation_perplexity", "ratio", lambda record: math.exp(record.metrics[metric].value)
    )
    corpus, length = task_point.task or "its own text", format_tokens(task_point.context_len)
    counts = sorted({record.metrics["num_tokens"].value for record in records})
    tokens = " to ".join(dict.fromkeys(format_count(count) for count in (counts[0], counts[-1])))
    caption = (
        f"Perplexity per token (tokenizer: {fact(records[0], 'tokenizer')}) on the validation split of "
        f"{corpus} against the size of the models; lower is better. They were trained on {tokens} tokens of its "
        f"training split in sequences of {length}. {describe_rates(scores, records)} {_POINT_PER_SEED}"
    )
    title, subtitle = (
        "Our models in the layout of RetNet Figure 5",
        f"validation perplexity, {corpus}, {length}",
    )
    parts = [_SizePart(subtitle, records, data)]
    yield _draw_sizes(scores, task_point.stem("figure5"), (title, subtitle, caption), parts)


def _params(record: Record) -> int:
    return record.model.num_params_nonembedding


def _size_data(
    records: Sequence[Record], metric: str, unit: str, value: Callable[[Record], float]
) -> pd.DataFrame:
    """Return a row per record, with its parameters and its value."""
    rows = [
        instance_row(record)
        | {"num_params_nonembedding": _params(record), "metric": metric, "unit": unit, "value": value(record)}
        for record in records
    ]
    return pd.DataFrame(rows)


def _draw_sizes(
    scores: Evaluations, name: str, texts: tuple[str, str, str], parts: Sequence[_SizePart]
) -> Drawing:
    """Draw a point per record, and a line through the first seed that every size has, in a panel per part.

    Args:
        scores: All scores.
        name: The figure's name.
        texts: Title, subtitle and caption.
        parts: The panels; a panel alone has no title.
    """
    title, subtitle, caption = texts
    records = [record for part in parts for record in part.records]
    sizes = {_params(record): record.model.size for record in sorted(records, key=_params)}
    counts = [fmean(n for n in sizes if sizes[n] == size) for size in dict.fromkeys(sizes.values())]
    joined = next(iter(_shared_seeds(records)), "")
    line = f"; the line: seed {joined}" if joined not in ("", "none") else ""
    aside_pt = min(16.0, 4.4 * (len(scores.models.models) - 1))
    panels = [
        Panel(
            frame_points(part.data, axis="num_params_nonembedding", curve="seed"),
            scores.models,
            part.title.replace(" (", "\n(") if len(parts) > 1 else "",
            joined=joined,
            aside_pt=aside_pt if len(parts) == 1 else aside_pt / 2,
        )
        for part in parts
    ]
    conditions = describe_conditions(records)
    figure = draw_row(
        panels,
        (title, f"{subtitle}{line}", conditions),
        _three_decimals,
        "parameters without embedding (log scale)",
        lambda axes, _: style.set_count_axis(
            axes, counts, [format_count(n).replace(" ", "") for n in counts]
        ),
        scale="span",
    )
    data = [part.data.assign(text=part.title) if len(parts) > 1 else part.data for part in parts]
    experiments = tuple(dict.fromkeys(record.experiment for record in records))
    return Drawing(name, experiments, title, caption, conditions, figure, pd.concat(data, ignore_index=True))


def _shared_seeds(records: Sequence[Record]) -> list[str]:
    """Return the seeds that every size of every model has."""
    found: dict[tuple[str, str], set[str]] = {}
    for record in records:
        found.setdefault((record.model.name, record.model.size), set()).add(instance_of(record).seed_word)
    return sorted(set.intersection(*found.values()))
