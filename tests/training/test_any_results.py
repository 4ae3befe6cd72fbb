"""A results folder from elsewhere: nothing in it runs code, leads out of it, or ends in a traceback."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from typer.testing import CliRunner, Result

from retbench.cli import app
from retbench.errors import ConfigError, RetbenchError
from retbench.training import trained
from retbench.training.engine import train_all
from retbench.training.loop import Stopped, Trainer
from retbench.training.plan import TrainingPlan, TrainingRun
from tests.fuzzing import EXAMPLES, fuzz, mutated, read_or_refused, texts
from tests.training.conftest import PlanOf, text_of
from tests.training.test_loop import never, trainer_of

SMALL = ('training.sizes=["300k"]', "training.num_tokens=384", "training.checkpoint_every=2")
FIRST = Path("checkpoints/tiny/cpu/retnet-300k-seed0")


def train(experiment: Path, out: Path, *options: str) -> Result:
    words = ["train", str(experiment), "--profile", "cpu", "--device", "cpu", "--out", str(out), *options]
    return CliRunner().invoke(app, [*words, *(word for item in SMALL for word in ("--set", item))])


def refusal(done: Result) -> str:
    """Return the message of a command that was refused; it must not have failed in another way."""
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    return done.stderr


@pytest.fixture
def plan(plan_of: PlanOf) -> TrainingPlan:
    return plan_of(*SMALL)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def plant(folder: Path, files: Mapping[str, bytes], state: object, key: str = "files_sha256") -> Path:
    """Write a snapshot with right checksums."""
    path = folder / "steps" / "000002"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    rest = {key: sums, "state": state}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps({"sha256": digest, **rest}), encoding="utf-8")
    return path


def test_a_planted_snapshot_runs_no_code(experiment: Path, tmp_path: Path) -> None:
    out, ran = tmp_path / "out", tmp_path / "ran"
    state = {"step": 2, "curve": [], "recent_losses": []}
    bomb = pickle.dumps(Bomb(ran))
    plant(out / FIRST, {".metadata": bomb, "__0_0.distcp": bomb}, state)
    done = train(experiment, out)
    assert not ran.exists()
    assert done.exit_code == 0, done.output
    assert "is damaged" in done.stderr
    plant(out / FIRST.with_name("transformer-300k-seed0"), {"tensors.safetensors": bomb}, state)
    shutil.rmtree(out / FIRST.with_name("transformer-300k-seed0") / "final")
    assert "Remove it, or train anew with --fresh" in refusal(train(experiment, out))
    assert not ran.exists()


def test_no_file_outside_a_snapshot_is_read(experiment: Path, tmp_path: Path) -> None:
    path = plant(tmp_path / "out" / FIRST, {}, {})
    rest = {"files_sha256": {"../../../../../../../../../dev/zero": "0"}, "state": {}}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps({"sha256": digest, **rest}), encoding="utf-8")
    done = train(experiment, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "is damaged" in done.stderr


@pytest.fixture
def snapshot(plan: TrainingPlan, tmp_path: Path) -> tuple[Trainer, dict[str, torch.Tensor], dict[str, Any]]:
    """A trainer stopped after two steps, and the tensors and the state of its snapshot."""
    trainer = trainer_of(plan, tmp_path / "run")
    stops = iter([False, False, True])
    with pytest.raises(Stopped):
        trainer.train(lambda: next(stops), lambda *_: None)
    path = tmp_path / "run/steps/000002"
    return trainer, load_file(path / "tensors.safetensors"), asdict(trainer.state)


Snapshot = tuple[Trainer, dict[str, torch.Tensor], dict[str, Any]]


def goes_on(trainer: Trainer) -> bool:
    """Restore a trainer and train it to its end; return False if that was refused."""
    try:
        trainer._restore()
        trainer.train(never, lambda *_: None)
    except RetbenchError:
        return False
    return True


def test_a_snapshot_as_it_was_is_taken_up(snapshot: Snapshot) -> None:
    trainer, tensors, state = snapshot
    for key in ("files_sha256", "tensors_sha256"):  # the latter until one process wrote as several do
        path = plant(trainer.folder, {"tensors.safetensors": save(tensors)}, state, key)
        if key == "tensors_sha256":
            rest = {key: hashlib.sha256(save(tensors)).hexdigest(), "state": state}
            digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
            (path / "state.json").write_text(json.dumps({"sha256": digest, **rest}), encoding="utf-8")
        trainer.state.step = 0
        trainer._restore()
        assert trainer.state.step == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("weight:norm.weight"),
        lambda tensors: tensors.update({"weight:norm.weight": torch.zeros(3)}),
        lambda tensors: tensors.update({"weight:other": torch.zeros(3)}),
        lambda tensors: tensors.update({"optimizer:norm.weight:exp_avg": torch.zeros(3)}),
        lambda tensors: tensors.update({"nothing": torch.zeros(3)}),
    ],
)
def test_tensors_of_another_model_are_refused(
    snapshot: Snapshot, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    trainer, tensors, state = snapshot
    change(tensors)
    plant(trainer.folder, {"tensors.safetensors": save(tensors)}, state)
    assert not goes_on(trainer)


@EXAMPLES
def test_any_state_is_taken_up_or_refused(snapshot: Snapshot, examples: int) -> None:
    trainer, tensors, state = snapshot
    trainer.plan = replace(
        trainer.plan, spec=trainer.plan.spec.model_copy(update={"checkpoint_every": 10**9})
    )
    content = save(tensors)

    def check(planted: object) -> None:
        try:
            plant(trainer.folder, {"tensors.safetensors": content}, planted)
        except (UnicodeEncodeError, ValueError):
            return  # cannot be written
        goes_on(trainer)

    fuzz(mutated(state), check, examples)


def test_settings_that_are_no_object_are_refused(plan: TrainingPlan, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "final").mkdir(parents=True)
    (folder / "run.json").write_text('{"determined_by": [[null, null]]}', encoding="utf-8")
    with pytest.raises(ConfigError, match="does not hold the settings of a run"):
        trained.check(folder, plan, plan.final_runs[0])


@EXAMPLES
def test_any_file_of_settings_is_read_or_refused(plan: TrainingPlan, tmp_path: Path, examples: int) -> None:
    run = plan.final_runs[0]
    folder = tmp_path / "run"
    trained.claim(folder, plan, run)
    (folder / "final").mkdir()
    stored = json.loads((folder / "run.json").read_bytes())

    def check(content: bytes) -> None:
        (folder / "run.json").write_bytes(content)
        with read_or_refused():
            trained.check(folder, plan, run)

    fuzz(texts(stored), check, examples)


@EXAMPLES
def test_any_notes_on_a_training_are_read_or_refused(
    plan: TrainingPlan, tmp_path: Path, examples: int
) -> None:
    train_all(plan, text_of(plan), tmp_path, notify=lambda _: None, stop=never)
    path = tmp_path / FIRST / "final/config.json"
    stored = json.loads(path.read_bytes())

    def check(metadata: object) -> None:
        path.write_text(json.dumps({**stored, "metadata": metadata}), encoding="utf-8")
        with read_or_refused():
            assert len(trained.find_trained(tmp_path, "tiny", "cpu")) == 2

    fuzz(mutated(stored["metadata"]), check, examples)


@pytest.mark.parametrize(("field", "value"), [("learning_rate", False), ("seed", True), ("num_tokens", None)])
def test_a_wrong_note_on_a_training_is_named(
    plan: TrainingPlan, tmp_path: Path, field: str, value: object
) -> None:
    train_all(plan, text_of(plan), tmp_path, notify=lambda _: None, stop=never)
    path = tmp_path / FIRST / "final/config.json"
    stored = json.loads(path.read_bytes())
    wrong = {**stored, "metadata": {**stored["metadata"], field: value}}
    path.write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(ConfigError, match=field):
        trained.find_trained(tmp_path, "tiny", "cpu")


BAD_NAMES = ["..", "../../victim", "/victim", "", "a/b", "\x1b[31m", "a" * 300]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_leads_out_of_the_results(plan: TrainingPlan, tmp_path: Path, name: str) -> None:
    run = plan.final_runs[0]
    hostile: list[tuple[TrainingPlan, TrainingRun]] = [
        (replace(plan, profile_name=name), run),
        (replace(plan, experiment=plan.experiment.model_copy(update={"name": name})), run),
    ]
    if name not in ("", ".."):  # of a model, they are only a part of a name
        hostile.append((plan, replace(run, model_name=name)))
    for its_plan, its_run in hostile:
        with pytest.raises(ConfigError, match="cannot be the name of a file or folder"):
            trained.run_folder(tmp_path, its_plan, its_run)
    with pytest.raises(ConfigError, match="cannot be the name of a file or folder"):
        trained.find_trained(tmp_path, name, "cpu")


@pytest.mark.parametrize("link", ["checkpoints", "checkpoints/tiny", str(FIRST), str(FIRST / "steps")])
@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
def test_nothing_is_deleted_or_written_through_a_link(
    experiment: Path, tmp_path: Path, link: str, fresh: tuple[str, ...]
) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    at = elsewhere / Path(*(FIRST / "steps").parts[len(Path(link).parts) :])
    at.mkdir(parents=True)
    for folder in (elsewhere, at, at.parent):
        (folder / "run.json").write_text('{"determined_by": {}}', encoding="utf-8")
        (folder / "000001").mkdir(exist_ok=True)
        (folder / "thesis.tex").write_text("years of work", encoding="utf-8")
    before = sorted(elsewhere.rglob("*"))
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(elsewhere)
    assert "a link leads to" in refusal(train(experiment, out, *fresh))
    assert sorted(elsewhere.rglob("*")) == before


def test_the_results_themselves_may_be_a_link(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    assert train(experiment, tmp_path / "out").exit_code == 0
    assert train(experiment, tmp_path / "out", "--fresh").exit_code == 0
    assert (tmp_path / "scratch" / FIRST / "final").is_dir()


def test_what_a_killed_process_left_is_removed(experiment: Path, tmp_path: Path) -> None:
    assert train(experiment, tmp_path).exit_code == 0
    folder = tmp_path / FIRST
    expected = sorted(tmp_path.rglob("*"))
    for name in ("steps/000002/tensors.safetensors", ".draft-final/model.safetensors", ".draft-curve.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    shutil.copytree(folder, folder.with_name(f".draft-{folder.name}"))
    assert train(experiment, tmp_path).exit_code == 0
    assert sorted(tmp_path.rglob("*")) == expected
