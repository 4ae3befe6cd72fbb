"""What training tells while it goes on: the events, and what came of each run. Without torch; nothing here prints."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retbench.training.curve import CurvePoint
from retbench.training.plan import TrainingRun

RunStatus = Literal["ok", "failed"]


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        run: The run, with its learning rate; without one where the grid gave none.
        status: failed where it diverged.
        folder: Where it lies.
        num_tokens: Tokens it has learned from.
        validation_loss: Nats per token at its end; None where it failed.
        tokens_per_s: Of all its steps, validation and snapshots left out; None where it failed.
        error: Why it failed.
        on_disk: Whether it was trained before.
    """

    run: TrainingRun
    status: RunStatus
    folder: Path
    num_tokens: int
    validation_loss: float | None = None
    tokens_per_s: float | None = None
    error: str | None = None
    on_disk: bool = False


@dataclass(frozen=True)
class Tuning:
    """The rate that a model's grid came to.

    Attributes:
        learning_rate: With the lowest validation loss.
        edge: Which end of the grid it is, beyond which a better one may lie; None inside it.
    """

    model_name: str
    size: str
    learning_rate: float
    edge: Literal["lowest", "highest"] | None


@dataclass(frozen=True)
class TrainingResult:
    """What a training command came to.

    Attributes:
        runs: Every run that is over, the grid first.
        tunings: What the grids came to.
        interrupted: Whether it was told to stop; the run it was at goes on from its snapshot.
    """

    runs: tuple[RunResult, ...]
    tunings: tuple[Tuning, ...]
    interrupted: bool = False


@dataclass(frozen=True)
class Planned:
    """What there is to do."""

    num_runs: int
    num_done: int
    """Runs that are on disk already, as far as that is known before tuning."""


@dataclass(frozen=True)
class WaitingForLock:
    """Another run holds the machine; told once for each holder."""

    holder: str


@dataclass(frozen=True)
class Packing:
    """Text becomes tokens, before the first run; told after every document."""

    split: str
    num_documents: int
    num_bytes: int


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or goes on after `step` steps."""

    run: TrainingRun
    number: int
    """Of all runs, from 1."""
    num_runs: int
    step: int


@dataclass(frozen=True)
class StepDone:
    """An optimiser step."""

    run: TrainingRun
    step: int
    loss: float
    """Nats per token of the step's batch."""
    tokens_per_s: float
    """Of this step."""
    seconds_left: float | None
    """Expected wall time of this and all later runs; None before it can be told."""


@dataclass(frozen=True)
class PointAdded:
    """The learning curve has a new point."""

    run: TrainingRun
    point: CurvePoint


@dataclass(frozen=True)
class Noted:
    """Something a person should know of a run, such as a damaged snapshot."""

    run: TrainingRun
    text: str


@dataclass(frozen=True)
class RunEnded:
    """A run is over."""

    result: RunResult


@dataclass(frozen=True)
class Tuned:
    """A model's rate is decided."""

    tuning: Tuning


@dataclass(frozen=True)
class Finished:
    """The last event of a command that no error ended."""

    result: TrainingResult


Event = (
    WaitingForLock
    | Packing
    | Planned
    | RunStarted
    | StepDone
    | PointAdded
    | Noted
    | RunEnded
    | Tuned
    | Finished
)
Tell = Callable[[Event], None]
"""Receives the events, between two steps."""
