"""Carry out a plan: a prepare worker per model, then rounds of measuring workers, until all is recorded.

A model of which only quality is left to evaluate has no prepare worker: the measuring worker checks it first. Nor has
a model that needs no preparation, since a check on disk holds.

A worker that crashes, hangs or runs out of memory costs the cell it was measuring, never the run. Cells with a
record on disk are skipped, so that the same command continues where the last one stopped.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import SimpleQueue

from retbench.errors import RetbenchError
from retbench.files import check_writable, own_path
from retbench.measure import environment, machine, source
from retbench.planning.cells import Cell
from retbench.planning.plan import Plan
from retbench.records.record import Ceilings, Gate, Status
from retbench.records.store import new_run_id
from retbench.running import events
from retbench.running.events import Notify, RunSummary
from retbench.running.gates import gates_on_disk
from retbench.running.ledger import Ledger
from retbench.running.locks import Interrupted, catch_signals, timing_lock
from retbench.running.process import Inbox, Interrupt, Worker, WorkerExit, start_worker, wait_or_stop
from retbench.running.protocol import (
    Advanced,
    Checked,
    Done,
    Failed,
    Hello,
    Measured,
    Message,
    Refused,
    RunInfo,
    Started,
    Streamed,
    Task,
)
from retbench.running.recording import code_of_cell, without_trial
from retbench.running.resume import finished_pairs, identities_here, products_on_disk, trials_code_here
from retbench.running.scratch import FreshRuns, remove_leftovers, scratch_folder
from retbench.workloads.workload import find_workload, is_cost


def run_plan(plan: Plan, out: Path, *, fresh: bool, notify: Notify) -> RunSummary:
    """Measure everything in `plan` that is not on disk already.

    Records go to `<out>/<machine>/<experiment>/<run_id>.jsonl`, a file of this run alone. Only one run at a time
    measures on a GPU, or on a core: a second one waits, then skips the pairs that the first one has measured. One that
    has nothing to measure does not wait.

    Args:
        plan: The cells to measure.
        out: Root of the results.
        fresh: Measure pairs again that are on disk; nothing is deleted. After an interruption the same call goes on.
        notify: Receives all events.

    Returns:
        Counts of the records; `interrupted` after a stop signal, with all workers ended and every record kept.

    Raises:
        ConfigError: there is something to measure, and `out`, or the folder of compiled code, cannot be written to.
        StorageError: a record could not be written; those before it are intact.
        RetbenchError: no worker can start, or one met an error that every other cell would meet.
    """
    inbox: Inbox = SimpleQueue()
    with catch_signals(lambda: inbox.put(Interrupt())):
        try:
            wait = wait_or_stop(inbox, lambda holder: notify(events.WaitingForLock(holder)))
            device, threads = plan.settings.device, plan.settings.threads
            if count_on_disk(plan, out, fresh=fresh) == plan.num_measurements:
                return _carry_out(plan, out, fresh, notify, inbox)
            check_writable(folder_of(plan, out), "--out")  # before another run is waited for
            if plan.settings.compile:
                environment.check_compiled_code()
            with timing_lock(plan.command, device, wait=wait, threads=threads):
                return _carry_out(plan, out, fresh, notify, inbox)
        except Interrupted:
            result = RunSummary(interrupted=True)
            notify(events.RunFinished(result, events.RunProgress(0, plan.num_measurements)))
            return result


def folder_of(plan: Plan, out: Path) -> Path:
    """Return the folder of a plan's records."""
    return own_path(out, environment.machine_name(plan.settings.device), plan.experiment.name)


def count_on_disk(plan: Plan, out: Path, *, fresh: bool) -> int:
    """Return how many of a plan's measurements are on disk, and would not be taken again."""
    folder = folder_of(plan, out)
    runs = FreshRuns(folder, plan).read() if fresh else None
    done = finished_pairs(folder, plan.cells, identities_here(plan.cells), runs)
    return sum(
        (cell.cell_id, number) in done for cell in plan.cells for number in range(plan.rounds_of(cell))
    )


def _carry_out(plan: Plan, out: Path, fresh: bool, notify: Notify, inbox: Inbox) -> RunSummary:
    """Measure what is left of the plan; if anything is, the caller holds the lock."""
    folder = folder_of(plan, out)
    run = RunInfo.of(plan, new_run_id(), environment.code_revision())
    codes = {cell.cell_id: code_of_cell(cell) for cell in plan.cells}
    trials_code = trials_code_here()
    num_rounds = {cell.cell_id: plan.rounds_of(cell) for cell in plan.cells}
    run = run.model_copy(
        update={
            "codes": codes,
            "num_rounds": num_rounds,
            "trials_code": trials_code,
            "source": source.found_hashes(),
        }
    )
    fresh_runs = FreshRuns(folder, plan)
    identities = identities_here(plan.cells)
    done = finished_pairs(folder, plan.cells, identities, fresh_runs.read() if fresh else None)
    ledger = Ledger(plan, run, folder / f"{run.run_id}.jsonl", done, notify)
    ledger.notify(events.RunPlanned(ledger.progress, ledger.skipped.total(), run.run_id, plan.note))
    interrupted = False
    if ledger.skipped.total() == ledger.total:
        remove_leftovers(folder)
    else:
        if fresh:
            fresh_runs.add(run.run_id)
        costs = any(is_cost(cell.workload) for model in plan.models for cell in ledger.pending(model.label))
        if costs and (busy := machine.busy_ratio()) > machine.BUSY_RATIO:
            ledger.notify(events.MachineBusy(busy, ledger.progress))
        try:
            with scratch_folder(folder, run.run_id) as states:
                gates = {} if fresh else gates_on_disk(folder.parent, plan.cells, identities)
                products = products_on_disk(folder.parent, identities, trials_code)
                _Sweep(plan, ledger, states, inbox, products).run(gates)
        except Interrupted:
            interrupted = True
            ledger.note_written()
    if not interrupted:
        fresh_runs.end()
    result = ledger.result(interrupted=interrupted)
    ledger.notify(events.RunFinished(result, ledger.progress))
    return result


class _Sweep:
    """Starts the workers of a run, one after the other, and records their messages."""

    def __init__(
        self, plan: Plan, ledger: Ledger, states: Path, inbox: Inbox, products: Mapping[str, int]
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._states = states
        self._inbox = inbox
        self._repeated: set[tuple[Task, str, int]] = set()
        self._products = dict(products)
        self._ceilings: Ceilings | None = None

    def run(self, gates: Mapping[str, Gate]) -> None:
        """Prepare each model, then measure round by round; raise Interrupted after a stop signal.

        Args:
            gates: Earlier equivalence checks that hold, by the label of the model.
        """
        ledger = self._ledger
        for model in self._plan.models:
            if model.label in gates and ledger.pending(model.label):
                self._note_gate(model.label, gates[model.label])
            while self._needs_preparing(model.label) and not self._prepare(
                model.label, ledger.pending(model.label)
            ):
                pass  # a worker that ended too early: another one prepares what is left
        for number in range(self._plan.rounds):
            order = ledger.model_order(number)
            if order:
                ledger.notify(events.RoundStarted(number, self._plan.rounds, tuple(order), ledger.progress))
            for name in order:
                while left := ledger.cell_order(name, number):
                    self._measure(name, number, left)

    def _needs_preparing(self, name: str) -> bool:
        """Return whether a model's cells need a prepare worker.

        They do if the cost of any is measured, because an equivalence check and compilations leave traces in memory and
        caches. Quality depends on neither, so the worker that evaluates a model checks it, too.
        """
        todo = self._ledger.pending(name)
        if name not in self._ledger.gates:
            return any(is_cost(cell.workload) for cell in todo)
        compiles = any(cell.settings.compile and find_workload(cell.workload).compiles for cell in todo)
        return bool(_unprepared(todo, 0)) or (compiles and not self._products)

    def _worker(self, task: Task, todo: list[Cell], name: str, number: int = 0) -> Worker:
        """Start a worker with a job."""
        return start_worker(
            self._plan,
            task,
            todo,
            self._ledger.run,
            self._inbox,
            records_path=self._ledger.path,
            states_dir=self._states,
            round_number=number,
            gate=self._ledger.gates.get(name),
            products=self._products,
            ceilings=self._ceilings,
        )

    def _prepare(self, name: str, todo: list[Cell]) -> bool:
        """Run the equivalence check and stream the states; return False if the worker ended too early.

        The second time, the failure is recorded for the cells that cannot be measured: all of a model that was not
        checked, else those whose states are not streamed yet.
        """
        ledger = self._ledger
        streamed = 0
        with self._worker("prepare", todo, name) as worker:
            unchecked = name not in ledger.gates
            ledger.notify(events.Preparing(name, worker.pid, ledger.progress, checks=unchecked))
            for message in worker.messages(self._plan.profile.timeout_s):
                match message:
                    case Streamed(num_tokens=done, total_tokens=total):
                        streamed = done
                        ledger.notify(events.Streaming(name, done, total, ledger.progress))
                    case Refused(cells=indices, status=status, error=error):
                        ledger.write_all_rounds([todo[index] for index in indices], status, error)
                    case WorkerExit(status=status, reason=reason):
                        self._note_exit(name, worker.pid, reason)
                        if self._may_repeat("prepare", name):
                            return False
                        failed = _unprepared(todo, streamed) if name in ledger.gates else todo
                        ledger.write_all_rounds(failed, *without_trial(name, status, reason))
                        return not failed
                    case _:
                        self._note_other(name, message)
        return True

    def _note_gate(self, name: str, gate: Gate) -> None:
        """Note the result of an equivalence check; if it failed, no cell of the model is measured."""
        ledger = self._ledger
        ledger.gates[name] = gate
        ledger.notify(events.GateChecked(name, gate, ledger.progress))
        if not gate.passed:
            error = f"the execution modes of '{name}' are not equivalent: {gate.failures}"
            ledger.write_all_rounds(ledger.pending(name), "gate_failed", error)

    def _measure(self, name: str, number: int, todo: list[Cell]) -> None:
        """Have one worker measure as much of `todo` as it can; at least one cell gets its record."""
        ledger = self._ledger
        ledger.times.restart()
        cells = _CellsInFlight(ledger, todo, number)
        with self._worker("measure", todo, name, number) as worker:
            if name not in ledger.gates:
                ledger.notify(events.Preparing(name, worker.pid, ledger.progress))
            for message in worker.messages(self._plan.profile.timeout_s):
                if isinstance(message, WorkerExit):
                    self._note_exit(name, worker.pid, message.reason)
                    if cells.current is not None:
                        ledger.write_worker_exit(cells.current, number, message.status, message.reason)
                    elif cells.none_ended and not self._may_repeat("measure", name, number):
                        cells.refuse(range(len(todo)), *without_trial(name, message.status, message.reason))
                    return
                if not cells.note(message, worker.pid):
                    self._note_other(name, message)
        if cells.none_ended and ledger.pending(name, number):
            raise RetbenchError(
                f"a worker of '{name}' ended without measuring anything and without a reason."
            )

    def _may_repeat(self, task: Task, name: str, number: int = 0) -> bool:
        """Return whether a task whose worker ended before its first result is given to another one: once."""
        what = (task, name, number)
        first = what not in self._repeated
        self._repeated.add(what)
        return first

    def _note_exit(self, name: str, pid: int, reason: str) -> None:
        """Report a worker's exit; raise RetbenchError if two have ended and none has ever started, for none will."""
        if self._repeated and not self._ledger.environment:
            raise RetbenchError(f"no worker can start on this machine: {reason}")
        self._ledger.notify(events.WorkerEnded(name, pid, reason, self._ledger.progress))

    def _note_other(self, name: str, message: Message | WorkerExit) -> None:
        """Handle the messages that any worker of a model may send: what later workers need, or an error of the run."""
        match message:
            case Hello(environment=facts):
                self._ledger.environment = facts
            case Checked(gate=gate, products=found):
                self._products |= found
                if name not in self._ledger.gates:
                    self._note_gate(name, gate)
            case Measured(ceilings=ceilings):
                self._ceilings = ceilings
            case Failed():
                raise message.error()


class _CellsInFlight:
    """The cells that one worker measures in a round.

    Attributes:
        current: The cell that the worker has started and not ended.
    """

    def __init__(self, ledger: Ledger, todo: list[Cell], number: int) -> None:
        self.current: Cell | None = None
        self._ledger = ledger
        self._todo = todo
        self._number = number
        self._num_ended = 0

    @property
    def none_ended(self) -> bool:
        """True if no cell has been measured or refused."""
        return self._num_ended == 0

    def note(self, message: Message, pid: int) -> bool:
        """Note what a message of the worker says about its cells; return False if it says nothing about them."""
        ledger, number = self._ledger, self._number
        match message:
            case Started(index=index):
                self.current = self._todo[index]
                ledger.notify(events.CellStarted(self.current, number, pid, ledger.progress))
            case Advanced(num_tokens=done):
                assert self.current is not None
                ledger.notify(events.CellAdvanced(self.current, number, done, ledger.progress))
            case Done(index=index, status=status, error=error):
                ledger.mark_done(self._todo[index], number, status, error)
                self.current = None
                self._num_ended += 1
            case Refused(cells=indices, status=status, error=error):
                self.refuse(indices, status, error)
            case _:
                return False
        return True

    def refuse(self, indices: Iterable[int], status: Status, error: str) -> None:
        """Write that cells cannot be measured."""
        for index in indices:
            self._ledger.write_failure(self._todo[index], self._number, status, error)
            self._num_ended += 1


def _unprepared(cells: list[Cell], streamed: int) -> list[Cell]:
    """Return the cells that start from a state of more tokens than were streamed."""
    return [
        cell
        for cell in cells
        if find_workload(cell.workload).starts_from_state
        and not cell.model.grows
        and cell.point.context_len - 1 > streamed
    ]
