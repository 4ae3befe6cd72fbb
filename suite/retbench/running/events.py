"""Events of a run, in order.

A run passes them to a function, from the thread that called it, between messages of the worker. The function may print
but must be quick, because a worker is measuring meanwhile. Nothing here prints.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from retbench.planning.cells import Cell
from retbench.records.record import Gate, Status


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run, counted in (cell, round) pairs.

    Attributes:
        done: Pairs with a record, those found on disk included.
        total: Pairs of the plan.
        seconds_left: Expected wall time of the rest; None before the first cell ends.
    """

    done: int
    total: int
    seconds_left: float | None = None


@dataclass(frozen=True)
class RunSummary:
    """Outcome of a run.

    Attributes:
        counts: Records written in this run by status.
        skipped: (cell, round) pairs that were on disk before, by status.
        path: The run's record file; None when nothing was written.
        interrupted: True if a signal ended it; everything measured before is on disk.
    """

    counts: dict[Status, int] = field(default_factory=dict)
    skipped: dict[Status, int] = field(default_factory=dict)
    path: Path | None = None
    interrupted: bool = False


@dataclass(frozen=True)
class WaitingForLock:
    """Another run is timing on hardware that this one needs; sent once per holder."""

    holder: str
    """Process id, command and start of the run that holds the lock."""


@dataclass(frozen=True)
class RunPlanned:
    """The lock is held and the records on disk are read."""

    progress: RunProgress
    skipped: int
    run_id: str
    note: str | None = None
    """Decision of the plan for this machine, in words."""


@dataclass(frozen=True)
class MachineBusy:
    """Other processes keep the machine busy on which costs are about to be measured."""

    ratio: float
    """Share of the processors that they use."""
    progress: RunProgress


@dataclass(frozen=True)
class Preparing:
    """A model's first worker was started, which runs the equivalence check, and streams states that need a prefill."""

    model_name: str
    pid: int
    progress: RunProgress
    checks: bool = True
    """False where an earlier check holds."""


@dataclass(frozen=True)
class Streaming:
    """A prepare worker's streamed prefill has advanced."""

    model_name: str
    num_tokens: int
    total_tokens: int
    progress: RunProgress


@dataclass(frozen=True)
class GateChecked:
    """A model's equivalence check has ended, or an earlier one holds; if it failed, none of its cells is measured."""

    model_name: str
    gate: Gate
    progress: RunProgress


@dataclass(frozen=True)
class RoundStarted:
    """A round begins."""

    round: int
    num_rounds: int
    model_order: tuple[str, ...]
    progress: RunProgress


@dataclass(frozen=True)
class CellStarted:
    """The worker with process id `pid` has begun a cell."""

    cell: Cell
    round: int
    pid: int
    progress: RunProgress


@dataclass(frozen=True)
class CellAdvanced:
    """A cell that evaluates a model has advanced: the model has read this many tokens."""

    cell: Cell
    round: int
    num_tokens: int
    progress: RunProgress


@dataclass(frozen=True)
class CellDone:
    """A (cell, round) has its record on disk."""

    cell: Cell
    round: int
    status: Status
    error: str | None
    progress: RunProgress


@dataclass(frozen=True)
class WorkerEnded:
    """A worker's process ended too early or exceeded its time limit; the run continues."""

    model_name: str
    pid: int
    reason: str
    progress: RunProgress


@dataclass(frozen=True)
class RunFinished:
    """The last event of a run that was not ended by an error."""

    result: RunSummary
    progress: RunProgress


RunEvent = (
    WaitingForLock
    | RunPlanned
    | MachineBusy
    | Preparing
    | Streaming
    | GateChecked
    | RoundStarted
    | CellStarted
    | CellAdvanced
    | CellDone
    | WorkerEnded
    | RunFinished
)

Notify = Callable[[RunEvent], None]
"""Receives the events of a run."""
