"""What a run tells while it goes on: the events, in order, and the Observer that receives them.

A run notifies from the thread that called it, between messages of the worker, so that an observer may print
but should not linger: a worker is measuring meanwhile. Nothing here prints.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from retbench.planning.cells import Cell
from retbench.records.record import Gate, Status


@dataclass(frozen=True)
class Progress:
    """How far a run is, counted in (cell, round) pairs.

    Attributes:
        done: Pairs with a record, those found on disk included.
        total: Pairs of the plan.
        seconds_left: Expected wall time of the rest, from what the cells took so far; None before the first
            cell ends.
    """

    done: int
    total: int
    seconds_left: float | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        counts: Records written in this run by status.
        skipped: (cell, round) pairs that were on disk already, by status.
        path: The run's record file; None when nothing was written.
        interrupted: Whether SIGINT or SIGTERM ended it; everything measured before is on disk.
    """

    counts: dict[Status, int] = field(default_factory=dict)
    skipped: dict[Status, int] = field(default_factory=dict)
    path: Path | None = None
    interrupted: bool = False


@dataclass(frozen=True)
class WaitingForLock:
    """Another run is timing on this machine; told once for each holder."""

    holder: str
    """Who holds the lock, in words: process id, command, since when."""


@dataclass(frozen=True)
class Planned:
    """The lock is held and the records on disk are read: what is left is known."""

    progress: Progress
    skipped: int
    run_id: str


@dataclass(frozen=True)
class Preparing:
    """A model's prepare worker was started: the gate, and the states that need a real prefill."""

    model_name: str
    pid: int
    progress: Progress


@dataclass(frozen=True)
class Streaming:
    """A prepare worker's streamed prefill went on."""

    model_name: str
    num_tokens: int
    """Tokens done so far."""
    total_tokens: int
    progress: Progress


@dataclass(frozen=True)
class GateChecked:
    """A model's forms were compared; after a red gate none of its cells is measured."""

    model_name: str
    gate: Gate
    progress: Progress


@dataclass(frozen=True)
class RoundStarted:
    """A round begins."""

    round: int
    num_rounds: int
    model_order: tuple[str, ...]
    progress: Progress


@dataclass(frozen=True)
class CellStarted:
    """A worker began with a cell."""

    cell: Cell
    round: int
    pid: int
    """The worker's process."""
    progress: Progress


@dataclass(frozen=True)
class CellAdvanced:
    """A cell that evaluates a model goes on."""

    cell: Cell
    round: int
    num_tokens: int
    """Tokens that the model has read in this cell."""
    progress: Progress


@dataclass(frozen=True)
class CellDone:
    """A (cell, round) has its record on disk."""

    cell: Cell
    round: int
    status: Status
    error: str | None
    progress: Progress


@dataclass(frozen=True)
class WorkerDied:
    """A worker's process ended on its own or was ended for its time limit; the sweep goes on."""

    model_name: str
    pid: int
    reason: str
    progress: Progress


@dataclass(frozen=True)
class Finished:
    """The last event of a run that was not ended by an error."""

    result: RunResult
    progress: Progress


Event = (
    WaitingForLock
    | Planned
    | Preparing
    | Streaming
    | GateChecked
    | RoundStarted
    | CellStarted
    | CellAdvanced
    | CellDone
    | WorkerDied
    | Finished
)


class Observer(Protocol):
    """Receives the events of a run."""

    def notify(self, event: Event, /) -> None:
        """Take note of one event."""


class Silent:
    """An observer that does nothing with what it hears."""

    def notify(self, event: Event, /) -> None:
        """Ignore the event."""
