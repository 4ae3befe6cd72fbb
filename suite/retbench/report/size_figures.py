"""Figures of quality by size: bits per byte of what was evaluated, and the RetNet paper's Figure 5 from trainings."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from matplotlib.figure import Figure

from retbench.records.record import Record
from retbench.report import score_curves
from retbench.report.drawings import Drawing
from retbench.report.evaluations import Evaluations, describe_rates
from retbench.report.points import TaskPoint, fact, instance_of, instance_row, is_final
from retbench.report.provenance import describe_conditions
from retbench.report.score_curves import Curve, Panel
from retbench.units import format_count, format_tokens

_LARGEST_LOSS = math.log(sys.float_info.max)
"""In nats; of a larger one the perplexity is no number."""


def draw_bits(scores: Evaluations, question: TaskPoint) -> Iterator[Drawing]:
    """Bits per byte over the parameters, where there are two sizes or more."""
    records = [
        record
        for record in scores.measured(question)
        if "bits_per_byte" in record.metrics and record.model.num_params_nonembedding
    ]
    if len(scores.sizes(records)) < 2:
        return
    title = "Quality by size"
    data = _data(records, "bits_per_byte", "bits", lambda record: record.metrics["bits_per_byte"].value)
    yield Drawing(
        name=question.stem("by_size"),
        experiments=(question.experiment,),
        title=title,
        caption=f"Bits per byte on {question.title} against the size of the models; lower is better. Each "
        "point is one seed of the training; those of the models stand side by side.",
        conditions=describe_conditions(records),
        figure=_figure(scores, records, data, (title, f"bits per byte, {question.title}")),
        data=data,
    )


def draw_figure5(scores: Evaluations, question: TaskPoint) -> Iterator[Drawing]:
    """The RetNet paper's Figure 5: validation perplexity over the parameters, where two sizes or more were trained.

    Perplexities by tokens of different tokenizers may not be compared: there is no figure then.
    """
    metric = "validation_loss_nats"
    records = [
        record
        for record in scores.measured(question)
        if is_final(record)
        and record.model.num_params_nonembedding
        and {metric, "num_tokens"} <= record.metrics.keys()
        and record.metrics[metric].value < _LARGEST_LOSS
    ]
    tokenizers = {fact(record, "tokenizer_fingerprint") for record in records}
    if len(scores.sizes(records)) < 2 or len(tokenizers) > 1:
        return
    title = "Figure 5 of the RetNet paper, redrawn"
    corpus, length = question.task or "its own text", format_tokens(question.context_len)
    data = _data(
        records, "validation_perplexity", "ratio", lambda record: math.exp(record.metrics[metric].value)
    )
    yield Drawing(
        name=question.stem("figure5"),
        experiments=(question.experiment,),
        title=title,
        caption=f"Perplexity by token (tokenizer: {fact(records[0], 'tokenizer')}) on the validation split of {corpus} "
        f"against the size of the models; lower is better. They learned from {_describe_tokens(records)} of its "
        f"training split in sequences of {length}. {describe_rates(scores, records)} Each point is one seed of the "
        "training; those of the models stand side by side.",
        conditions=describe_conditions(records),
        figure=_figure(scores, records, data, (title, f"validation perplexity, {corpus}, {length}")),
        data=data,
    )


def _describe_tokens(records: Sequence[Record]) -> str:
    """How many tokens models learned from, from the fewest to the most."""
    counts = sorted({record.metrics["num_tokens"].value for record in records})
    ends = dict.fromkeys(format_count(count) for count in (counts[0], counts[-1]))
    return f"{' to '.join(ends)} tokens"


def _data(
    records: Sequence[Record], metric: str, unit: str, value: Callable[[Record], float]
) -> pd.DataFrame:
    """A row a record, with what is to be drawn of it."""
    return pd.DataFrame(
        [
            instance_row(record)
            | {
                "num_params_nonembedding": record.model.num_params_nonembedding,
                "metric": metric,
                "unit": unit,
                "value": value(record),
            }
            for record in records
        ]
    )


def _figure(
    scores: Evaluations, records: Sequence[Record], data: pd.DataFrame, texts: tuple[str, str]
) -> Figure:
    """A point a record, and a line through the first seed that every size has.

    Args:
        scores: All scores.
        records: Those that are drawn.
        data: Of `_data`.
        texts: Heading and subtitle.
    """
    title, subtitle = texts
    by_model = {
        name: data[data["model"] == name] for name in scores.models.models if name in set(data["model"])
    }
    points = [_curve(name, rows) for name, rows in by_model.items()]
    shared = _shared_seeds(records)
    lines = [_curve(name, rows[rows["seed"].isin(shared[:1])]) for name, rows in by_model.items() if shared]
    counts = [
        (size, float(data[data["size"] == size]["num_params_nonembedding"].mean()))
        for size in scores.sizes(records)
    ]
    seed = f"; the line: seed {shared[0]}" if shared and shared[0] != "none" else ""
    return score_curves.draw_sizes(
        Panel("", tuple(points)),
        [line for line in lines if len(line.x) > 1],
        counts,
        scores.models,
        (title, f"{subtitle}{seed}", describe_conditions(records)),
    )


def _curve(model: str, rows: pd.DataFrame) -> Curve:
    rows = rows.sort_values("num_params_nonembedding", kind="stable")
    return Curve(
        model,
        tuple(float(count) for count in rows["num_params_nonembedding"]),
        tuple(float(value) for value in rows["value"]),
    )


def _shared_seeds(records: Sequence[Record]) -> list[str]:
    """Seeds that every size of every model has, as the data names them."""
    found: dict[tuple[str, str], set[str]] = {}
    for record in records:
        found.setdefault((record.model.name, record.model.size), set()).add(instance_of(record).seed_word)
    return sorted(set.intersection(*found.values()))
