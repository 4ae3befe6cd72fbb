"""Learning curves in another library: offline in Weights & Biases, and what is not installed."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retbench.cli.tracking import track_runs
from retbench.errors import ConfigError, UnsupportedError
from retbench.training.events import CurvePoint, Noted, PointAdded, RunResult, RunStarted
from retbench.training.plan import TrainingPlan


class Library(SimpleNamespace):
    """A library with the interface of both, which keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(calls=[])

    def init(self, **settings: Any) -> "Library":
        self.calls.append(("init", settings))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", step, values))

    def finish(self) -> None:
        self.calls.append(("finish",))


def point(step: int) -> CurvePoint:
    return CurvePoint(step, 100 * step, 2.5, 2.25, 1e-3, 0.5, 1000.0)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setitem(sys.modules, "trackio", found)  # type: ignore[arg-type]
    return found


def test_each_run_is_a_run_there_with_its_settings_and_its_curve(
    library: Library, training_plan: TrainingPlan
) -> None:
    first, second = training_plan.tuning_runs[:2]
    passed: list[Any] = []
    with track_runs("trackio", training_plan, passed.append) as notify:
        events = [
            RunStarted(first, 1, 2, 0),
            PointAdded(first, point(10)),
            Noted(first, "a note"),
            RunResult(first, "ok", Path("a"), 1000),
            RunResult(second, "ok", Path("b"), 1000, on_disk=True),
            RunStarted(second, 2, 2, 0),
        ]
        for event in events:
            notify(event)
    assert passed == events
    kinds = [call[0] for call in library.calls]
    assert kinds == ["init", "log", "finish", "init", "finish"]  # the interrupted one is finished too
    settings = library.calls[0][1]
    assert (settings["project"], settings["name"]) == ("retbench", first.name)
    assert settings["config"]["learning_rate"] == first.learning_rate
    json.dumps(settings["config"])
    _, step, values = library.calls[1]
    assert (step, values["train_loss_nats"], values["num_tokens"]) == (10, 2.5, 1000)
    assert "validation_acc" not in values


def test_a_library_that_is_not_there_is_refused(
    training_plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(UnsupportedError, match=r"pip install 'retbench\[wandb\]'"),
        track_runs("wandb", training_plan, print),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="Known: trackio, wandb"),
        track_runs("mlflow", training_plan, print),
    ):
        pass


OFFLINE = """
import sys
from pathlib import Path
from retbench.training.planning import make_training_plan
from retbench.cli.tracking import track_runs
from retbench.training.events import CurvePoint, PointAdded, RunResult, RunStarted
plan = make_training_plan("quality", profile="smoke", device="cpu")
run = plan.runs[0]
with track_runs("wandb", plan, lambda event: None) as notify:
    notify(RunStarted(run, 1, 1, 0))
    notify(PointAdded(run, CurvePoint(10, 1000, 2.5, 2.25, 1e-3, 0.5, 1000.0)))
    notify(RunResult(run, "ok", Path("a"), 1000))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("wandb") is None, reason="wandb is not installed: pip install 'retbench[wandb]'"
)
def test_wandb_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", OFFLINE], check=True, cwd=tmp_path)
    (kept,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"train_loss_nats" in kept.read_bytes()
