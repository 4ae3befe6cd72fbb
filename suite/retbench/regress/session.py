"""Interleaved measurement sessions: the workers of two revisions alternate cell by cell.

A disturbance of the machine affects both sides alike, and both sides get new processes in each round, so that effects
such as memory placement average out. The rounds are pairs, and their consistent difference is that of the code.
"""

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from retbench.errors import ConfigError, NotComparableError, RetbenchError, StorageError
from retbench.planning.cells import Cell, ModelUnderTest
from retbench.planning.plan import Plan
from retbench.records.record import Ceilings, Gate, Record
from retbench.records.store import parse_record
from retbench.regress.comparability import FactDifference, key_differences
from retbench.regress.items import MeasurementPoint, Pair, Times, combine_blocks
from retbench.regress.record_sets import point_of, value_of
from retbench.regress.report import SIDES, Gap, MissingPoint
from retbench.regress.revisions import Notify, Revision
from retbench.running import protocol
from retbench.running.process import Inbox, Interrupt, Worker, WorkerExit, start_worker
from retbench.stats.sequential import plan_analyses
from retbench.units import format_duration

Messages = Iterator[protocol.Message | WorkerExit]


@dataclass(frozen=True)
class RoundLimits:
    """Limits of the rounds of two sides.

    Attributes:
        max_rounds: Maximum number of rounds, without repeats of flagged items.
        budget_s: Seconds after which no round begins but repeats of flagged items.
    """

    max_rounds: int
    budget_s: float = 1200.0

    def __post_init__(self) -> None:
        plan_analyses(self.max_rounds)
        if not self.budget_s > 0:
            raise ConfigError(f"a budget of {self.budget_s / 60:g} minutes: give a positive time.")


@dataclass(frozen=True)
class SessionLimits(RoundLimits):
    """Limits of a session.

    On two idle cores of a shared machine (tests/stats/aa_rounds.jsonl.gz) the log-ratios of the decode curves had
    standard deviations of 0.015 and 0.014 with 10 blocks per round, and 0.028 and 0.037 with the first three alone.

    Attributes:
        blocks: Sample blocks per cell and side within a round.
    """

    max_rounds: int = 20
    blocks: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 1:
            raise ConfigError(f"{self.blocks} sample blocks per round: give 1 or more.")


class DifferentWork(Exception):  # noqa: N818 - an outcome, not an error
    """The two sides do not measure the same thing."""

    def __init__(self, differences: Sequence[FactDifference]) -> None:
        super().__init__(f"{len(differences)} facts differ")
        self.differences = tuple(differences)


@dataclass
class SessionSide:
    """One side of a session: its code, and what its workers stored and reported.

    `gates` are the results of the equivalence checks by the label of the model. `failed` are the points that cannot be
    measured any more, with the reasons. `ceilings` are the best that its workers have found.
    """

    revision: Revision
    folder: Path
    inbox: Inbox = field(default_factory=SimpleQueue)
    gates: dict[str, Gate] = field(default_factory=dict)
    failed: dict[MeasurementPoint, str] = field(default_factory=dict)
    ceilings: Ceilings | None = None
    _records: list[Record] = field(default_factory=list)
    _num_bytes_read: int = 0

    @property
    def records_path(self) -> Path:
        """Its record file."""
        return self.folder / "records.jsonl"

    @property
    def states(self) -> Path:
        """The folder of its streamed states."""
        return self.folder / "states"

    def records(self) -> list[Record]:
        """Return everything measured so far; only new lines of the file are read."""
        if self.records_path.exists():
            with open(self.records_path, "rb") as file:
                file.seek(self._num_bytes_read)
                lines = file.read()
            self._num_bytes_read += len(lines)
            # A worker that died may have left half a line; its cell has failed already.
            complete = (line for line in lines.splitlines() if line.rstrip().endswith(b"}"))
            self._records += map(parse_record, complete)
        return self._records

    def values(self, number: int) -> dict[MeasurementPoint, list[float]]:
        """Return the values of a round, one per sample block."""
        found: dict[MeasurementPoint, list[float]] = {}
        for record in self.records():
            if record.round == number and record.status == "ok":
                found.setdefault(point_of(record), []).append(value_of(record))
        return found


class InterleavedSession:
    """A source of rounds of two revisions, base and head, whose records are kept in a folder."""

    def __init__(
        self,
        plan: Plan,
        revisions: tuple[Revision, Revision],
        folder: Path,
        limits: SessionLimits,
        notify: Notify,
    ) -> None:
        self._plan = plan
        self._limits = limits
        self._notify = notify
        self._begun = time.monotonic()
        self._round = 0
        self._products: dict[str, int] = {}
        self._random = random.Random(plan.settings.seed)
        self.sides = tuple(
            SessionSide(revision, folder / name)
            for name, revision in zip(("base", "head"), revisions, strict=True)
        )

    def interrupt(self) -> None:
        """Stop the session at the next message; safe inside a signal handler."""
        for side in self.sides:
            side.inbox.put(Interrupt())

    def remove_states(self) -> None:
        """Remove the streamed states; records are kept."""
        for side in self.sides:
            shutil.rmtree(side.states, ignore_errors=True)

    @property
    def points(self) -> list[MeasurementPoint]:
        """Everything that is measured."""
        return [self._point(cell) for cell in self._plan.cells]

    def has_budget(self) -> bool:
        """Return whether another round may begin."""
        return time.monotonic() - self._begun < self._limits.budget_s

    def prepare(self) -> None:
        """Run the equivalence checks of both sides and stream their states; the budget begins here.

        A model whose execution modes are not equivalent on the head has no points that can be measured.
        NotComparableError means that the base cannot be prepared, RetbenchError that the head cannot.
        """
        self._begun = time.monotonic()
        for side in self.sides:
            for model in self._plan.models:
                self._notify(f"{side.revision.name}: equivalence checks of {model.label}")
                try:
                    self._prepare(side, model)
                except StorageError:
                    raise
                except RetbenchError as error:
                    if side is not self.sides[0]:
                        raise
                    raise NotComparableError(f"The base cannot be measured. {error}") from error

    def _prepare(self, side: SessionSide, model: ModelUnderTest) -> None:
        """Run the equivalence check and stream the states of one model on one side."""
        todo = self._cells_of(model)
        with self._worker(side, "prepare", todo) as worker:
            for message in worker.messages(self._plan.profile.timeout_s):
                match message:
                    case protocol.Checked(gate=gate, products=found):
                        self._products |= found
                        side.gates[model.label] = gate
                        if not gate.passed:
                            self._refuse(side, model, gate)
                    case protocol.Refused(cells=indices, error=error):
                        side.failed |= {self._point(todo[index]): error for index in indices}
                    case WorkerExit(reason=reason):
                        raise RetbenchError(
                            f"{side.revision.name}: {model.label} could not be prepared: {reason}"
                        )
                    case _:
                        _raise_failure(message)

    def _refuse(self, side: SessionSide, model: ModelUnderTest, gate: Gate) -> None:
        """Keep the points of a model of the head from being timed, because its equivalence check failed.

        Raises:
            NotComparableError: it is a model of the base, so that there is nothing to compare with.
        """
        reason = f"the execution modes of {model.label} are not equivalent"
        if side is self.sides[0]:
            raise NotComparableError(f"{side.revision.name}: {reason}: {gate.failures}.")
        points = map(self._point, self._cells_of(model))
        side.failed |= dict.fromkeys(points, f"gate_failed ({reason})")

    def measure(self, points: frozenset[MeasurementPoint]) -> Times:
        """Measure one more round of these points and return one pair per point."""
        return {point: combine_blocks(pairs) for point, pairs in self.measure_blocks(points).items()}

    def measure_blocks(self, points: frozenset[MeasurementPoint]) -> dict[MeasurementPoint, list[Pair]]:
        """Measure one more round with new workers and return one pair per sample block.

        The first round raises DifferentWork where the sides do not measure the same thing.
        """
        number, self._round = self._round, self._round + 1
        since = time.monotonic()
        models = list(self._plan.models)
        self._random.shuffle(models)
        for model in models:
            is_short = True
            while is_short:  # a failed cell is not tried again, and the others need new workers
                left = points - self.sides[0].failed.keys() - self.sides[1].failed.keys()
                todo = [cell for cell in self._cells_of(model) if self._point(cell) in left]
                is_short = bool(todo) and not self._alternate(todo, number)
        if number == 0 and (differences := key_differences(*(side.records() for side in self.sides))):
            raise DifferentWork(differences)
        took, spent = time.monotonic() - since, time.monotonic() - self._begun
        self._notify(
            f"round {number + 1}: {len(points)} points, {took:.1f} s; {format_duration(spent)} in all"
        )
        first, second = (side.values(number) for side in self.sides)
        failed = self.sides[0].failed.keys() | self.sides[1].failed.keys()
        return {
            point: list(zip(first[point], second[point], strict=True))
            for point in (first.keys() & second.keys()) - failed
        }

    def failed_checks(self) -> tuple[str, ...]:
        """Return a sentence on each failed equivalence check of the head, with the comparisons that failed."""
        return tuple(
            f"the equivalence check of {label} failed: {gate.failures}"
            for label, gate in self.sides[1].gates.items()
            if not gate.passed
        )

    @property
    def is_broken(self) -> bool:
        """True if a point failed on the head alone, which fixes the exit code."""
        return any(one.kind == "broken" for one in self.missing())

    def missing(self) -> list[MissingPoint]:
        """Return the points that failed, on one side or on both."""
        first, second = (side.failed for side in self.sides)
        found = []
        for point in sorted({*first, *second}):
            gap: Gap = "fixed" if point not in second else "broken" if point not in first else "both"
            found.append(MissingPoint(point, SIDES[gap], second.get(point) or first[point], gap))
        return found

    def _cells_of(self, model: ModelUnderTest) -> list[Cell]:
        return [cell for cell in self._plan.cells if cell.under_test.label == model.label]

    def _point(self, cell: Cell) -> MeasurementPoint:
        point = cell.point
        return MeasurementPoint(
            self._plan.experiment.name, cell.workload, cell.model_name, point.batch_size, point.context_len
        )

    def _worker(self, side: SessionSide, task: protocol.Task, todo: Sequence[Cell]) -> Worker:
        return start_worker(
            self._plan,
            task,
            todo,
            protocol.RunInfo.of(self._plan, side.folder.parent.name, side.revision.code),
            side.inbox,
            records_path=side.records_path,
            states_dir=side.states,
            gate=side.gates.get(todo[0].under_test.label),
            products=self._products,
            ceilings=side.ceilings,
            variables=side.revision.variables,
            python=side.revision.python,
        )

    def _alternate(self, todo: list[Cell], number: int) -> bool:
        """Measure each cell of one model on both sides in turn, in random order.

        A cell that fails on one side is tried on the other as well: a failure on both is not due to the change.

        Returns:
            False where a cell failed, which is not tried again: the other cells need new workers.
        """
        sides = self._random.sample(self.sides, len(self.sides))
        with ExitStack() as stack:
            workers = [stack.enter_context(self._worker(side, "serve", todo)) for side in sides]
            streams = [worker.messages(self._plan.profile.timeout_s) for worker in workers]
            ready = [
                self._await(side, stream, todo, None) for side, stream in zip(sides, streams, strict=True)
            ]
            if not all(ready):
                return False
            order = self._random.sample(range(len(sides)), len(sides))
            for _ in range(self._limits.blocks):
                for index in self._random.sample(range(len(todo)), len(todo)):
                    done = []
                    for turn in order:
                        workers[turn].send(protocol.MeasureCell(index=index, round=number))
                        done.append(self._await(sides[turn], streams[turn], todo, index))
                    if not all(done):
                        return False
                order.reverse()  # so that drift affects both sides alike
        return True

    def _await(self, side: SessionSide, messages: Messages, todo: Sequence[Cell], index: int | None) -> bool:
        """Wait until a worker has finished the cell with this index, or its set-up; False where that failed."""
        affected = list(todo) if index is None else [todo[index]]
        for message in messages:
            match message:
                case protocol.Ready() | protocol.Done(status="ok"):
                    return True
                case protocol.Measured(ceilings=ceilings):
                    side.ceilings = ceilings
                    continue
                case protocol.Done(status=status, error=error) | protocol.Refused(status=status, error=error):
                    reason = f"{status} ({error or 'no reason was given'})"
                case WorkerExit(status=status, reason=why):
                    reason = f"{status} ({why})"
                case protocol.Ended():
                    reason = "failed (the worker ended without a message)"
                case _:
                    _raise_failure(message)
                    continue
            side.failed |= {self._point(cell): reason for cell in affected}
            return False
        return False


def _raise_failure(message: protocol.Message | WorkerExit) -> None:
    """Raise the error that ended a worker, if the message reports one."""
    if isinstance(message, protocol.Failed):
        raise message.error()
