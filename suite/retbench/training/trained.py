"""Folders of runs on disk, and the search for trained models in them. Imports no torch.

<out>/checkpoints/<experiment>/<profile>/<model>-<size>-seed<k>/            a final run
<out>/checkpoints/<experiment>/<profile>/tuning/<model>-<size>-lr<rate>-seed<k>/   a run of the grid

Each folder has `run.json` (everything that determines the run) and `curve.csv` (the learning curve). While the run is
trained it has `steps/` (snapshots to continue from), and at the end `final/` (a checkpoint of `retbench.checkpoints`).
"""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, ValidationError

from retbench.checkpoints.reading import FINAL, read_checkpoint
from retbench.errors import ConfigError, shown
from retbench.files import DRAFT, inside, made, own_path, storing, take_lock, write_atomic
from retbench.parsing import parse_json
from retbench.strict import Strict
from retbench.training.plan import TrainingPlan, TrainingRun

CHECKPOINTS = "checkpoints"
TUNING = "tuning"
STEPS = "steps"
CURVE = "curve.csv"
RUN = "run.json"


class TrainedRun(Strict):
    """A finished run: the folder of its checkpoint, and how it was trained; the loss is nats per token.

    A run on a task has no tokenizer; its corpus is the name of the task, its loss is nats per answer, and it has an
    accuracy.
    """

    model_name: str
    size: str
    seed: int
    learning_rate: FiniteFloat
    path: Path
    weights_fingerprint: str
    tokenizer: str | None
    tokenizer_fingerprint: str | None
    corpus: str
    corpus_fingerprint: str
    num_tokens: int
    validation_loss: FiniteFloat
    tokens_per_s: FiniteFloat
    training_fingerprint: str
    validation_acc: FiniteFloat | None = None


def run_folder(out: Path, plan: TrainingPlan, run: TrainingRun) -> Path:
    """Return the folder of a run.

    Raises:
        ConfigError: a name cannot be that of a folder, or a link leads elsewhere, where nothing is written or deleted.
    """
    grid = (TUNING,) if run.role == "tuning" else ()
    return own_path(out, CHECKPOINTS, plan.experiment.name, plan.profile_name, *grid, run.name, STEPS).parent


def is_done(out: Path, plan: TrainingPlan, run: TrainingRun) -> bool:
    """Return whether a run has its final checkpoint."""
    return _has_final(run_folder(out, plan, run))


@contextmanager
def lock_runs(out: Path, plan: TrainingPlan, *, fresh: bool, wait: Callable[[Path], None]) -> Iterator[None]:
    """Keep other commands from training or deleting the runs that a plan trains; nothing is left behind.

    Args:
        out: Root of the results.
        plan: The plan; shards of one training share no run, so that they do not wait for each other.
        fresh: Whether the runs that are on disk are trained again.
        wait: Called with the folder of a run that another command trains; returns when to try again, or raises.

    Raises:
        StorageError: a lock cannot be made.
    """
    folders = {run_folder(out, plan, run) for run in plan.runs if fresh or not is_done(out, plan, run)}
    with ExitStack() as held:
        for folder in sorted(folders):  # in one order, so that of two commands one gets all
            path = folder.with_name(f"{DRAFT}{folder.name}.lock")
            with storing(path):
                held.enter_context(made(path.parent))
            while not take_lock(path, held):
                wait(folder)
        yield


def _has_final(folder: Path) -> bool:
    return (folder / FINAL / "config.json").is_file()


def find_trained(out: Path, experiment: str, profile: str) -> list[TrainedRun]:
    """Return the finished final runs of a profile, in the order of their folders' names.

    Raises:
        CheckpointError: a checkpoint there cannot be read.
        ConfigError: a checkpoint there was not written by `retbench train`, or a name cannot be that of a folder.
    """
    folder = inside(out, CHECKPOINTS, experiment, profile)
    if not folder.is_dir():
        return []
    return [read_final(path) for path in sorted(folder.iterdir()) if _has_final(path)]


def read_final(folder: Path) -> TrainedRun:
    """Return the finished run in a folder; errors as of `find_trained`."""
    info = read_checkpoint(str(folder / FINAL))
    own = ("path", "weights_fingerprint", "tokenizer", "tokenizer_fingerprint")
    stored = {**info.metadata, **{name: getattr(info, name) for name in own}}
    try:
        return TrainedRun(**{name: stored[name] for name in TrainedRun.model_fields if name in stored})
    except ValidationError as error:
        wrong = ", ".join(dict.fromkeys(str(fault["loc"][0]) for fault in error.errors()))
        raise ConfigError(
            f"{info.path}: the 'metadata' of its config.json lacks {wrong} or has other values there than `retbench "
            "train` writes. Move it away from the trained models, and give its path to evaluate it."
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left in and next to the folder of a run: drafts, and snapshots of a finished run."""
    names = (f"{DRAFT}{folder.name}", f"{DRAFT}{folder.name}.replaced")
    drafts = [*map(folder.with_name, names), *folder.glob(f"{DRAFT}*")]
    for path in [*drafts, folder / STEPS] if _has_final(folder) else drafts:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the run in a folder; None if there is no run."""
    try:
        settings = parse_json((folder / RUN).read_bytes())["determined_by"]
        if not isinstance(settings, dict):
            raise TypeError("determined_by is no object")
        return settings
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / RUN}: does not hold the settings of a run ({error}). Move the folder away, or train anew "
            "with --fresh."
        ) from error


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

    A learning rate that is not decided yet is not compared. A folder without any result may be overwritten. The steps
    at which a run is scored are compared where they decide its end; they are no part of its fingerprint.
    """
    stored = read_run(folder)
    if stored is None or all(path.name == RUN or path.name.startswith(DRAFT) for path in folder.iterdir()):
        return
    wanted = plan.determined_by(run)
    undecided = set() if run.learning_rate is not None else {"learning_rate"}
    found = [
        f"{name if name in wanted else shown(name)}: {shown(stored.get(name))} on disk, "
        f"{shown(wanted.get(name))} asked for"
        for name in sorted((wanted.keys() | stored.keys()) - undecided)
        if wanted.get(name) != stored.get(name)
    ]
    every = plan.spec.validate_every
    if plan.ends_early and (first := _first_point(folder)) not in (None, min(every, run.num_steps)):
        found.append(f"validate_every: {first} on disk, {every} asked for")
    if found:
        raise ConfigError(
            f"{folder} holds another run ({'; '.join(found)}). Train into another folder with --out, or give --fresh "
            "to delete the runs of this profile and train them anew."
        )


def _first_point(folder: Path) -> int | None:
    """Return the first step at which the run in a folder was scored; None if it was not."""
    path = folder / CURVE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return next((int(row["step"]) for row in csv.DictReader(file)), None)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ConfigError(
            f"{path}: is not a learning curve. Move the folder away, or train anew with --fresh."
        ) from error
