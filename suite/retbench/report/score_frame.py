"""Quality as one table: a row a reading, in base units."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from retbench.records.record import Record
from retbench.report.pairing import Comparison
from retbench.report.readings import (
    EVALUATIONS,
    TRAINING_RUN,
    fact,
    is_final,
    learning_rate,
    num_trained_tokens,
    question_of,
    subject_of,
)
from retbench.report.scores import Scores

QUESTION_COLUMNS = ("task", "protocol", "context_len", "num_fewshot")
LEAD = (
    "model",
    "workload",
    *QUESTION_COLUMNS,
    "size",
    "seed",
    "status",
    "num_params_nonembedding",
    "tokenizer",
    "trained_tokens",
    "learning_rate",
    "role",
    "num_documents",
    "reference",
    "not_compared",
)
"""Columns that are no numbers, or whole ones; None where there is none."""


def score_frame(scores: Scores, experiment: str) -> pd.DataFrame:
    """One row a (question, subject, model) of an experiment.

    Returns:
        What was asked of which model, its metrics in base units, and on the row of a model that was compared with the
        Transformer `bits_per_byte_ratio` and `bits_per_byte_difference`, the same per token where no whole bytes were
        scored, or of each accuracy `<metric>_difference` and `<metric>_mcnemar_p`, with the ends of the 95 % intervals;
        `not_compared` says why there is none.
    """
    rows = [
        _row(scores, record)
        for workload in (*EVALUATIONS, TRAINING_RUN)
        for question in scores.questions(workload)
        if question.experiment == experiment
        for record in _ordered(scores, scores.at(question))
    ]
    columns = list(dict.fromkeys([*LEAD, *(name for row in rows for name in row)]))
    frame = pd.DataFrame([[row.get(name) for name in columns] for row in rows], columns=columns, dtype=object)
    return frame.astype({name: "float64" for name in columns if name not in LEAD})


def _ordered(scores: Scores, records: Sequence[Record]) -> list[Record]:
    """Readings of one question by size, seed and model; of trainings the grid first."""
    subjects, models = scores.subjects(records), scores.models.models
    return sorted(
        records,
        key=lambda r: (
            subjects.index(subject_of(r)),
            is_final(r),
            models.index(r.model.name),
            learning_rate(r) or 0.0,
        ),
    )


def _row(scores: Scores, record: Record) -> dict[str, Any]:
    """What one reading says."""
    question, subject = question_of(record), subject_of(record)
    row: dict[str, Any] = {
        "model": record.model.name,
        "workload": record.workload,
        **{name: getattr(question, name) for name in QUESTION_COLUMNS},
        "size": subject.size,
        "seed": subject.seed,
        "status": record.status,
        "num_params_nonembedding": record.model.num_params_nonembedding,
        "tokenizer": fact(record, "tokenizer"),
        "trained_tokens": num_trained_tokens(record),
        "learning_rate": learning_rate(record),
        "role": ("final" if is_final(record) else "tuning") if record.workload == TRAINING_RUN else None,
        "num_documents": record.documents.num_documents if record.documents else None,
    }
    row |= {name: metric.value for name, metric in record.metrics.items() if name not in row}
    made = [
        c
        for c in scores.comparisons
        if (c.question, c.subject, c.model) == (question, subject, record.model.name)
    ]
    return row | (_compared(made[0]) if made else {})


def _compared(comparison: Comparison) -> dict[str, Any]:
    """The columns of a comparison."""
    row: dict[str, Any] = {"reference": comparison.reference, "not_compared": comparison.refusal}
    for name, estimate in (("ratio", comparison.ratio), ("difference", comparison.difference)):
        if estimate is not None:
            column = f"bits_per_{comparison.unit}_{name}"
            row |= {column: estimate.value, f"{column}_low": estimate.low, f"{column}_high": estimate.high}
    for metric, pair in comparison.accuracies.items():
        column = f"{metric}_difference"
        row |= {column: pair.difference, f"{column}_low": pair.low, f"{column}_high": pair.high}
        row |= {f"{metric}_mcnemar_p": pair.p_value}
    return row
