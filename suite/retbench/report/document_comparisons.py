"""Quality of one model compared with another's on the same documents.

Two records are compared only where everything else that could change the difference is equal. Otherwise the comparison
is refused with a sentence that names the difference, and there is no number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retbench.errors import RecordError, shown
from retbench.records.documents import read_documents
from retbench.records.record import Documents, Record
from retbench.report.lineup import mismatch
from retbench.report.points import (
    ModelInstance,
    TaskPoint,
    fact,
    instance_of,
    num_trained_tokens,
    scores_of,
    task_point_of,
)
from retbench.stats.paired import Estimate, PairedAccuracy, paired_accuracy, ratio_of_sums

Folders = Mapping[Documents, Path]
Rows = Sequence[Mapping[str, Any]]
Unit = Literal["byte", "token"]

_SHARED = {
    "split": "split",
    "limit": "limit",
    "corpus_fingerprint": "corpus",
    "prompts_fingerprint": "prompts",
    "add_bos": "add_bos",
    "lm_eval_version": "lm-eval",
    "task_version": "version of the task",
    "counted_in_fingerprint": "text in which pairs are counted",
    "max_count": "max_count",
    "dtype": "dtype",
}
"""Facts that both records must share, with their names in sentences."""

_REQUIRED_OF_TEXT = ("split", "corpus_fingerprint", "tokenizer_fingerprint")
_REQUIRED_OF_NEEDLES = ("prompts_fingerprint", "tokenizer_fingerprint")
_REQUIRED_OF_QUESTIONS = ("prompts_fingerprint", "lm_eval_version")
"""Facts that the records must state before they are compared."""

SLICES = {
    "hit_gain_nats": ("gain_nats", "num_hits", 1.0),
    "hit_nats": ("hit_nats", "num_hits", 1.0),
    "first_nats": ("first_nats", "num_first", 1.0),
    "first_copy_bits_per_byte": ("first_copy_nats", "copied_bytes", math.log(2)),
    "second_copy_bits_per_byte": ("second_copy_nats", "copied_bytes", math.log(2)),
}
"""Metrics of slices of a text: the fields of a document that add up to the sum and to the count, and nats per unit."""

_AGREEMENT = 1e-5
"""Largest relative difference between a record's mean and that of its documents; a larger one is another evaluation."""


@dataclass(frozen=True)
class DocumentComparison:
    """A model and the reference, of one size and seed, at one task point.

    Attributes:
        ratio: Bits per byte or token of the model over the reference's.
        difference: Bits per byte or token of the model less the reference's.
        accuracies: Comparison of each accuracy of a zero-shot task.
        slices: Of slices of a text, each metric of the model less the reference's.
        own_gain: Of slices of a text, the model's own gain of a repeated pair; None where none is repeated.
        reference_gain: The reference's own gain of a repeated pair; None where none is repeated.
        refusal: Why there is no number; None where there is one.
        unit: Denominator of the bits: tokens of one tokenizer where the scored text has no whole bytes.
    """

    point: TaskPoint
    instance: ModelInstance
    model: str
    reference: str
    ratio: Estimate | None = None
    difference: Estimate | None = None
    accuracies: Mapping[str, PairedAccuracy] = field(default_factory=dict)
    slices: Mapping[str, Estimate] = field(default_factory=dict)
    own_gain: Estimate | None = None
    reference_gain: Estimate | None = None
    refusal: str | None = None
    unit: Unit = "byte"


def compare(mine: Record, theirs: Record, folders: Folders) -> DocumentComparison:
    """Compare two records of one task point and model instance, the second being the reference's."""
    lead = (task_point_of(mine), instance_of(mine), mine.model.name, theirs.model.name)
    refusal = _refusal(mine, theirs)
    if refusal is not None:
        return DocumentComparison(*lead, refusal=refusal)
    try:
        rows, scores = (_rows(mine, folders), _rows(theirs, folders)), scores_of(mine.workload)
        if scores == "slices":
            _check_same_documents(("name", "num_bytes", "num_hits", "num_first", "copied_bytes"), *rows)
            slices = _compare_slices(mine, theirs, *rows)
            own_gain, reference_gain = map(_gain, rows)
            return DocumentComparison(*lead, slices=slices, own_gain=own_gain, reference_gain=reference_gain)
        if scores == "text":
            _check_same_documents(("name", "num_bytes"), *rows)
            unit, ratio, difference = _compare_losses(mine, theirs, *rows)
            return DocumentComparison(*lead, ratio=ratio, difference=difference, unit=unit)
        _check_same_documents(("doc_id", "doc_hash"), *rows)
        return DocumentComparison(*lead, accuracies=_compare_answers(mine, theirs, *rows))
    except RecordError as error:
        return DocumentComparison(*lead, refusal=str(error).rstrip("."))


def _refusal(mine: Record, theirs: Record) -> str | None:
    """Return why two records are not compared; None where they may be."""
    reason = mismatch(mine, theirs)
    if reason is not None:
        return reason
    sides = (mine, theirs)
    for name in _required(mine.workload):
        for record in sides:
            if fact(record, name) is None:
                return f"the record of {record.model.name} does not state its {name}"
    differences = [
        f"{words} {_text(fact(mine, name))} and {_text(fact(theirs, name))}"
        for name, words in _SHARED.items()
        if fact(mine, name) != fact(theirs, name)
    ]
    tokens = [num_trained_tokens(record) for record in sides]
    if None not in tokens and tokens[0] != tokens[1]:
        differences.append(f"trained on {tokens[0]:,} and {tokens[1]:,} tokens")
    corpora = [record.model.weights.corpus if record.model.weights else None for record in sides]
    if None not in corpora and corpora[0] != corpora[1]:
        differences.append(f"trained on {corpora[0]} and {corpora[1]}")
    return f"the two records differ: {'; '.join(differences)}" if differences else None


def _required(workload: str) -> tuple[str, ...]:
    """Return the facts that records of a workload must state before they are compared."""
    scores = scores_of(workload)
    if scores in {"text", "slices"}:
        return _REQUIRED_OF_TEXT
    return _REQUIRED_OF_NEEDLES if scores == "needles" else _REQUIRED_OF_QUESTIONS


def _text(value: object) -> str:
    return "none" if value is None else str(value)


def _rows(record: Record, folders: Folders) -> Rows:
    """Return the per-document results of a record.

    Raises:
        RecordError: they were not kept, or their file is missing or damaged.
    """
    if record.documents is None:
        raise RecordError(f"the record of {record.model.name} holds no per-document results")
    folder = folders.get(record.documents)
    if folder is None:
        raise RecordError(
            f"{record.documents.file}: the folder of this file is not known; read a results folder"
        )
    return read_documents(folder, record.documents)


def _check_same_documents(fields: Sequence[str], mine: Rows, theirs: Rows) -> None:
    """Raise RecordError unless two lists hold the same documents in the same order, by some of their fields."""
    if len(mine) != len(theirs):
        raise RecordError(f"the two records have {len(mine):,} and {len(theirs):,} documents")
    for number, rows in enumerate(zip(mine, theirs, strict=True)):
        for name in fields:
            one, other = (_value(row, name, number) for row in rows)
            if one != other:
                raise RecordError(f"document {number} differs: its {name} is {shown(one)} and {shown(other)}")


def _value(row: Mapping[str, Any], name: str, number: int) -> Any:
    if name not in row:
        raise RecordError(f"document {number} has no '{name}'")
    return row[name]


def _number(row: Mapping[str, Any], name: str, number: int) -> float:
    value = _value(row, name, number)
    if isinstance(value, int | float) and abs(value) < 1e100:
        return float(value)
    raise RecordError(
        f"document {number} has the {name} {shown(value)}, which is no number that can be added up"
    )


def _compare_losses(mine: Record, theirs: Record, own: Rows, other: Rows) -> tuple[Unit, Estimate, Estimate]:
    """Return the denominator of the bits, and the ratio and difference of the losses."""
    # A document without tokens was too short for the protocol.
    scored = [number for number, row in enumerate(own) if _number(row, "num_tokens", number)]
    unit: Unit = "byte" if all(own[number]["num_bytes"] for number in scored) else "token"
    if unit == "token":
        _check_same_tokens(mine, theirs, own, other)
    counts = [_number(own[number], f"num_{unit}s", number) for number in scored]
    metric, nats = ("bits_per_byte", math.log(2)) if unit == "byte" else ("nats_per_token", 1.0)
    losses = []
    for record, rows in ((mine, own), (theirs, other)):
        losses.append([_number(rows[number], "nll_nats", number) for number in scored])
        _check_mean(record, metric, sum(losses[-1]) / nats / max(1.0, sum(counts)))
    excess = [(one - two) / math.log(2) for one, two in zip(*losses, strict=True)]
    return unit, ratio_of_sums(*losses, null=1), ratio_of_sums(excess, counts)


def _compare_slices(mine: Record, theirs: Record, own: Rows, other: Rows) -> dict[str, Estimate]:
    """Return the difference of each metric of slices that has a word."""
    found = {}
    for metric, (top, bottom, nats) in SLICES.items():
        counts = [nats * _number(row, bottom, number) for number, row in enumerate(own)]
        if not sum(counts):
            continue
        sums = [[_number(row, top, number) for number, row in enumerate(rows)] for rows in (own, other)]
        for record, values in zip((mine, theirs), sums, strict=True):
            _check_mean(record, metric, sum(values) / sum(counts))
        found[metric] = ratio_of_sums([one - two for one, two in zip(*sums, strict=True)], counts)
    return found


def _gain(rows: Rows) -> Estimate | None:
    """Return the gain of a repeated pair in nats per word; None where no pair is repeated."""
    top, bottom, _ = SLICES["hit_gain_nats"]
    gains, counts = ([_number(row, name, n) for n, row in enumerate(rows)] for name in (top, bottom))
    return ratio_of_sums(gains, counts) if sum(counts) else None


def _check_same_tokens(mine: Record, theirs: Record, own: Rows, other: Rows) -> None:
    """Raise RecordError unless both records scored the same tokens."""
    if fact(mine, "tokenizer_fingerprint") != fact(theirs, "tokenizer_fingerprint"):
        names = " and ".join(_text(fact(record, "tokenizer")) for record in (mine, theirs))
        raise RecordError(f"the scored text has no whole bytes, and the tokenizers differ: {names}")
    _check_same_documents(("num_tokens",), own, other)


def _compare_answers(mine: Record, theirs: Record, own: Rows, other: Rows) -> dict[str, PairedAccuracy]:
    """Compare every metric that is 0 or 1 for each document on both sides."""
    found = {}
    for metric in mine.metrics:
        if metric in theirs.metrics and all(row.get(metric) in (0, 1) for row in (*own, *other)):
            answers = [[bool(row[metric]) for row in rows] for rows in (own, other)]
            for record, right in zip((mine, theirs), answers, strict=True):
                _check_mean(record, metric, sum(right) / max(1, len(right)))
            found[metric] = paired_accuracy(*answers)
    return found


def _check_mean(record: Record, metric: str, mean: float) -> None:
    """Raise RecordError where a record's metric is not the mean of its documents."""
    if metric in record.metrics and not math.isclose(
        record.metrics[metric].value, mean, rel_tol=_AGREEMENT, abs_tol=1e-9
    ):
        raise RecordError(
            f"{metric} of {record.model.name} is {record.metrics[metric].value:.6g}, and that of its documents "
            f"{mean:.6g}"
        )
