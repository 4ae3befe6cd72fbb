"""Two revisions measured in one sitting: their workers live side by side and take turns cell by cell.

What a machine does from one second to the next falls on both, and what a process brings with it, such as where its
memory lies, is new in every round. So a round is a pair, and what its sides differ by in round after round is the code.
"""

import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from retbench import errors
from retbench.errors import ConfigError, GateError, NotComparableError, RetbenchError, StorageError
from retbench.measure.environment import worker_environment
from retbench.planning.cells import Cell, Subject
from retbench.planning.plan import Plan
from retbench.records.record import Gate
from retbench.regress.compare import hard_differences
from retbench.regress.facts import Difference
from retbench.regress.items import Pair, Place, Times, combine_visits
from retbench.regress.rendering_report import Missing
from retbench.regress.revisions import Revision, Talk
from retbench.regress.seats import Seat, run_info
from retbench.run.process import Interrupt, Worker, WorkerExit
from retbench.run.protocol import (
    Checked,
    Done,
    Ended,
    Failed,
    Job,
    MeasureCell,
    Message,
    Ready,
    Refused,
    Task,
)
from retbench.units import format_duration

VISITS = 10
"""On two idle cores of a shared machine (tests/comparing/aa_rounds.jsonl.gz) the log-ratios of the decode curves, the
median of so many visits, scattered by 0.015 and 0.014; of the first three alone by 0.028 and 0.037."""
SEATS = ("first", "second")
"""The base, and the head."""

Conversation = Iterator[Message | WorkerExit]


@dataclass(frozen=True)
class Limits:
    """How much is measured.

    Attributes:
        visits: Times that each cell is measured on both sides within a round.
        budget_s: Seconds after which no round is begun.

    Raises:
        ConfigError: there is no visit, or no time.
    """

    visits: int = VISITS
    budget_s: float = math.inf

    def __post_init__(self) -> None:
        if self.visits < 1:
            raise ConfigError(f"{self.visits} visits a round: give 1 or more.")
        if not self.budget_s > 0:
            raise ConfigError(f"a budget of {self.budget_s:g} s: give a positive time.")


class Unlike(Exception):  # noqa: N818 - an outcome, not an error
    """The two sides do not measure the same thing."""

    def __init__(self, differences: Sequence[Difference]) -> None:
        super().__init__(f"{len(differences)} facts differ")
        self.differences = tuple(differences)


class Sitting:
    """A source of rounds of two revisions; see `comparing.sampling.Source`.

    Args:
        plan: What is measured, on both sides alike.
        revisions: The base and the head.
        folder: Where records are kept.
        limits: Visits of each cell in a round, and seconds after which no round is begun.
        talk: Told of each round.
    """

    def __init__(
        self, plan: Plan, revisions: tuple[Revision, Revision], folder: Path, limits: Limits, talk: Talk
    ) -> None:
        self._plan = plan
        self._num_visits = limits.visits
        self._talk = talk
        self._begun = time.monotonic()
        self._budget_s = limits.budget_s
        self._round = 0
        self._random = random.Random(plan.settings.seed)
        self.seats = tuple(
            Seat(revision, run_info(plan, revision, folder.name), folder / name)
            for name, revision in zip(("base", "head"), revisions, strict=True)
        )

    def interrupt(self) -> None:
        """Have the sitting stop at what it waits for; safe inside a signal handler."""
        for seat in self.seats:
            seat.inbox.put(Interrupt())

    def tidy(self) -> None:
        """Remove the streamed states; records are kept."""
        for seat in self.seats:
            shutil.rmtree(seat.states, ignore_errors=True)

    @property
    def places(self) -> list[Place]:
        """Everything that is measured."""
        return [self._place(cell) for cell in self._plan.cells]

    def has_budget(self) -> bool:
        """Whether another round may be begun."""
        return time.monotonic() - self._begun < self._budget_s

    def prepare(self) -> None:
        """Run the gates of both sides and stream their states. The time that there is begins here.

        Raises:
            GateError: the forms of a model disagree on the head.
            NotComparableError: the base cannot be prepared, so that there is nothing to hold the head against.
            StorageError: something could not be stored.
            RetbenchError: a worker of the head died.
        """
        self._begun = time.monotonic()
        for seat in self.seats:
            for subject in self._plan.subjects:
                self._talk(f"{seat.revision.name}: equality checks of {subject.label}")
                try:
                    self._prepare(seat, subject)
                except StorageError:
                    raise
                except RetbenchError as error:
                    if seat is not self.seats[0]:
                        raise
                    raise NotComparableError(f"The base cannot be measured. {error}") from error

    def _prepare(self, seat: Seat, subject: Subject) -> None:
        """The gate and the states of one subject on one side."""
        todo = self._cells_of(subject)
        with self._worker(seat, "prepare", todo) as worker:
            for message in worker.messages(self._plan.profile.timeout_s):
                match message:
                    case Checked(gate=gate):
                        seat.gates[subject.label] = gate
                        _check_gate(seat, subject, gate)
                    case Refused(cells=indices, error=error):
                        seat.failed |= {self._place(todo[index]): error for index in indices}
                    case WorkerExit(reason=reason):
                        raise RetbenchError(
                            f"{seat.revision.name}: {subject.label} could not be prepared: {reason}"
                        )
                    case _:
                        _raise_failure(message)

    def measure(self, places: frozenset[Place]) -> Times:
        """One more round, as `visit` makes it; its visits come to one pair a place."""
        return {place: combine_visits(pairs) for place, pairs in self.visit(places).items()}

    def visit(self, places: frozenset[Place]) -> dict[Place, list[Pair]]:
        """One more round: each subject with a new worker on each side, each cell on both sides in turn, several times.

        Raises:
            Unlike: the first round shows that the sides do not measure the same thing.
        """
        number, self._round = self._round, self._round + 1
        since = time.monotonic()
        subjects = list(self._plan.subjects)
        self._random.shuffle(subjects)
        for subject in subjects:
            while todo := [cell for cell in self._cells_of(subject) if self._is_wanted(cell, places)]:
                if self._take_turns(todo, number):
                    break
        if number == 0 and (differences := hard_differences(*(seat.records() for seat in self.seats))):
            raise Unlike(differences)
        took, spent = time.monotonic() - since, time.monotonic() - self._begun
        self._talk(f"round {number + 1}: {len(places)} points, {took:.1f} s; {format_duration(spent)} in all")
        return self._visits(number)

    def missing(self) -> list[Missing]:
        """Places that failed on one side alone."""
        first, second = (seat.failed for seat in self.seats)
        found = [
            Missing(place, SEATS[1], reason, "broken")
            for place, reason in second.items()
            if place not in first
        ]
        found += [
            Missing(place, SEATS[0], reason, "fixed")
            for place, reason in first.items()
            if place not in second
        ]
        return sorted(found, key=lambda one: one.place)

    def failed_on_both(self) -> list[Place]:
        """Places that neither side can measure."""
        first, second = (seat.failed.keys() for seat in self.seats)
        return sorted(first & second)

    def _is_wanted(self, cell: Cell, places: frozenset[Place]) -> bool:
        """Whether a cell is to be measured in a round: one that has failed is not tried again."""
        place = self._place(cell)
        return place in places and not any(place in seat.failed for seat in self.seats)

    def _cells_of(self, subject: Subject) -> list[Cell]:
        return [cell for cell in self._plan.cells if cell.subject.label == subject.label]

    def _place(self, cell: Cell) -> Place:
        point = cell.point
        return Place(
            self._plan.experiment.name, cell.workload, cell.model_name, point.batch_size, point.context_len
        )

    def _worker(self, seat: Seat, task: Task, todo: Sequence[Cell]) -> Worker:
        """A worker of a side."""
        job = Job(
            task=task,
            run=seat.run,
            cells=tuple(todo),
            gate=seat.gates.get(todo[0].subject.label),
            records_path=seat.records_path.absolute(),
            states_dir=seat.states.absolute(),
            data_dir=self._plan.data_dir,
            parent_pid=os.getpid(),
        )
        variables = {**worker_environment(self._plan.settings.threads), **seat.revision.variables}
        return Worker(job, seat.inbox, variables, seat.revision.python)

    def _take_turns(self, todo: list[Cell], number: int) -> bool:
        """Both sides' workers of one subject, each cell on both in random order.

        What fails on one side is tried on the other all the same: what fails on both is not the fault of either.

        Returns:
            Whether that was done; where a cell has failed, which is not tried again, the others want new workers.
        """
        seats = self._random.sample(self.seats, len(self.seats))
        with ExitStack() as stack:
            workers = [stack.enter_context(self._worker(seat, "serve", todo)) for seat in seats]
            talks = [worker.messages(self._plan.profile.timeout_s) for worker in workers]
            ready = [self._hear(seat, talk, todo, None) for seat, talk in zip(seats, talks, strict=True)]
            if not all(ready):
                return False
            order = self._random.sample(range(len(seats)), len(seats))
            for _ in range(self._num_visits):
                for index in self._random.sample(range(len(todo)), len(todo)):
                    done = []
                    for turn in order:
                        workers[turn].send(MeasureCell(index=index, round=number))
                        done.append(self._hear(seats[turn], talks[turn], todo, index))
                    if not all(done):
                        return False
                order.reverse()  # so that what drifts falls on both sides alike
        return True

    def _hear(self, seat: Seat, talk: Conversation, todo: Sequence[Cell], index: int | None) -> bool:
        """Listen until a worker has done what it was asked to; False where it has left, or its cell failed.

        Args:
            seat: The worker's side.
            talk: Its messages.
            todo: The cells of its job.
            index: The cell that it was asked to measure; None while it is being set up.
        """
        blamed = list(todo) if index is None else [todo[index]]
        for message in talk:
            match message:
                case Ready():
                    return True
                case Done(status="ok"):
                    return True
                case Done(status=status, error=error) | Refused(status=status, error=error):
                    reason = f"{status} ({error or 'no reason was given'})"
                case WorkerExit(status=status, reason=why):
                    reason = f"{status} ({why})"
                case Ended():
                    reason = "failed (the worker left without a word)"
                case _:
                    _raise_failure(message)
                    continue
            seat.failed |= {self._place(cell): reason for cell in blamed}
            return False
        return False

    def _visits(self, number: int) -> dict[Place, list[Pair]]:
        """What each visit of a round gave, of the places that have failed on neither side."""
        first, second = (seat.values(number) for seat in self.seats)
        failed = self.seats[0].failed.keys() | self.seats[1].failed.keys()
        return {
            place: list(zip(first[place], second[place], strict=True))
            for place in (first.keys() & second.keys()) - failed
        }


def _check_gate(seat: Seat, subject: Subject, gate: Gate) -> None:
    """GateError where the forms of a model disagree: no time may be reported of it."""
    red = [
        f"{check.name} at {check.length} tokens: {check.error:.3g}"
        for check in gate.checks
        if not check.passed
    ]
    if red:
        raise GateError(f"{seat.revision.name}: the forms of {subject.label} disagree: {'; '.join(red)}.")


def _raise_failure(message: Message | WorkerExit) -> None:
    """The error that a worker met and no other would escape."""
    if isinstance(message, Failed):
        raise getattr(errors, message.kind)(message.message)
