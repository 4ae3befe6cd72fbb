"""Selection of quality records: one per model, size, seed and task point, and which of several counts."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from report.synthetic_scores import ScoreMaker
from retbench.records.record import Metric, Record
from retbench.report.points import (
    ModelInstance,
    accuracy,
    instance_of,
    is_final,
    learning_rate,
    num_trained_tokens,
    task_point_of,
)
from retbench.report.selection import select

SEEDS = {"1m": (0,)}


def one_corpus(folder: Path, **fields: Any) -> ScoreMaker:
    maker = ScoreMaker(folder, seeds=SEEDS, **fields)
    maker.perplexities("litbank/original", "whole", 2048)
    return maker


def test_cost_and_quality_are_separate(scores_records: list[Record], cpu_records: list[Record]) -> None:
    selection = select([*cpu_records, *scores_records])
    assert sorted(map(id, selection.costs)) == sorted(map(id, cpu_records))
    assert sorted(map(id, selection.quality)) == sorted(map(id, scores_records))


@pytest.fixture
def scores_records(tmp_path: Path) -> list[Record]:
    return ScoreMaker(tmp_path, seeds=SEEDS).everything()


def test_a_task_point_is_everything_that_was_measured(scores_records: list[Record]) -> None:
    points = [task_point_of(record) for record in scores_records if record.workload != "training_run"]
    assert len(set(points)) == len(points) / 2  # of two models each
    (one, *_) = [point for point in points if point.workload == "perplexity"]
    assert (one.task, one.protocol, one.context_len) == ("litbank/original", "whole", 2048)
    record = scores_records[-1]
    other = record.model_copy(update={"point": record.point.model_copy(update={"stride": 7})})
    assert task_point_of(other) != task_point_of(record)


def test_of_a_grid_every_rate_is_kept_and_only_the_final_run_is_final(scores_records: list[Record]) -> None:
    trainings = [record for record in scores_records if record.workload == "training_run"]
    selection = select(trainings)
    assert len(selection.records) == len(trainings) == 8
    grid = [record for record in selection.records if not is_final(record)]
    assert sorted(learning_rate(record) or 0 for record in grid) == [1e-3, 1e-3, 2e-3, 2e-3, 4e-3, 4e-3]
    assert {instance_of(record) for record in grid} == {ModelInstance("1m", 0)}


def test_a_value_goes_before_a_later_failure(tmp_path: Path) -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "oom", "error": "out of memory", "metrics": {}, "series": {}}

    good = one_corpus(tmp_path / "good")
    bad = one_corpus(tmp_path / "bad", started=good.started + timedelta(hours=1), change=fail)
    selection = select([*bad.records, *good.records])
    assert {record.status for record in selection.records} == {"ok"}
    assert select(bad.records).records == tuple(bad.records)  # where there is no value, the failure


def test_other_weights_replace_older_ones_and_it_is_said(tmp_path: Path) -> None:
    def retrain(arguments: dict[str, Any]) -> dict[str, Any]:
        model = arguments["model"]
        weights = model.weights.model_copy(update={"fingerprint": "another", "num_tokens": 7})
        return arguments | {
            "model": model.model_copy(update={"weights": weights}),
            "cell_id": f"{arguments['cell_id'][:12]}ffff",
        }

    older = one_corpus(tmp_path / "older")
    newer = one_corpus(tmp_path / "newer", started=older.started + timedelta(hours=1), change=retrain)
    selection = select([*older.records, *newer.records])
    assert {num_trained_tokens(record) for record in selection.records} == {7}
    (note,) = selection.left_out
    assert note.startswith("quality: 2 ")
    assert "replaced by newer ones of the same model, size, seed and task point" in note


def evaluate_few(
    folder: Path, num_documents: int, *, after_h: float = 0, weights: str | None = None
) -> list[Record]:
    """Return records of the first documents alone, measured some hours after those of the whole corpus."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        arguments["settings"] |= {"limit": num_documents}
        if weights is not None:
            model = arguments["model"]
            other = model.weights.model_copy(update={"fingerprint": weights})
            arguments["model"] = model.model_copy(update={"weights": other})
        return arguments | {"cell_id": f"{arguments['cell_id'][:14]}{num_documents:02}"}

    started = ScoreMaker.started + timedelta(hours=after_h)
    return one_corpus(folder, num_documents=num_documents, started=started, change=change).records


def test_an_evaluation_of_few_documents_does_not_replace_that_of_all(tmp_path: Path) -> None:
    whole = one_corpus(tmp_path / "whole").records
    quick = [record for hour in (-1, 1) for record in evaluate_few(tmp_path / str(hour), 1, after_h=hour)]
    selection = select([*whole, *quick])
    assert selection.records == tuple(whole)
    (note,) = selection.left_out
    assert note.startswith("quality: 4 records of ")
    assert note.endswith(" of quality on 1 document, replaced by those of the same task point on 60.")
    assert select([*evaluate_few(tmp_path / "more", 9), *quick]).records == tuple(
        evaluate_few(tmp_path / "again", 9)
    )


def test_an_evaluation_of_few_documents_with_new_weights_replaces_that_of_old_ones(tmp_path: Path) -> None:
    whole = one_corpus(tmp_path / "whole").records
    quick = evaluate_few(tmp_path / "quick", 1, after_h=1, weights="another")
    selection = select([*whole, *quick])
    assert selection.records == tuple(quick)
    (note,) = selection.left_out
    assert "replaced by newer ones of the same model, size, seed and task point" in note


def test_an_accuracy_needs_its_number_of_documents(scores_records: list[Record]) -> None:
    answered = next(record for record in scores_records if record.workload == "zeroshot")
    assert answered.documents is not None
    assert accuracy(answered) == (answered.metrics["acc"].value, answered.documents.num_documents)
    assert accuracy(answered.model_copy(update={"documents": None})) is None
    for value in (-0.1, 1.1):
        metrics = answered.metrics | {"acc": Metric(unit="ratio", value=value)}
        assert accuracy(answered.model_copy(update={"metrics": metrics})) is None
    other = next(record for record in scores_records if record.workload == "perplexity")
    assert accuracy(other) is None
