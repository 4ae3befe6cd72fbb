"""Events that training sends while it runs. Imports no torch and prints nothing.

The results of a run, of a grid and of the whole command are events too, sent as soon as they are known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retbench.training.plan import TrainingRun

RunStatus = Literal["ok", "failed"]


@dataclass(frozen=True)
class CurvePoint:
    """A point of the learning curve, after `step` steps; losses are nats per token, or per answer of a task.

    Attributes:
        train_loss_nats: Mean over the steps since the last point.
        grad_norm: Norm of all gradients of this step, before clipping.
        tokens_per_s: Mean over the steps since the last point, without validation and snapshots.
        validation_acc: Share of right answers, mean over the validation examples; None for a text.
    """

    step: int
    num_tokens: int
    train_loss_nats: float
    validation_loss_nats: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    validation_acc: float | None = None


@dataclass(frozen=True)
class RunResult:
    """Result of a run that has ended; it failed if it diverged.

    Attributes:
        run: The run with its learning rate, or without one if every run of its grid diverged.
        validation_loss: Nats per token at the end, or per answer of a task; None if it failed.
        validation_acc: Share of right answers at the end; None for a text, or if it failed.
        tokens_per_s: Mean over all steps, without validation and snapshots; None if it failed.
        on_disk: Whether an earlier command trained it.
    """

    run: TrainingRun
    status: RunStatus
    folder: Path
    num_tokens: int
    validation_loss: float | None = None
    tokens_per_s: float | None = None
    error: str | None = None
    on_disk: bool = False
    validation_acc: float | None = None


@dataclass(frozen=True)
class Tuning:
    """Best learning rate of a model's grid, by validation loss.

    Attributes:
        edge: The end of the grid that the rate is at, beyond which a better one may lie; None inside the grid.
    """

    model_name: str
    size: str
    learning_rate: float
    edge: Literal["lowest", "highest"] | None


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training command: every run that has ended, those of the grid first, and each grid's best rate.

    If the command was interrupted, the same command continues from the snapshot of the current run.
    """

    runs: tuple[RunResult, ...]
    tunings: tuple[Tuning, ...]
    interrupted: bool = False


@dataclass(frozen=True)
class TrainingPlanned:
    """The first event: the number of runs, and how many of them are known to be on disk before tuning."""

    num_runs: int
    num_done: int


@dataclass(frozen=True)
class Packing:
    """Text is being tokenized before the first run; sent after every document."""

    split: str
    num_documents: int
    num_bytes: int


@dataclass(frozen=True)
class RunStarted:
    """A run, the `number`-th from 1, starts or continues after `step` steps."""

    run: TrainingRun
    number: int
    num_runs: int
    step: int


@dataclass(frozen=True)
class StepDone:
    """An optimiser step is done.

    Attributes:
        loss: Nats per token of the step's batch.
        tokens_per_s: Rate of this step.
        seconds_left: Expected wall time of this run and all later ones; None if not known yet.
    """

    run: TrainingRun
    step: int
    loss: float
    tokens_per_s: float
    seconds_left: float | None


@dataclass(frozen=True)
class PointAdded:
    """The learning curve has a new point."""

    run: TrainingRun
    point: CurvePoint


@dataclass(frozen=True)
class WaitingForRun:
    """Another command trains a run of this one into the same folder."""

    folder: Path


@dataclass(frozen=True)
class Noted:
    """A note for the user about a run, such as a damaged snapshot."""

    run: TrainingRun
    text: str


TrainingEvent = (
    WaitingForRun
    | TrainingPlanned
    | Packing
    | RunStarted
    | StepDone
    | PointAdded
    | Noted
    | RunResult
    | Tuning
    | TrainingResult
)
Notify = Callable[[TrainingEvent], None]
"""Receives the events, between two steps."""
