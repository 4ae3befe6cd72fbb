"""Records of quality: what was asked of which model, and the newest readings that may stand side by side.

A reading is the one record of a subject (a model of a size, from one seed of its training) at one question. It is the
same whenever it is taken, so it has no rounds; it is kept apart by conditions all the same.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from retbench.records.record import Record
from retbench.report.frames import keep_latest, started
from retbench.report.selection import choose_conditions, describe_count

EVALUATIONS = ("perplexity", "zeroshot")
TRAINING_RUN = "training_run"
QUALITY = frozenset({*EVALUATIONS, TRAINING_RUN})
"""Workloads of quality; all others measure cost."""


class Question(NamedTuple):
    """What a model is asked: a corpus by a protocol, a task after some examples, or to learn."""

    experiment: str
    workload: str
    task: str | None
    protocol: str | None
    context_len: int
    num_fewshot: int | None
    stride: int | None = None


class Subject(NamedTuple):
    """Which of the models of a name: its size, and the seed of its training, None where it has none."""

    size: str
    seed: int | None


@dataclass(frozen=True)
class Readings:
    """Records of quality that may stand side by side.

    Attributes:
        records: One a (question, model, subject); of a training also one a point of its grid.
        left_out: A sentence for everything that was found and is not among them.
    """

    records: tuple[Record, ...]
    left_out: tuple[str, ...]


def question_of(record: Record) -> Question:
    """What a record is the answer to."""
    point = record.point
    return Question(
        record.experiment,
        record.workload,
        point.task,
        point.protocol,
        point.context_len,
        point.num_fewshot,
        point.stride,
    )


def subject_of(record: Record) -> Subject:
    """Which of the models of its name a record is about; a training that failed left no weights to tell its seed."""
    seed = record.model.weights.seed if record.model.weights else record.backend.get("seed")
    return Subject(record.model.size, seed if isinstance(seed, int) else None)


def is_final(record: Record) -> bool:
    """False for a run of the grid of learning rates, which only tunes."""
    return fact(record, "role") != "tuning"


def fact(record: Record, name: str) -> object:
    """A setting, or what the code that ran says."""
    return record.backend.get(name, record.settings.get(name))


def without_quality(records: Iterable[Record]) -> list[Record]:
    """The records of cost."""
    return [record for record in records if record.workload not in QUALITY]


def select_readings(records: Sequence[Record]) -> Readings:
    """The newest readings under one set of conditions; trainings, which come before, have a set of their own."""
    chosen: list[Record] = []
    left_out: list[str] = []
    for family in (EVALUATIONS, (TRAINING_RUN,)):
        mine = [record for record in records if record.workload in family]
        if mine:
            kept, notes = choose_conditions(keep_latest(mine))
            latest, repeated = _latest(kept)
            chosen += latest
            left_out += notes + repeated
    return Readings(tuple(chosen), tuple(left_out))


def _latest(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Of the readings of one subject at one question the latest that has a value, and what that left out.

    Of those that differ in how many documents were read alone, the one of the most: a quick look replaces nothing.
    """
    newest: dict[tuple[object, ...], datetime] = {}
    for record in sorted(records, key=started):
        newest[record.status, _version(record)] = started(record)
    ordered = sorted(
        records,
        key=lambda record: (
            record.status == "ok",
            newest[record.status, _version(record)],
            _num_documents(record),
            started(record),
        ),
    )
    latest = {_place(record): record for record in ordered}
    kept = {id(record) for record in latest.values()}
    replaced: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if id(record) not in kept:
            words = _why_replaced(record, latest[_place(record)])
            replaced.setdefault((record.experiment, words), []).append(record)
    notes = [
        f"{experiment}: {describe_count(others)} of quality {words}."
        for (experiment, words), others in replaced.items()
    ]
    return [record for record in records if id(record) in kept], notes


def _why_replaced(record: Record, by: Record) -> str:
    """What stands for a reading instead, as the end of a sentence."""
    mine, theirs = _num_documents(record), _num_documents(by)
    if _version(record) == _version(by) and mine < theirs:
        noun = "document" if mine == 1 else "documents"
        return f"on {mine:,} {noun} that those of the same question on {theirs:,} replace"
    return "that newer ones of the same model, size, seed and question replace (other weights, documents or settings)"


def _num_documents(record: Record) -> int:
    """Documents or questions that a reading is of; 0 where it does not tell."""
    return record.documents.num_documents if record.documents else 0


def _version(record: Record) -> tuple[object, ...]:
    """What a reading is of, down to weights and settings; all but how many documents were read."""
    settings = json.dumps({**record.settings, "limit": None}, sort_keys=True, default=str)
    weights = record.model.weights.fingerprint if record.model.weights else None
    return _place(record), weights, settings


def _place(record: Record) -> tuple[object, ...]:
    """What there is one reading of."""
    tuned = None if is_final(record) else learning_rate(record)
    return question_of(record), record.model.name, subject_of(record), tuned


def learning_rate(record: Record) -> float | None:
    """The highest learning rate that weights were trained with, or were to be; None where it is not known."""
    if record.model.weights:
        return record.model.weights.learning_rate
    rate = record.backend.get("learning_rate")
    return rate if isinstance(rate, float) else None


def num_trained_tokens(record: Record) -> int | None:
    """Tokens that the weights of a record were trained on; None where it is not known."""
    return record.model.weights.num_tokens if record.model.weights else None


def accuracy(record: Record) -> tuple[float, int] | None:
    """The share of right answers and how many questions there were; None where the record does not tell both."""
    share, documents = record.metrics.get("acc"), record.documents
    if share is None or documents is None or not documents.num_documents or not 0 <= share.value <= 1:
        return None
    return share.value, documents.num_documents
