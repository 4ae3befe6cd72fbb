"""The figures of quality by size: losses against the parameters of the models, and against the bytes of their state.

Each point is one seed of a training: there is no mean over seeds, nor an interval over them.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean

import pandas as pd

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.figures import style
from retbench.report.figures.curves import draw_row, three_decimals
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.panels import Panel, Units, seed_curve, seed_points
from retbench.report.points import TaskPoint, fact, group, instance_of, instance_row, is_final, state_bytes_of
from retbench.report.tables.readable_scores import MOST_MODELS
from retbench.report.trainings import describe_rates
from retbench.report.wording import file_stem, join_words, range_of
from retbench.units import format_count, format_tokens

_BITS = "bits_per_byte"
_LARGEST_LOSS = math.log(sys.float_info.max)
"""In nats; the perplexity of a larger one is not a number."""
_FLATTENED = 0.4
"""Share of the height of a panel that values may be left with beside those of one model that lie above all others."""
_POINT_PER_SEED = "Each point is one seed of the training; the points of the models stand side by side."


def draw_bits(scores: Evaluations) -> Iterator[Drawing]:
    """Yield bits per byte against the parameters, a figure per protocol, a panel per corpus with two sizes or more.

    A model that reads beyond its trained length can lose so much that it would flatten the panels of another protocol.
    """
    found: dict[TaskPoint, list[Record]] = {}
    for task_point in scores.longest_texts():
        records = [r for r in scores.measured(task_point) if _BITS in r.metrics and _params(r)]
        if len(scores.sizes(records)) > 1:
            found[task_point] = records
    for names, points in group(found, lambda p: (p.experiment, p.workload, p.protocol)).items():
        parts = [(point.title, _size_data(found[point], _BITS, "bits", _bits)) for point in points]
        where = join_words([point.title for point in points])
        records = [record for point in points for record in found[point]]
        view = View(
            name=file_stem("_".join(filter(None, (*names, "by_size")))),
            title="Quality by size",
            subtitle="bits per byte" if len(parts) > 1 else f"bits per byte, {where}",
            caption=f"Bits per byte on {where} against the size of the models; lower is better. {_POINT_PER_SEED}"
            f"{scores.extrapolation_note(records)}",
            records=records,
        )
        yield _draw_sizes(scores, view, parts)


def draw_figure5(scores: Evaluations, task_point: TaskPoint) -> Iterator[Drawing]:
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
    corpus, length = task_point.corpus, format_tokens(task_point.context_len)
    tokens = range_of((record.metrics["num_tokens"].value for record in records), format_count)
    view = View(
        name=task_point.stem("figure5"),
        title="Our models in the layout of RetNet Figure 5",
        subtitle=f"validation perplexity, {corpus}, {length}",
        caption=f"Perplexity per token (tokenizer: {fact(records[0], 'tokenizer')}) on the validation split of "
        f"{corpus} against the size of the models; lower is better. They were trained on {tokens} tokens of its "
        f"training split in sequences of {length}. {describe_rates(scores, records)} {_POINT_PER_SEED}",
        records=records,
    )
    yield _draw_sizes(scores, view, [("", data)])


def draw_states(scores: Evaluations) -> Iterator[Drawing]:
    """Yield bits per byte against the bytes of the state, a figure per corpus and protocol with many models."""
    for point in scores.longest_texts():
        records = [r for r in scores.measured(point) if _BITS in r.metrics and state_bytes_of(r)]
        if len({record.model.name for record in records}) <= MOST_MODELS:
            continue
        data = _size_data(records, _BITS, "bits", _bits, with_state=True)
        most = _readable(data)
        leaves = (
            " Values far above the others leave the plot; the last is beside the name."
            if most < math.inf
            else ""
        )
        view = View(
            name=point.stem("by_state"),
            title="Quality against the size of the state",
            subtitle=f"bits per byte, {point.title}",
            caption=f"Bits per byte on {point.title} against the analytical bytes of state or key-value cache of one "
            "sequence of that context; lower is better. One point per size and seed; lines join the sizes of a seed."
            f"{leaves}{scores.extrapolation_note(records)}",
            records=records,
        )
        figure = draw_row(
            [Panel(seed_points(data, "state_bytes"), scores.models, units=_units(data), at_most=most)],
            view.texts,
            three_decimals,
            style.STATE_LABEL,
            style.set_bytes_axis,
            scale="span",
        )
        yield view.drawing(figure, data)


def _readable(data: pd.DataFrame) -> float:
    """Return the highest value to draw: that of all models but the worst, if the worst would flatten the others."""
    lows = data.groupby("model")["value"].min()
    worst = data["model"] == lows.idxmax()
    others, low = data["value"][~worst].max(), data["value"].min()
    is_apart = lows.max() > others and others - low < _FLATTENED * (data["value"].max() - low)
    return float(others) if is_apart else math.inf


def _bits(record: Record) -> float:
    return record.metrics[_BITS].value


def _params(record: Record) -> int:
    return record.model.num_params_nonembedding


def _size_data(
    records: Sequence[Record],
    metric: str,
    unit: str,
    value: Callable[[Record], float],
    *,
    with_state: bool = False,
) -> pd.DataFrame:
    """Return a row per record, with its parameters and its value, and if wanted the bytes of its state."""
    rows = [
        instance_row(record)
        | ({"state_bytes": state_bytes_of(record)} if with_state else {})
        | {"num_params_nonembedding": _params(record), "metric": metric, "unit": unit, "value": value(record)}
        for record in records
    ]
    return pd.DataFrame(rows)


def _draw_sizes(scores: Evaluations, view: View, parts: Sequence[tuple[str, pd.DataFrame]]) -> Drawing:
    """Draw a point per record, and a line through the first seed that every size has, in a panel per part.

    Args:
        scores: All scores.
        view: The figure's words, and all its records.
        parts: Title and rows of `_size_data` of each panel; a panel alone has no title.
    """
    several = len(parts) > 1
    sizes = {_params(record): record.model.size for record in sorted(view.records, key=_params)}
    counts = [fmean(n for n in sizes if sizes[n] == size) for size in dict.fromkeys(sizes.values())]
    joined = next(iter(_shared_seeds(view.records)), "")
    if joined not in ("", "none"):
        view = replace(view, subtitle=f"{view.subtitle}; the line: seed {joined}")
    aside_pt = min(16.0, 4.4 * (len(scores.models.models) - 1))
    panels = [
        Panel(
            seed_points(rows, "num_params_nonembedding"),
            scores.models,
            title.replace(" (", "\n(") if several else "",
            units=_units(rows),
            joined=seed_curve(joined),
            aside_pt=aside_pt / 2 if several else aside_pt,
        )
        for title, rows in parts
    ]
    figure = draw_row(
        panels,
        view.texts,
        three_decimals,
        "parameters without embedding (log scale)",
        lambda axes, _: style.set_count_axis(axes, counts, lambda n: format_count(n).replace(" ", "")),
        scale="span",
    )
    data = [rows.assign(text=title) if several else rows for title, rows in parts]
    return view.drawing(figure, pd.concat(data, ignore_index=True))


def _units(rows: pd.DataFrame) -> Units:
    """Return the unit of rows of `_size_data` for a panel."""
    unit = str(rows["unit"].iloc[0])
    return ((1.0, "" if unit == "ratio" else unit),)


def _shared_seeds(records: Sequence[Record]) -> list[str]:
    """Return the seeds that every size of every model has."""
    found = group(records, lambda record: (record.model.name, record.model.size)).values()
    return sorted(set.intersection(*({instance_of(record).seed_word for record in mine} for mine in found)))
