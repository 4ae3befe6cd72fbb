"""A plan carried out: which runs are trained, which are reused from the disk, and the events of both."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import ConfigError
from retbench.files import checksum
from retbench.records.record import Record
from retbench.records.store import read_records
from retbench.report.selection import select
from retbench.training.engine import delete_runs, train_all
from retbench.training.events import (
    RunResult,
    RunStarted,
    StepDone,
    TrainingEvent,
    TrainingPlanned,
    TrainingResult,
    Tuning,
)
from retbench.training.plan import TrainingPlan
from retbench.training.trained import find_trained, run_folder
from tests.training.conftest import PlanOf, text_of

SMALL = ('training.sizes=["300k"]', "training.num_tokens=384")
"""4 steps of the smallest size."""
GRID = "training.learning_rates=[1e-3, 4e-3]"


def never() -> bool:
    return False


def carry_out(
    plan: TrainingPlan, out: Path, stop: Callable[[], bool] = never
) -> tuple[TrainingResult, list[TrainingEvent]]:
    events: list[TrainingEvent] = []
    result = train_all(plan, text_of(plan), out, notify=events.append, stop=stop)
    return result, events


def weights_of(out: Path, plan: TrainingPlan) -> dict[str, str]:
    """Checksum of the final weights of every final run."""
    return {
        run.name: checksum(run_folder(out, plan, run) / "final/model.safetensors") for run in plan.final_runs
    }


def training_records(out: Path) -> list[Record]:
    """In the order in which their runs began."""
    records, problems = read_records(out)
    assert not problems
    return sorted(records, key=lambda record: record.started_at)


def test_final_runs_take_the_best_rate_of_their_own_models_grid(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(*SMALL, GRID, "training.tuning_tokens=192", "training.seeds=[3, 5]")
    result, events = carry_out(plan, tmp_path)
    tunings = [event for event in events if isinstance(event, Tuning)]
    assert {tuning.model_name for tuning in tunings} == {"retnet", "transformer"}
    assert all(tuning.edge is not None for tuning in tunings)  # of two rates either is an edge
    losses = {
        (run.run.model_name, run.run.learning_rate): run.validation_loss
        for run in result.runs
        if run.run.role == "tuning"
    }
    for tuning in tunings:
        mine = {rate: loss for (name, rate), loss in losses.items() if name == tuning.model_name}
        assert tuning.learning_rate == min(mine, key=lambda rate: mine[rate] or 9e9)
    best = {tuning.model_name: tuning.learning_rate for tuning in tunings}
    finals = find_trained(tmp_path, "tiny", "cpu")
    assert [(final.model_name, final.seed, final.learning_rate) for final in finals] == [
        (name, seed, best[name]) for name in ("retnet", "transformer") for seed in (3, 5)
    ]
    assert len({final.weights_fingerprint for final in finals}) == 4


def test_a_final_run_that_equals_one_of_the_grid_is_not_trained_again(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of(*SMALL, GRID)
    _, events = carry_out(plan, tmp_path)
    started = [event for event in events if isinstance(event, RunStarted)]
    assert [event.run.role for event in started] == ["tuning"] * 4
    assert [event.number for event in started] == [1, 2, 3, 4]
    records = training_records(tmp_path)
    assert len({record.cell_id for record in records}) == len(records) == 6
    finals = [record for record in records if record.backend["role"] == "final"]
    assert {record.model.name for record in finals} == {"retnet", "transformer"}
    for final in finals:
        (twin,) = [r for r in records if r not in finals and r.model.weights == final.model.weights]
        assert twin.model.name == final.model.name
        assert final.backend["tuned_at"] == "300k"


def test_what_was_stopped_goes_on_to_the_same_weights(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(*SMALL)
    carry_out(plan, tmp_path / "whole")
    stops = iter([False] * 6 + [True])  # in the second run, after two of its four steps
    result, events = carry_out(plan, tmp_path / "parts", lambda: next(stops))
    assert result.interrupted
    assert [run.run.model_name for run in result.runs] == ["retnet"]
    assert events[-1] == result
    result, events = carry_out(plan, tmp_path / "parts")
    assert events[0] == TrainingPlanned(2, 1)
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    assert (started.run.model_name, started.step, started.number) == ("transformer", 2, 2)
    assert [run.on_disk for run in result.runs] == [True, False]
    assert weights_of(tmp_path / "parts", plan) == weights_of(tmp_path / "whole", plan)
    records = training_records(tmp_path / "parts")
    assert [record.model.name for record in records] == ["retnet", "transformer"]
    assert [record.backend["processes_in_turn"] for record in records] == [1, 2]


def test_a_finished_run_has_the_same_result_again(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(*SMALL)
    first, _ = carry_out(plan, tmp_path)
    again, events = carry_out(plan, tmp_path)
    for new, old in zip(again.runs, first.runs, strict=True):
        assert new.on_disk
        assert (new.validation_loss, new.tokens_per_s, new.num_tokens) == (
            old.validation_loss,
            old.tokens_per_s,
            old.num_tokens,
        )
    assert not [event for event in events if isinstance(event, (RunStarted, StepDone))]
    assert len(training_records(tmp_path)) == 2  # and no record is written twice


def test_a_model_whose_whole_grid_diverges_has_no_final_run(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(*SMALL, "training.learning_rates=[1e5, 1e6]")
    for is_first in (True, False):  # the same command trains nothing again, and adds no record
        result, events = carry_out(plan, tmp_path)
        assert any(isinstance(event, StepDone) for event in events) == is_first
        assert [run.status for run in result.runs] == ["failed"] * 6
        assert not [event for event in events if isinstance(event, Tuning)]
        for run in result.runs[-2:]:
            name = run.run.model_name
            assert run.error == f"no learning rate: every run of {name}'s grid at size 300k diverged."
        assert not find_trained(tmp_path, "tiny", "cpu")
        records = training_records(tmp_path)
        assert [(record.status, record.model.weights) for record in records] == [("failed", None)] * 4
        assert all("Use a lower learning rate" in str(record.error) for record in records)


def test_other_code_tries_again_what_diverged(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(*SMALL, "training.learning_rates=[1e6]")
    carry_out(plan, tmp_path)
    monkeypatch.setattr("retbench.measure.environment.code_revision", lambda: "another")
    _, events = carry_out(plan, tmp_path)
    assert any(isinstance(event, StepDone) for event in events)


def test_a_higher_limit_on_spikes_tries_again_what_diverged(plan_of: PlanOf, tmp_path: Path) -> None:
    table = (*SMALL, "training.learning_rates=[1e6]")
    carry_out(plan_of(*table), tmp_path)
    for is_other in (True, False):  # the second time, the failure with that limit is on disk
        result, events = carry_out(plan_of(*table, "training.spike_ratio=9"), tmp_path)
        assert any(isinstance(event, StepDone) for event in events) == is_other
        assert [run.status for run in result.runs] == ["failed"] * 2


def test_a_record_that_a_dying_process_did_not_add_is_added_by_the_next(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of(*SMALL)
    carry_out(plan, tmp_path)
    before = training_records(tmp_path)
    for path in tmp_path.rglob("*.jsonl"):
        path.unlink()
    carry_out(plan, tmp_path)
    assert training_records(tmp_path) == before


def test_what_is_trained_anew_is_recorded_anew(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(*SMALL)
    carry_out(plan, tmp_path)
    delete_runs(plan, tmp_path)
    carry_out(plan, tmp_path)
    records = training_records(tmp_path)
    assert [record.model.name for record in records] == ["retnet", "transformer"] * 2
    assert len({record.cell_id for record in records}) == 2
    newest = select(records).records
    assert [record.started_at for record in newest] == [record.started_at for record in records[2:]]


def test_nothing_is_trained_where_any_folder_holds_another_run(plan_of: PlanOf, tmp_path: Path) -> None:
    carry_out(plan_of(*SMALL), tmp_path)
    first = tmp_path / "checkpoints/tiny/cpu/retnet-300k-seed0"
    shutil.rmtree(first)
    with pytest.raises(ConfigError, match=r"transformer-300k-seed0 holds another run .*seq_len: 48 on disk"):
        carry_out(plan_of(*SMALL, "training.seq_len=24"), tmp_path)
    assert not first.exists()


def test_deleting_takes_the_plans_runs_and_nothing_else(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(*SMALL)
    carry_out(plan, tmp_path)
    root = tmp_path / "checkpoints/tiny/cpu"
    other = root / "retnet-300k-seed1"
    shutil.copytree(root / "retnet-300k-seed0", other)
    mine = root / "transformer-300k-seed0"
    (mine / "run.json").unlink()  # a folder of that name which is no run of ours
    delete_runs(plan, tmp_path)
    assert sorted(path.name for path in root.iterdir()) == [other.name, mine.name]


def test_the_checkpoint_says_what_it_learned_from_and_snapshots_are_gone(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of(*SMALL, "training.checkpoint_every=1")
    result, events = carry_out(plan, tmp_path)
    for run in result.runs:
        assert sorted(path.name for path in run.folder.iterdir()) == [
            "curve.csv",
            "final",
            "record.json",
            "run.json",
        ]
        info = read_checkpoint(str(run.folder / "final"))
        assert info.context_len == 48
        assert plan.text is not None
        fingerprint = plan.text.tokenizer.fingerprint
        assert (info.tokenizer, info.tokenizer_fingerprint) == ("bytes", fingerprint)
        assert info.metadata["corpus_fingerprint"] == plan.source.fingerprint
        assert info.metadata["num_tokens"] == 384
        assert info.metadata["validation_loss"] == run.validation_loss
        stored = json.loads((run.folder / "run.json").read_text("utf-8"))
        assert stored["training_fingerprint"] == info.metadata["training_fingerprint"]
    ended = [event for event in events if isinstance(event, RunResult)]
    assert tuple(ended) == result.runs


def test_the_time_that_is_left_falls_to_nothing(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(*SMALL)
    _, events = carry_out(plan, tmp_path)
    left = [event.seconds_left for event in events if isinstance(event, StepDone)]
    assert len(left) == 8
    assert left[-1] == pytest.approx(0, abs=1e-6)
    assert all(seconds is not None and seconds > 0 for seconds in left[:-1])
