"""The record of a run: its content, and the settings that identify it."""

from dataclasses import replace
from pathlib import Path

import pytest

from retbench.architectures import costs
from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import RecordError
from retbench.records.record import Record
from retbench.records.store import read_records
from retbench.report.points import instance_of, is_final, learning_rate, num_trained_tokens
from retbench.report.selection import select
from retbench.training.engine import train_all
from retbench.training.plan import TrainingPlan
from retbench.training.recording import Recorder
from retbench.training.trained import run_folder
from tests.training.conftest import PlanOf, read_curve, text_of

SMALL = ('training.sizes=["300k"]', "training.num_tokens=384", "training.validate_every=2")


@pytest.fixture
def plan(plan_of: PlanOf) -> TrainingPlan:
    return plan_of(*SMALL, "training.learning_rates=[1e-3, 4e-3]", "training.tuning_tokens=96")


def trained_records(plan: TrainingPlan, out: Path) -> list[Record]:
    train_all(plan, text_of(plan), out, notify=lambda _: None, stop=lambda: False)
    records, problems = read_records(out)
    assert not problems
    return records


def test_a_record_says_what_the_run_was_and_what_it_came_to(plan: TrainingPlan, tmp_path: Path) -> None:
    for record in trained_records(plan, tmp_path):
        run = next(
            run
            for run in [*plan.tuning_runs, *plan.final_runs]
            if (run.model_name, run.role) == (record.model.name, record.backend["role"])
            and run.learning_rate in (None, record.backend["learning_rate"])
        )
        folder = run_folder(tmp_path, plan, run)
        info = read_checkpoint(str(folder / "final"))
        curve = read_curve(folder / "curve.csv")
        assert record.status == "ok"
        assert record.point.context_len == 48
        assert record.point.task == plan.source.name
        assert record.settings["corpus_fingerprint"] == plan.source.fingerprint
        assert record.settings["grad_clip"] == plan.recipe.grad_clip
        assert record.settings["learning_rates"] == [1e-3, 4e-3]
        assert record.backend["training"] == ("chunkwise" if run.model_name == "retnet" else "sdpa:flash")
        assert record.model.num_params == costs.num_params(plan.config(run))
        assert record.model.weights is not None
        assert record.model.weights.fingerprint == info.weights_fingerprint
        assert record.model.weights.learning_rate == record.backend["learning_rate"]
        assert record.metrics["num_tokens"].value == plan.num_tokens(run) == curve[-1].num_tokens
        assert record.metrics["validation_loss_nats"].value == curve[-1].validation_loss_nats
        assert record.metrics["tokens_per_s"].samples == tuple(point.tokens_per_s for point in curve)
        assert record.series["validation_loss_nats"].x == tuple(point.num_tokens for point in curve)
        for name, series in record.series.items():
            assert series.y == tuple(getattr(point, name) for point in curve)


def test_the_report_reads_what_training_writes(plan: TrainingPlan, tmp_path: Path) -> None:
    readings = select(trained_records(plan, tmp_path))
    assert readings.left_out == ()
    assert len(readings.records) == 6  # two rates of the grid and a final run of each model
    finals = [record for record in readings.records if is_final(record)]
    assert [record.model.name for record in finals] == ["retnet", "transformer"]
    for record in finals:
        assert instance_of(record) == ("300k", 0)
        assert learning_rate(record) in (1e-3, 4e-3)
        assert num_trained_tokens(record) == 384
        assert record.backend["best_rate_is"] in ("the lowest of the grid", "the highest of the grid")


def test_failed_runs_are_distinguished(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(*SMALL, "training.learning_rates=[1e5, 1e6]", "training.seeds=[3]")
    readings = select(trained_records(plan, tmp_path))
    assert readings.left_out == ()
    assert {
        (record.model.name, instance_of(record), learning_rate(record)) for record in readings.records
    } == {(name, ("300k", 3), rate) for name in ("retnet", "transformer") for rate in (1e5, 1e6)}


def test_what_a_run_was_for_and_what_it_ran_on_make_it_another(plan_of: PlanOf, tmp_path: Path) -> None:
    def cell_ids(plan: TrainingPlan, name: str) -> set[str]:
        return {record.cell_id for record in trained_records(plan, tmp_path / name)}

    plan = plan_of(*SMALL)
    own = cell_ids(plan, "own")
    assert len(own) == 2
    assert cell_ids(plan_of(*SMALL, "training.checkpoint_every=1"), "watched") == own
    assert cell_ids(replace(plan, threads=2), "threads").isdisjoint(own)
    assert cell_ids(plan_of(*SMALL, "training.seeds=[1]"), "seed").isdisjoint(own)


def test_a_damaged_record_beside_a_run_is_named(plan: TrainingPlan, tmp_path: Path) -> None:
    path = tmp_path / "run" / "record.json"
    path.parent.mkdir()
    recorder = Recorder(plan, tmp_path / "out")
    recorder.publish(path.parent)  # there is none: nothing to add
    path.write_text('{"schema_version": 1', encoding="utf-8")
    with pytest.raises(RecordError, match=r"run/record.json: .*Train the run anew with --fresh"):
        recorder.publish(path.parent)
    assert not recorder.path.exists()
