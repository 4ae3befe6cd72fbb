"""Folders of runs, and which runs are found in them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retbench.errors import ConfigError
from retbench.training import trained
from retbench.training.engine import train_all
from retbench.training.plan import TrainingPlan
from tests.training.conftest import PlanOf, text_of

PROFILE = Path("checkpoints/tiny/cpu")


@pytest.fixture
def plan(plan_of: PlanOf) -> TrainingPlan:
    return plan_of('training.sizes=["300k"]', "training.num_tokens=96")


@pytest.fixture
def out(plan: TrainingPlan, tmp_path: Path) -> Path:
    """Results with both models trained for a step."""
    train_all(plan, text_of(plan), tmp_path, notify=lambda _: None, stop=lambda: False)
    return tmp_path


def found(out: Path) -> list[str]:
    return [run.model_name for run in trained.find_trained(out, "tiny", "cpu")]


def test_runs_lie_where_the_module_says(plan_of: PlanOf) -> None:
    plan = plan_of("training.learning_rates=[1e-3, 0.02]", 'training.sizes=["300k"]', "training.seeds=[4]")
    root = Path("results") / PROFILE
    assert [trained.run_folder(Path("results"), plan, run) for run in plan.final_runs] == [
        root / "retnet-300k-seed4",
        root / "transformer-300k-seed4",
    ]
    assert [trained.run_folder(Path("results"), plan, run).relative_to(root) for run in plan.tuning_runs] == [
        Path("tuning") / f"{name}-300k-lr{rate}-seed4"
        for rate in ("0.001", "0.02")
        for name in ("retnet", "transformer")
    ]


def test_only_what_is_done_is_found(out: Path) -> None:
    assert found(out) == ["retnet", "transformer"]
    assert trained.find_trained(out, "tiny", "paper") == []
    (out / PROFILE / "retnet-300k-seed0" / "final").rename(out / PROFILE / "retnet-300k-seed0" / ".draft")
    (out / PROFILE / "a file").touch()
    assert found(out) == ["transformer"]


def test_a_checkpoint_that_was_not_trained_here_is_refused(out: Path) -> None:
    path = out / PROFILE / "retnet-300k-seed0" / "final" / "config.json"
    content = json.loads(path.read_text("utf-8"))
    del content["metadata"]["num_tokens"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match="lacks num_tokens or has other values"):
        found(out)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{", encoding="utf-8"),
        lambda path: path.write_text("[]", encoding="utf-8"),
        lambda path: path.write_bytes(b"\xff"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.write_text('{"determined_by": 5}', encoding="utf-8"),
        lambda path: path.write_text("[" * 100_000, encoding="utf-8"),
        lambda path: path.write_text('{"determined_by": {"seed": 1' + "0" * 5000 + "}}", encoding="utf-8"),
    ],
    ids=["cut off", "no object", "no text", "a folder", "no settings", "deep", "huge"],
)
def test_a_folder_that_does_not_say_what_it_holds_is_never_taken_over(
    out: Path, plan: TrainingPlan, damage: Callable[[Path], object]
) -> None:
    folder = out / PROFILE / "retnet-300k-seed0"
    damage(folder / "run.json")
    with pytest.raises(ConfigError, match=r"run.json: does not hold the settings of a run .* --fresh"):
        trained.claim(folder, plan, plan.final_runs[0])
    assert (folder / "final").is_dir()


def test_a_rate_that_is_not_decided_yet_is_no_difference(plan: TrainingPlan, out: Path) -> None:
    (run, _) = plan.final_runs
    folder = trained.run_folder(out, plan, run)
    trained.check(folder, plan, run)
    trained.check(folder, plan, replace(run, learning_rate=None))
    with pytest.raises(ConfigError, match=r"learning_rate: 0.003 on disk, 0.1 asked for"):
        trained.check(folder, plan, replace(run, learning_rate=0.1))
