"""The state of a run: which (cell, round) pairs are done, which are left, and the records that the runner writes."""

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retbench.planning.cells import Cell
from retbench.planning.plan import Plan
from retbench.records.record import Gate, Status, utc_now
from retbench.records.store import append_record, read_records
from retbench.running import events
from retbench.running.protocol import RunInfo
from retbench.running.recording import Outcome, Surroundings, make_record
from retbench.workloads.workload import find_workload

Pair = tuple[str, int]
"""A cell_id and a round."""


class CellTimes:
    """Durations of the measured cells, from which the time left is estimated."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._since = time.monotonic()

    def restart(self) -> None:
        """Start counting towards the next cell: the start of its worker is part of its cost."""
        self._since = time.monotonic()

    def note(self, cell_id: str) -> None:
        """Note that a cell has just ended."""
        now = time.monotonic()
        self._seconds.setdefault(cell_id, []).append(now - self._since)
        self._since = now

    def seconds_for(self, pairs: Iterable[Pair]) -> float | None:
        """Return the expected time of `pairs`, with the mean for cells not yet measured; None before any is."""
        if not self._seconds:
            return None
        means = {cell_id: sum(seen) / len(seen) for cell_id, seen in self._seconds.items()}
        typical = sum(means.values()) / len(means)
        return sum(means.get(cell_id, typical) for cell_id, _ in pairs)


class Ledger:
    """The (cell, round) pairs of a plan with their outcomes.

    Args:
        plan: The plan.
        run: Fields that all records of this run share.
        path: The run's own record file.
        done: Pairs that are on disk already, with their status.
        notify: Receives every change.
    """

    def __init__(
        self, plan: Plan, run: RunInfo, path: Path, done: Mapping[Pair, Status], notify: events.Notify
    ) -> None:
        self.plan = plan
        self.run = run
        self.path = path
        self.counts: dict[Status, int] = {}
        self.environment: dict[str, Any] = {}
        """The latest worker's; empty before any worker has started."""
        self.gates: dict[str, Gate] = {}
        self.notify = notify
        self.times = CellTimes()
        everything = {(cell.cell_id, number) for cell in plan.cells for number in range(plan.rounds_of(cell))}
        self.total = len(everything)
        self._pending = everything - done.keys()
        self.skipped = Counter(done[pair] for pair in everything & done.keys())

    @property
    def progress(self) -> events.RunProgress:
        """Progress of the run."""
        seconds_left = self.times.seconds_for(self._pending)
        return events.RunProgress(self.total - len(self._pending), self.total, seconds_left)

    def result(self, *, interrupted: bool) -> events.RunSummary:
        """Return the outcome of the run so far."""
        path = self.path if self.counts else None
        return events.RunSummary(dict(self.counts), dict(self.skipped), path, interrupted)

    def pending(self, label: str, round_number: int | None = None) -> list[Cell]:
        """Return a model's cells without a record in a round, or in any round, in the order of the plan."""
        rounds = range(self.plan.rounds) if round_number is None else (round_number,)
        return [
            cell
            for cell in self.plan.cells
            if cell.under_test.label == label
            and any((cell.cell_id, number) in self._pending for number in rounds)
        ]

    def cell_order(self, label: str, round_number: int) -> list[Cell]:
        """Return a model's pending cells in a round for one worker, shuffled by seed, round and model.

        Cells whose steps are compiled come after those that are not: in a process that has compiled something, a
        prompt of RetNet took a tenth longer. Cells that fill the memory come after all others, one per worker: each
        needs a process with unfragmented memory, and leaves one in which nothing must be timed.
        """
        cells = [cell for cell in self.plan.cells if cell.under_test.label == label]
        random.Random(f"{self.plan.profile.seed}/{round_number}/{label}").shuffle(cells)
        cells.sort(key=lambda cell: cell.settings.compile and find_workload(cell.workload).compiles)
        pending = [cell for cell in cells if (cell.cell_id, round_number) in self._pending]
        return [cell for cell in pending if not find_workload(cell.workload).finds_batch] or pending[:1]

    def model_order(self, round_number: int) -> list[str]:
        """Return the labels of models with pending cells in a round, shuffled by seed and round."""
        labels = [model.label for model in self.plan.models]
        random.Random(f"{self.plan.profile.seed}/{round_number}").shuffle(labels)
        return [label for label in labels if self.pending(label, round_number)]

    def mark_done(self, cell: Cell, round_number: int, status: Status, error: str | None) -> None:
        """Note that a (cell, round) has its record on disk."""
        self._pending.discard((cell.cell_id, round_number))
        self.times.note(cell.cell_id)
        self.counts[status] = self.counts.get(status, 0) + 1
        self.notify(events.CellDone(cell, round_number, status, error, self.progress))

    def note_written(self) -> None:
        """Note the records that workers have written and could not report any more."""
        cells = {cell.cell_id: cell for cell in self.plan.cells}
        records = read_records(self.path)[0] if self.path.exists() else ()
        for record in records:
            if (record.cell_id, record.round) in self._pending:
                self.mark_done(cells[record.cell_id], record.round, record.status, record.error)

    def write_failure(self, cell: Cell, round_number: int, status: Status, error: str) -> None:
        """Write the record that a (cell, round) has no measurement, with the reason.

        Raises:
            StorageError: the record could not be written.
        """
        surroundings = Surroundings(self.environment, self.gates.get(cell.under_test.label))
        outcome = Outcome(status, utc_now(), error)
        append_record(self.path, make_record(self.run, cell, round_number, outcome, surroundings))
        self.mark_done(cell, round_number, status, error)

    def write_all_rounds(self, cells: Iterable[Cell], status: Status, error: str) -> None:
        """Write the same failure for cells in each of their pending rounds."""
        for cell in cells:
            for number in range(self.plan.rounds):
                if (cell.cell_id, number) in self._pending:
                    self.write_failure(cell, number, status, error)

    def write_worker_exit(self, cell: Cell, round_number: int, status: Status, error: str) -> None:
        """Write the failure of the cell at which a worker ended, unless the cell's record was written before."""
        self.note_written()
        if (cell.cell_id, round_number) in self._pending:
            self.write_failure(cell, round_number, status, error)
