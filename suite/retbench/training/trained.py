"""Where runs lie on disk, and the trained models that others find there. Without torch.

<out>/checkpoints/<experiment>/<profile>/<model>-<size>-seed<k>/            a final run
<out>/checkpoints/<experiment>/<profile>/tuning/<model>-<size>-lr<rate>-seed<k>/   a run of the grid

Each has `run.json` (what determines it), `curve.csv` (the learning curve), `steps/` while it goes on (snapshots to
restart from), and `final/` once it is done: a checkpoint as `retbench.checkpoints` writes it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.checkpoints.reading import FINAL, read_checkpoint
from retbench.errors import ConfigError
from retbench.files import write_atomic
from retbench.training.plan import TrainingPlan, TrainingRun, differences

CHECKPOINTS = "checkpoints"
TUNING = "tuning"
STEPS = "steps"
CURVE = "curve.csv"
RUN = "run.json"


@dataclass(frozen=True)
class TrainedRun:
    """A final run that is done.

    Attributes:
        path: Folder of the checkpoint.
        num_tokens: Tokens it has learned from.
        validation_loss: Nats per token at its end.
    """

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


def profile_folder(out: Path, experiment: str, profile: str) -> Path:
    """Where all runs of a profile lie."""
    return out / CHECKPOINTS / experiment / profile


def run_folder(out: Path, plan: TrainingPlan, run: TrainingRun) -> Path:
    """Where a run lies."""
    folder = profile_folder(out, plan.experiment.name, plan.profile_name)
    return (folder / TUNING if run.role == "tuning" else folder) / run.name


def is_done(out: Path, plan: TrainingPlan, run: TrainingRun) -> bool:
    """Whether a run has its final checkpoint."""
    return (run_folder(out, plan, run) / FINAL / "config.json").is_file()


def find_trained(out: Path, experiment: str, profile: str) -> list[TrainedRun]:
    """The final runs of a profile that are done, in the order of their folders' names.

    Raises:
        ConfigError: a checkpoint there is not one that `retbench train` wrote.
    """
    folder = profile_folder(out, experiment, profile)
    if not folder.is_dir():
        return []
    finals = sorted(path / FINAL for path in folder.iterdir() if (path / FINAL / "config.json").is_file())
    return [_trained(path) for path in finals]


def _trained(path: Path) -> TrainedRun:
    """What a checkpoint says of its training."""
    info = read_checkpoint(str(path))
    told = info.metadata
    try:
        return TrainedRun(
            path=path,
            weights_fingerprint=str(info.weights_fingerprint),
            tokenizer=str(info.tokenizer),
            tokenizer_fingerprint=str(info.tokenizer_fingerprint),
            **{
                name: told[name]
                for name in TrainedRun.__dataclass_fields__
                if name not in {"path", "weights_fingerprint", "tokenizer", "tokenizer_fingerprint"}
            },
        )
    except KeyError as error:
        raise ConfigError(
            f"{path}: its config.json does not say {error} in 'metadata', so `retbench train` did not write it. "
            "Move it away from the trained models, and name it by its path where it is to be evaluated."
        ) from error


def read_run(folder: Path) -> dict[str, Any] | None:
    """What determined the run in a folder; None where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))["determined_by"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / RUN}: does not say what was trained here ({error}). Move the folder away, or train anew with "
            "--fresh."
        ) from error
    return found


def claim(folder: Path, plan: TrainingPlan, run: TrainingRun) -> None:
    """Mark a folder as a run's; one that holds another run is left as it is.

    Raises:
        ConfigError: the folder holds a run that something else determined; the message says what differs.
    """
    check(folder, plan, run)
    told = {"training_fingerprint": plan.fingerprint(run), "determined_by": plan.determined_by(run)}
    if read_run(folder) != told["determined_by"]:
        write_atomic(folder / RUN, json.dumps(told, indent=2).encode())


def check(folder: Path, plan: TrainingPlan, run: TrainingRun) -> None:
    """ConfigError where a folder holds a run that something else determined.

    A rate that is not decided yet is no matter, nor is a run of which nothing came, not even a first step.
    """
    stored = read_run(folder)
    if stored is None or all(path.name == RUN for path in folder.iterdir()):
        return
    undecided = () if run.learning_rate is not None else ("learning_rate",)
    found = differences(plan.determined_by(run), stored, apart_from=undecided)
    if found:
        raise ConfigError(
            f"{folder} holds another run ({'; '.join(found)}). Train into another folder with --out, or give --fresh "
            "to delete the runs of this profile and train them anew."
        )
