"""Training of the evaluated models: the origin of their weights, and of their learning rates."""

from collections.abc import Sequence

import pandas as pd

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.points import (
    fact,
    instance_of,
    is_final,
    learning_rate,
    num_trained_tokens,
)
from retbench.report.tables.aligned_text import NONE
from retbench.report.tables.cells import TableCell, plain_cell
from retbench.units import format_count, format_size


def describe_rates(evaluations: Evaluations, records: Sequence[Record]) -> str:
    """Return where the learning rates of final trainings come from, and which of them lie at an end of their grid."""
    places: dict[str, list[str]] = {}
    for size in evaluations.sizes(records):
        origins = {fact(record, "tuned_at") for record in records if record.model.size == size}
        for origin in sorted(origins, key=str):
            words: dict[object, str] = {
                None: "the only one of the grid",
                size: "each model's best of the grid there",
            }
            words_of_it = words.get(origin, f"its best at {format_size(str(origin))}")
            places.setdefault(words_of_it, []).append(format_size(size))
    origins_in_words = "; ".join(f"at {', '.join(sizes)} {words}" for words, sizes in places.items())
    ends = dict.fromkeys(
        f" That of {evaluations.models.labels[record.model.name]} at {size} is {found}."
        for record in records
        if (found := fact(record, "best_rate_is")) not in (None, "inside the grid")
        and not _is_inside(record, evaluations.records)
        and (size := format_size(str(fact(record, "tuned_at"))))
    )
    return f"Learning rates: {origins_in_words}.{''.join(ends)}"


def _is_inside(final: Record, records: Sequence[Record]) -> bool:
    """Return whether lower and higher rates were tried as well, which a later command may have added to the grid."""
    mine = learning_rate(final)
    tried = [
        rate
        for record in records
        if not is_final(record)
        and (record.experiment, record.model.name) == (final.experiment, final.model.name)
        and record.model.size == fact(final, "tuned_at")
        and (rate := learning_rate(record)) is not None
    ]
    return mine is not None and bool(tried) and min(tried) < mine < max(tried)


def weights_table(evaluations: Evaluations) -> pd.DataFrame:
    """Return one row per model, size and seed with the origin of its weights."""
    origin = ("trained on", "tokens", "learning rate", "weights", "fingerprint")
    columns = ["model", "size", "seed", "parameters without embedding", *origin]
    order = {instance: place for place, instance in enumerate(evaluations.instances(evaluations.records))}
    finals = [record for record in evaluations.records if is_final(record)]
    finals.sort(key=lambda r: (order[instance_of(r)], evaluations.models.models.index(r.model.name)))
    rows = dict.fromkeys(
        (
            evaluations.models.labels[record.model.name],
            TableCell(format_size(record.model.size), record.model.num_params_nonembedding),
            plain_cell(instance_of(record).seed),
            TableCell(f"{record.model.num_params_nonembedding:,}", record.model.num_params_nonembedding),
            *_origin(record),
        )
        for record in finals
    )
    return pd.DataFrame(list(rows), columns=columns, dtype=object)


def _origin(record: Record) -> tuple[str, ...]:
    """Return corpus, tokens, learning rate, source and fingerprint of a record's weights."""
    weights, tokens, rate = record.model.weights, num_trained_tokens(record), learning_rate(record)
    if weights is None:
        return NONE, NONE, NONE, "drawn from a seed, untrained", NONE
    return (
        weights.corpus or "not recorded",
        "not recorded" if tokens is None else TableCell(format_count(tokens), tokens),
        "not recorded" if rate is None else TableCell(f"{rate:.3g}", rate),
        weights.source + (f" at {weights.revision}" if weights.revision else ""),
        weights.fingerprint,
    )
