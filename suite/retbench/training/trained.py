"""Folders of runs on disk, and the search for trained models in them. Imports no torch.

<out>/checkpoints/<experiment>/<profile>/<model>-<size>-seed<k>/            a final run
<out>/checkpoints/<experiment>/<profile>/tuning/<model>-<size>-lr<rate>-seed<k>/   a run of the grid

Each folder has `run.json` (everything that determines the run) and `curve.csv` (the learning curve). While the run is
trained it has `steps/` (snapshots to continue from), and at the end `final/` (a checkpoint of `retbench.checkpoints`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.checkpoints.reading import FINAL, read_checkpoint
from retbench.errors import ConfigError
from retbench.files import write_atomic
from retbench.training.plan import TrainingPlan, TrainingRun

CHECKPOINTS = "checkpoints"
TUNING = "tuning"
STEPS = "steps"
CURVE = "curve.csv"
RUN = "run.json"


@dataclass(frozen=True)
class TrainedRun:
    """A finished final run: the folder of its checkpoint, and how it was trained; the loss is nats per token."""

    model_name: str
    size: str
    seed: int
    learning_rate: float
    path: Path
    weights_fingerprint: str
    tokenizer: str
    tokenizer_fingerprint: str
    corpus: str
    corpus_fingerprint: str
    num_tokens: int
    validation_loss: float
    training_fingerprint: str


def run_folder(out: Path, plan: TrainingPlan, run: TrainingRun) -> Path:
    """Return the folder of a run."""
    folder = out / CHECKPOINTS / plan.experiment.name / plan.profile_name
    return (folder / TUNING if run.role == "tuning" else folder) / run.name


def is_done(out: Path, plan: TrainingPlan, run: TrainingRun) -> bool:
    """Return whether a run has its final checkpoint."""
    return _has_final(run_folder(out, plan, run))


def _has_final(folder: Path) -> bool:
    return (folder / FINAL / "config.json").is_file()


def find_trained(out: Path, experiment: str, profile: str) -> list[TrainedRun]:
    """Return the finished final runs of a profile, in the order of their folders' names.

    Raises:
        ConfigError: a checkpoint there was not written by `retbench train`.
    """
    folder = out / CHECKPOINTS / experiment / profile
    if not folder.is_dir():
        return []
    return [_read_final(path / FINAL) for path in sorted(folder.iterdir()) if _has_final(path)]


def _read_final(path: Path) -> TrainedRun:
    info = read_checkpoint(str(path))
    known: dict[str, Any] = {
        "path": path,
        "weights_fingerprint": str(info.weights_fingerprint),
        "tokenizer": str(info.tokenizer),
        "tokenizer_fingerprint": str(info.tokenizer_fingerprint),
    }
    try:
        others = {name: info.metadata[name] for name in TrainedRun.__dataclass_fields__ if name not in known}
    except KeyError as error:
        raise ConfigError(
            f"{path}: its config.json does not have {error} in 'metadata', so `retbench train` did not write it. "
            "Move it away from the trained models, and give its path to evaluate it."
        ) from error
    return TrainedRun(**known, **others)


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the run in a folder; None if there is no run."""
    try:
        found: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))["determined_by"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / RUN}: does not hold the settings of a run ({error}). Move the folder away, or train anew "
            "with --fresh."
        ) from error
    return found


def claim(folder: Path, plan: TrainingPlan, run: TrainingRun) -> None:
    """Write a run's settings to its folder.

    Raises:
        ConfigError: the folder holds a run with other settings, which is left as it is.
    """
    check(folder, plan, run)
    content = {"training_fingerprint": plan.fingerprint(run), "determined_by": plan.determined_by(run)}
    if read_run(folder) != content["determined_by"]:
        write_atomic(folder / RUN, json.dumps(content, indent=2).encode())


def check(folder: Path, plan: TrainingPlan, run: TrainingRun) -> None:
    """Raise a ConfigError if a folder holds a run with other settings.

    A learning rate that is not decided yet is not compared. A folder without any result may be overwritten.
    """
    stored = read_run(folder)
    if stored is None or all(path.name == RUN for path in folder.iterdir()):
        return
    wanted = plan.determined_by(run)
    undecided = set() if run.learning_rate is not None else {"learning_rate"}
    found = [
        f"{name}: {stored.get(name)!r} on disk, {wanted.get(name)!r} asked for"
        for name in sorted((wanted.keys() | stored.keys()) - undecided)
        if wanted.get(name) != stored.get(name)
    ]
    if found:
        raise ConfigError(
            f"{folder} holds another run ({'; '.join(found)}). Train into another folder with --out, or give --fresh "
            "to delete the runs of this profile and train them anew."
        )
