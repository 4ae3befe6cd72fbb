"""The part of the report that is about quality: what was evaluated, how well, and what may not be compared."""

from dataclasses import dataclass

import pandas as pd

from retbench.report.overlaps import overlap_sentences
from retbench.report.readings import (
    QUALITY,
    is_final,
    learning_rate,
    num_trained_tokens,
    question_of,
    subject_of,
)
from retbench.report.scenes import scene_title
from retbench.report.score_figures import draw_scores
from retbench.report.score_frame import score_frame
from retbench.report.score_tables import readable_scores
from retbench.report.scores import Scores, describe_subject, question_title
from retbench.report.style import Drawing
from retbench.units import format_count


@dataclass(frozen=True)
class Titled:
    """A table under its heading."""

    title: str
    table: pd.DataFrame


@dataclass(frozen=True)
class ScoreSection:
    """Everything that the report shows of quality.

    Attributes:
        conditions: Under which evaluations and trainings ran, a line each.
        drawings: The figures.
        subjects: The models evaluated, and where their weights are from.
        tables: Of every experiment, one a workload.
        refusals: Why two models are not compared where they might be.
        overlaps: Where a model was scored on what it may have learned from.
        missing: What other records lead one to expect.
    """

    conditions: list[str]
    drawings: list[Drawing]
    subjects: pd.DataFrame
    tables: list[Titled]
    refusals: list[str]
    overlaps: list[str]
    missing: list[str]


def make_section(scores: Scores) -> ScoreSection:
    """The part of the report that scores make."""
    return ScoreSection(
        conditions=scores.conditions,
        drawings=draw_scores(scores),
        subjects=subject_table(scores),
        tables=[
            Titled(scene_title(experiment, workload), table)
            for experiment in scores.experiments
            for workload, table in readable_scores(score_frame(scores, experiment)).items()
        ],
        refusals=scores.refusals,
        overlaps=overlap_sentences(scores),
        missing=missing_scores(scores),
    )


def subject_table(scores: Scores) -> pd.DataFrame:
    """One row a model, size and seed: where its weights are from."""
    columns = [
        "model",
        "size",
        "seed",
        "parameters without embedding",
        "trained on",
        "tokens",
        "learning rate",
        "weights",
        "fingerprint",
    ]
    rows: dict[tuple[str, ...], None] = {}
    by_model = sorted(scores.records, key=lambda record: scores.models.models.index(record.model.name))
    for subject in scores.subjects(scores.records):
        for record in by_model:
            if subject_of(record) != subject or not is_final(record):
                continue
            weights, tokens, rate = record.model.weights, num_trained_tokens(record), learning_rate(record)
            told = (
                ("–", "–", "–", "drawn from a seed, untrained", "–")
                if weights is None
                else (
                    weights.corpus or "not recorded",
                    "not recorded" if tokens is None else format_count(tokens),
                    "not recorded" if rate is None else f"{rate:.3g}",
                    weights.source + (f" at {weights.revision}" if weights.revision else ""),
                    weights.fingerprint,
                )
            )
            seed = "–" if subject.seed is None else str(subject.seed)
            params = f"{record.model.num_params_nonembedding:,}"
            rows[(scores.models.labels[record.model.name], subject.size, seed, params, *told)] = None
    return pd.DataFrame(list(rows), columns=columns)


def missing_scores(scores: Scores) -> list[str]:
    """A sentence for each question that a model or seed was not asked, though others of its experiment were."""
    sentences = []
    for workload in sorted(QUALITY):
        for question in scores.questions(workload):
            peers = [
                r for r in scores.records if (r.experiment, r.workload) == (question.experiment, workload)
            ]
            present = {(r.model.name, subject_of(r)) for r in peers if question_of(r) == question}
            expected = {(r.model.name, subject_of(r)) for r in peers}
            absent = [
                f"{scores.models.labels[model]} {describe_subject(subject)}"
                for subject in scores.subjects(peers)
                for model in scores.models.models
                if (model, subject) in expected - present
            ]
            if absent:
                sentences.append(
                    f"{question.experiment}: {question_title(question)} was not asked of {', '.join(absent)}. "
                    f"Run `{peers[-1].command}` again; it goes on where it stopped."
                )
    return sentences
