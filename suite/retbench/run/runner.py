"""Runs a plan: a prepare worker for each subject, then rounds of measuring workers, until all is recorded.

A worker that dies, hangs or runs out of memory costs the cell it was at, never the sweep. What is on the disk
already is skipped, so that the same command goes on where the last one stopped, whatever ended it.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue

from retbench import errors
from retbench.errors import RetbenchError
from retbench.files import check_writable
from retbench.measure import environment
from retbench.planning.cells import Cell
from retbench.planning.plan import Plan
from retbench.records.record import Gate
from retbench.run import events
from retbench.run.events import Observer, RunResult
from retbench.run.interrupts import Interrupted, catch_signals
from retbench.run.ledger import Ledger
from retbench.run.locks import timing_lock
from retbench.run.process import Death, Inbox, Interrupt, Worker
from retbench.run.protocol import (
    Advanced,
    Checked,
    Done,
    Failed,
    Hello,
    Job,
    Message,
    Refused,
    RunInfo,
    Started,
    Streamed,
    Task,
)
from retbench.run.recording import code_of_cell
from retbench.run.resume import finished_pairs, identities_here
from retbench.workloads.workload import find_workload

STATES_FOLDER = ".states"
_LOCK_POLL_S = 0.5


def run_plan(plan: Plan, out: Path, *, fresh: bool, observer: Observer) -> RunResult:
    """Measure everything in `plan` that is not on disk already.

    Records go to `<out>/<machine>/<experiment>/<run_id>.jsonl`, a file of this run alone. Only one run at a
    time measures on a machine: a second one waits, then skips what the first has measured.

    Args:
        plan: What to measure.
        out: Root of the results.
        fresh: Measure again what is on disk; nothing is deleted.
        observer: Told of everything that happens.

    Returns:
        What was measured; `interrupted` after SIGINT or SIGTERM, with all workers ended and every record
        kept.

    Raises:
        ConfigError: there is something to measure, and `out` cannot be written to.
        StorageError: a record could not be written; those before it are intact.
        RetbenchError: no worker can start, or one met an error that no other cell would escape.
    """
    inbox: Inbox = SimpleQueue()
    queue_up = _Waiting(inbox, observer)
    with catch_signals(lambda: inbox.put(Interrupt())):
        try:
            with timing_lock(plan.command, wait=queue_up):
                return _run_locked(plan, out, fresh, observer, inbox)
        except Interrupted:
            result = RunResult(interrupted=True)
            observer.notify(events.Finished(result, events.Progress(0, plan.num_measurements)))
            return result


class _Waiting:
    """What a run does while another one holds the lock."""

    def __init__(self, inbox: Inbox, observer: Observer) -> None:
        self._inbox = inbox
        self._observer = observer
        self._told = ""

    def __call__(self, holder: str) -> None:
        """Tell who holds the lock, once, and pause; Interrupted when told to stop."""
        if holder != self._told:
            self._told = holder
            self._observer.notify(events.WaitingForLock(holder))
        try:
            self._inbox.get(timeout=_LOCK_POLL_S)
        except Empty:
            return
        raise Interrupted


def _run_locked(plan: Plan, out: Path, fresh: bool, observer: Observer, inbox: Inbox) -> RunResult:
    """The run, once no other is measuring."""
    folder = out / environment.machine_name(plan.settings.device) / plan.experiment.name
    run = RunInfo(
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}",
        experiment=plan.experiment.name,
        profile=plan.profile_name,
        command=plan.command,
        code_revision=environment.code_revision(),
        codes={cell.cell_id: code_of_cell(cell) for cell in plan.cells},
    )
    done = {} if fresh else finished_pairs(folder, identities_here(plan.cells))
    ledger = Ledger(plan, run, folder / f"{run.run_id}.jsonl", done, observer)
    ledger.tell(events.Planned(ledger.progress, ledger.skipped.total(), run.run_id))
    if ledger.skipped.total() < ledger.total:
        check_writable(folder, "--out")
    states = folder / STATES_FOLDER
    interrupted = False
    try:
        _Sweep(plan, ledger, states, inbox).run()
    except Interrupted:
        interrupted = True
    else:
        shutil.rmtree(states, ignore_errors=True)
    result = ledger.result(interrupted=interrupted)
    ledger.tell(events.Finished(result, ledger.progress))
    return result


class _Sweep:
    """The workers of a run, one after the other."""

    def __init__(self, plan: Plan, ledger: Ledger, states: Path, inbox: Inbox) -> None:
        self._plan = plan
        self._ledger = ledger
        self._states = states
        self._inbox = inbox

    def run(self) -> None:
        """Prepare each subject, then measure round by round; Interrupted when told to stop."""
        ledger = self._ledger
        for subject in self._plan.subjects:
            while (left := ledger.pending(subject.label)) and not self._prepare(subject.label, left):
                pass
        for number in range(self._plan.rounds):
            order = ledger.subject_order(number)
            if order:
                ledger.tell(events.RoundStarted(number, self._plan.rounds, tuple(order), ledger.progress))
            for name in order:
                while left := ledger.visiting_order(name, number):
                    self._measure(name, number, left)

    @contextmanager
    def _worker(self, task: Task, todo: list[Cell], name: str, number: int = 0) -> Iterator[Worker]:
        """A worker with a job; none is left when the block ends."""
        job = Job(
            task=task,
            run=self._ledger.run,
            cells=tuple(todo),
            round=number,
            gate=self._ledger.gates.get(name),
            records_path=self._ledger.path.absolute(),
            states_dir=self._states.absolute(),
            data_dir=self._plan.data_dir,
            parent_pid=os.getpid(),
        )
        threads = self._plan.settings.threads
        with Worker(job, self._inbox, environment.worker_environment(threads)) as worker:
            yield worker

    def _prepare(self, name: str, todo: list[Cell]) -> bool:
        """Run the gate, stream the states; false where the worker died: on the states it streamed, or on all."""
        ledger = self._ledger
        streaming = False
        with self._worker("prepare", todo, name) as worker:
            ledger.tell(events.Preparing(name, worker.pid, ledger.progress))
            for message in worker.converse(self._plan.profile.timeout_s):
                match message:
                    case Checked(gate=gate):
                        self._take_gate(name, todo, gate)
                    case Streamed(num_tokens=done, total_tokens=total):
                        streaming = True
                        ledger.tell(events.Streaming(name, done, total, ledger.progress))
                    case Refused(cells=indices, status=status, error=error):
                        ledger.refuse([todo[index] for index in indices], status, error)
                    case Death(status=status, reason=reason):
                        self._take_death(name, worker.pid, reason)
                        blamed = [cell for cell in todo if _starts_from_state(cell) or not streaming]
                        if status == "oom" and not streaming:  # the gate holds more than any cell does
                            status, reason = "unsupported", f"before any cell of '{name}' was tried, {reason}"
                        ledger.refuse(blamed, status, reason)
                        return False
                    case _:
                        self._take(message)
        return True

    def _take_gate(self, name: str, todo: list[Cell], gate: Gate) -> None:
        """Note a gate; a red one means that nothing of the model is measured."""
        ledger = self._ledger
        ledger.gates[name] = gate
        ledger.tell(events.GateChecked(name, gate, ledger.progress))
        if not gate.passed:
            red = [
                f"{check.name} at {check.length} tokens: error {check.error:.3g}, limit {check.limit:.3g}"
                for check in gate.checks
                if not check.passed
            ]
            ledger.refuse(todo, "gate_failed", f"the forms of '{name}' disagree: {'; '.join(red)}")

    def _measure(self, name: str, number: int, todo: list[Cell]) -> None:
        """Have one worker measure as much of `todo` as it can; at least one cell gets its record."""
        ledger = self._ledger
        ledger.worker_starts()
        current: Cell | None = None
        left = len(todo)
        with self._worker("measure", todo, name, number) as worker:
            for message in worker.converse(self._plan.profile.timeout_s):
                match message:
                    case Started(index=index):
                        current = todo[index]
                        ledger.tell(events.CellStarted(current, number, worker.pid, ledger.progress))
                    case Advanced(num_tokens=done):
                        assert current is not None
                        ledger.tell(events.CellAdvanced(current, number, done, ledger.progress))
                    case Done(index=index, status=status, error=error):
                        ledger.settle(todo[index], number, status, error)
                        current, left = None, left - 1
                    case Refused(cells=indices, status=status, error=error):
                        for index in indices:
                            ledger.write(todo[index], number, status, error)
                            left -= 1
                    case Death(status=status, reason=reason):
                        self._take_death(name, worker.pid, reason)
                        blamed = [current] if current else todo if left == len(todo) else []
                        for cell in blamed:
                            ledger.blame(cell, number, status, reason)
                            left -= 1
                    case _:
                        self._take(message)
        if left == len(todo):
            raise RetbenchError(
                f"a worker of '{name}' ended without measuring anything and without saying why."
            )

    def _take_death(self, name: str, pid: int, reason: str) -> None:
        """Tell of a death; where no worker has ever come up, none will, and that ends the run."""
        if not self._ledger.environment:
            raise RetbenchError(f"no worker can start on this machine: {reason}")
        self._ledger.tell(events.WorkerDied(name, pid, reason, self._ledger.progress))

    def _take(self, message: Message | Death) -> None:
        """What any worker may say: hello, or an error of the whole run."""
        match message:
            case Hello(environment=facts):
                self._ledger.environment = facts
            case Failed(kind=kind, message=text):
                raise getattr(errors, kind)(text)


def _starts_from_state(cell: Cell) -> bool:
    return find_workload(cell.workload).starts_from_state
