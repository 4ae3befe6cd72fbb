"""What of a plan is done, what is left, how long it should take, and the records that the runner writes."""

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retbench.planning.cells import Cell
from retbench.planning.plan import Plan
from retbench.records.record import Gate, Status, append_record, utc_now
from retbench.run import events, resume
from retbench.run.protocol import RunInfo
from retbench.run.recording import Outcome, Surroundings, make_record
from retbench.workloads.workload import find_workload

Pair = tuple[str, int]
"""A cell_id and a round."""


class Pace:
    """How long cells take, from those seen, each weighed with what is left of it."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._since = time.monotonic()

    def restart(self) -> None:
        """From here on time counts towards the next cell: its worker's start is part of its cost."""
        self._since = time.monotonic()

    def note(self, cell_id: str) -> None:
        """A cell has just ended."""
        now = time.monotonic()
        self._seconds.setdefault(cell_id, []).append(now - self._since)
        self._since = now

    def seconds_for(self, pairs: Iterable[Pair]) -> float | None:
        """Expected time of `pairs`, a cell not seen yet taken as the mean of those seen; None before any."""
        if not self._seconds:
            return None
        means = {cell_id: sum(seen) / len(seen) for cell_id, seen in self._seconds.items()}
        typical = sum(means.values()) / len(means)
        return sum(means.get(cell_id, typical) for cell_id, _ in pairs)


class Ledger:
    """The (cell, round) pairs of a plan, and everything that befalls them.

    Args:
        plan: The plan.
        run: What records say about this run.
        path: The run's own record file.
        done: Pairs that are on disk already, with their status.
        observer: Told of every change.
    """

    def __init__(
        self, plan: Plan, run: RunInfo, path: Path, done: Mapping[Pair, Status], observer: events.Observer
    ) -> None:
        self.plan = plan
        self.run = run
        self.path = path
        self.counts: dict[Status, int] = {}
        self.environment: dict[str, Any] = {}
        """Of the latest worker that said hello."""
        self.gates: dict[str, Gate] = {}
        self._observer = observer
        self._pace = Pace()
        everything = {(cell.cell_id, number) for cell in plan.cells for number in range(plan.rounds_of(cell))}
        self.total = len(everything)
        self._pending = everything - done.keys()
        self.skipped = Counter(done[pair] for pair in everything & done.keys())

    @property
    def progress(self) -> events.Progress:
        """How far the run is."""
        return events.Progress(
            self.total - len(self._pending), self.total, self._pace.seconds_for(self._pending)
        )

    def result(self, *, interrupted: bool) -> events.RunResult:
        """What the run has come to so far."""
        path = self.path if self.counts else None
        return events.RunResult(dict(self.counts), dict(self.skipped), path, interrupted)

    def tell(self, event: events.Event) -> None:
        """Pass an event on."""
        self._observer.notify(event)

    def worker_starts(self) -> None:
        """A worker that will measure cells is being started."""
        self._pace.restart()

    def pending(self, label: str, round_number: int | None = None) -> list[Cell]:
        """Cells of a subject that still want a record in a round, or in any round; in the order of the plan."""
        rounds = range(self.plan.rounds) if round_number is None else (round_number,)
        return [
            cell
            for cell in self.plan.cells
            if cell.subject.label == label
            and any((cell.cell_id, number) in self._pending for number in rounds)
        ]

    def visiting_order(self, label: str, round_number: int) -> list[Cell]:
        """The pending cells of a subject in a round for one worker, shuffled by seed, round and subject.

        Cells that fill the memory come when the others are done, one at a time: each needs a process whose memory
        nothing has split up, and leaves one in which nothing should be timed.
        """
        cells = [cell for cell in self.plan.cells if cell.subject.label == label]
        random.Random(f"{self.plan.profile.seed}/{round_number}/{label}").shuffle(cells)
        pending = [cell for cell in cells if (cell.cell_id, round_number) in self._pending]
        return [cell for cell in pending if not find_workload(cell.workload).finds_batch] or pending[:1]

    def subject_order(self, round_number: int) -> list[str]:
        """The labels of subjects that have something left in a round, shuffled by seed and round."""
        labels = [subject.label for subject in self.plan.subjects]
        random.Random(f"{self.plan.profile.seed}/{round_number}").shuffle(labels)
        return [label for label in labels if self.pending(label, round_number)]

    def settle(self, cell: Cell, round_number: int, status: Status, error: str | None) -> None:
        """A (cell, round) has its record on disk."""
        self._pending.discard((cell.cell_id, round_number))
        self._pace.note(cell.cell_id)
        self.counts[status] = self.counts.get(status, 0) + 1
        self.tell(events.CellDone(cell, round_number, status, error, self.progress))

    def write(self, cell: Cell, round_number: int, status: Status, error: str) -> None:
        """Record that a (cell, round) has no measurement, and why.

        Raises:
            StorageError: the record could not be written.
        """
        surroundings = Surroundings(self.environment, self.gates.get(cell.subject.label))
        outcome = Outcome(status, utc_now(), error)
        append_record(self.path, make_record(self.run, cell, round_number, outcome, surroundings))
        self.settle(cell, round_number, status, error)

    def refuse(self, cells: Iterable[Cell], status: Status, error: str) -> None:
        """Record the same for cells in every round that is left of them."""
        for cell in cells:
            for number in range(self.plan.rounds):
                if (cell.cell_id, number) in self._pending:
                    self.write(cell, number, status, error)

    def blame(self, cell: Cell, round_number: int, status: Status, error: str) -> None:
        """The worker died on a cell: record that, unless the cell's record had reached the disk before."""
        written = resume.recorded_status(self.path, cell.cell_id, round_number)
        if written is None:
            self.write(cell, round_number, status, error)
        else:
            self.settle(cell, round_number, written, None)
