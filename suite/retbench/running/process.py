"""One worker process as the runner sees it: start it in its own session, receive its messages, end it for certain.

Why a process ended is explained by its exit status, the end of its stderr, and the kernel's counters of
out-of-memory kills.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

from retbench.errors import RetbenchError
from retbench.measure.environment import worker_environment
from retbench.measure.machine import own_cgroups, read_text
from retbench.planning.cells import Cell
from retbench.planning.plan import Plan
from retbench.records.record import Ceilings, Gate, Status
from retbench.running.locks import Interrupted
from retbench.running.protocol import (
    CELL_MARK,
    Advanced,
    Ended,
    Job,
    MeasureCell,
    Message,
    RunInfo,
    Started,
    Task,
    decode,
)

_LOCK_POLL_S = 0.5
SETUP_TIMEOUT_S = 900.0
"""Longest silence outside a cell: imports, building a model, the equivalence check, one segment of a prefill."""

_TAIL_LINES = 40
_LINE_BYTES = 2000
_EXIT_WAIT_S = 10.0
_KILL_WAIT_S = 30.0
"""Longest wait after SIGKILL: a process in a call of the GPU's driver ends only when the driver returns, or never."""
_VMSTAT = Path("/proc/vmstat")
_OUT_OF_MEMORY_PHRASES = (
    "bad_alloc",
    "can't allocate memory",
    "cannot allocate memory",
    "memoryerror",
    "out of memory",
)
_NO_PATH = Path(os.devnull)
_NO_PRODUCTS: Mapping[str, int] = {}
_NO_VARIABLES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Interrupt:
    """Entry of an inbox: the user asked the run to stop."""


@dataclass(frozen=True)
class WorkerExit:
    """Last entry of a worker's messages when its process ended before its work was done."""

    status: Status
    reason: str


Inbox = SimpleQueue[tuple[int, Message | None] | Interrupt]
"""Queue that the runner reads: an interrupt, or a worker's process id and message (None: its stdout ended)."""


def wait_or_stop(inbox: Inbox, report: Callable[[str], None]) -> Callable[[str], None]:
    """Return the function that waits for another run's lock for a moment, and reports each holder once.

    It raises Interrupted if something arrives in the inbox meanwhile.
    """
    reported: set[str] = set()

    def wait(holder: str) -> None:
        if holder not in reported:
            reported.add(holder)
            report(holder)
        with suppress(Empty):
            inbox.get(timeout=_LOCK_POLL_S)
            raise Interrupted

    return wait


class Worker:
    """A running `python -m retbench.running.worker`; use as a context manager, which leaves no process behind.

    Args:
        job: The worker's job.
        inbox: Receives its messages.
        environment: Variables that must be set before its Python starts, in addition to the runner's own.
        python: The interpreter; the runner's own when None.
    """

    def __init__(
        self, job: Job, inbox: Inbox, environment: dict[str, str], python: Path | None = None
    ) -> None:
        self._inbox = inbox
        self._stderr_tail: deque[bytes] = deque(maxlen=_TAIL_LINES)
        # -P keeps the current folder off the module path. A new process session keeps Ctrl-C in the terminal from
        # reaching the worker: the runner decides.
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-P", "-m", "retbench.running.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._oom_kills = read_oom_kills()
        self._readers = [
            threading.Thread(target=self._read_messages, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_stderr, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.send(job)

    def send(self, message: Job | MeasureCell) -> None:
        """Send the job or a request, and keep the pipe open: its end would end the worker."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended at once, which the end of its stdout reports
            self._process.stdin.write(message.model_dump_json(by_alias=True).encode() + b"\n")
            self._process.stdin.flush()

    def _read_messages(self, stream: IO[bytes]) -> None:
        for line in stream:
            message = decode(line)
            if message is not None:
                self._inbox.put((self.pid, message))
            elif line.strip():
                self._stderr_tail.append(line[:_LINE_BYTES])
        self._inbox.put((self.pid, None))

    def _read_stderr(self, stream: IO[bytes]) -> None:
        for line in iter(lambda: stream.readline(_LINE_BYTES), b""):
            if line.strip() == CELL_MARK:  # output of earlier cells does not explain why this one failed
                self._stderr_tail.clear()
            else:
                self._stderr_tail.append(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the process; RetbenchError if that is impossible, unless another error is on its way."""
        if not self.kill() and kind is None:
            raise RetbenchError(
                f"a worker (process {self.pid}) has not ended {_KILL_WAIT_S:g} s after SIGKILL: a driver holds it, and "
                "other workers would wait for the same device. Restart the machine or its driver. All measured "
                "records are kept; then run the same command again."
            )

    def kill(self) -> bool:
        """End the process and its children at once; return whether the process is gone."""
        is_gone = True
        if self._process.poll() is None:
            # It may end between the two calls.
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            try:
                self._process.wait(timeout=_KILL_WAIT_S)
            except subprocess.TimeoutExpired:
                is_gone = False
        if self._process.stdin is not None:
            _close(self._process.stdin)
        streams = (self._process.stdout, self._process.stderr)
        for reader, stream in zip(self._readers, streams, strict=True):
            reader.join(timeout=1.0)
            if stream is not None and not reader.is_alive():
                _close(stream)
        return is_gone

    def messages(self, cell_timeout_s: float) -> Iterator[Message | WorkerExit]:
        """Yield the worker's messages until it has ended; a WorkerExit is last when its work was not done.

        Args:
            cell_timeout_s: Longest silence of a cell that was started.

        Raises:
            Interrupted: the user asked the run to stop.
        """
        in_cell, limit = False, SETUP_TIMEOUT_S
        deadline = time.monotonic() + limit
        while True:
            try:
                item = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                self.kill()
                yield WorkerExit("timeout", _describe_timeout(limit, in_cell=in_cell))
                return
            if isinstance(item, Interrupt):
                raise Interrupted
            pid, message = item
            if pid != self.pid:
                continue  # a late message of a worker that was ended
            if message is None:
                yield self._exit()
                return
            in_cell = isinstance(message, Started | Advanced)
            limit = cell_timeout_s if in_cell else SETUP_TIMEOUT_S
            yield message
            if isinstance(message, Ended):
                return
            deadline = time.monotonic() + limit

    def _exit(self) -> WorkerExit:
        """Explain the end of a process whose stdout has ended."""
        try:
            returncode = self._process.wait(timeout=_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return WorkerExit("failed", "the worker closed its stdout but did not end")
        self._readers[1].join(timeout=1.0)
        stderr = b"".join(self._stderr_tail).decode("utf-8", errors="replace")
        return explain_exit(returncode, stderr, self._oom_kills, read_oom_kills())


def start_worker(
    plan: Plan,
    task: Task,
    cells: Sequence[Cell],
    run: RunInfo,
    inbox: Inbox,
    *,
    records_path: Path = _NO_PATH,
    states_dir: Path = _NO_PATH,
    round_number: int = 0,
    gate: Gate | None = None,
    products: Mapping[str, int] = _NO_PRODUCTS,
    ceilings: Ceilings | None = None,
    variables: Mapping[str, str] = _NO_VARIABLES,
    python: Path | None = None,
) -> Worker:
    """Start a worker for cells of one model, with the threads and the device of their plan.

    Args:
        plan: The plan of the cells.
        task: The worker's task.
        cells: The cells, in the order in which they are measured.
        run: Fields that all records of the run share.
        inbox: Receives its messages.
        records_path: File that it appends records to; needed by tasks that measure cells.
        states_dir: Folder of streamed states; needed by the same tasks, and by `prepare`.
        round_number: Round of the records.
        gate: Equivalence check that holds; see `Job`.
        products: Outcomes that earlier workers have found; see `Job`.
        ceilings: The best that earlier workers have measured; see `Job`.
        variables: Variables of its environment in addition to those of its threads and its device.
        python: The interpreter; the runner's own when None.
    """
    job = Job(
        task=task,
        run=run,
        cells=tuple(cells),
        round=round_number,
        gate=gate,
        records_path=records_path.absolute(),
        states_dir=states_dir.absolute(),
        data_dir=plan.data_dir,
        products=dict(products),
        ceilings=ceilings,
        parent_pid=os.getpid(),
    )
    settings = plan.settings
    environment = {**worker_environment(settings.threads, settings.device), **variables}
    return Worker(job, inbox, environment, python)


def _describe_timeout(limit_s: float, *, in_cell: bool) -> str:
    if in_cell:
        return (
            f"the cell said nothing for timeout_s = {limit_s:g} and was ended (--set timeout_s= changes it)."
        )
    return f"the worker said nothing for {limit_s:g} s while no cell was being measured, and was ended."


def _close(stream: IO[bytes]) -> None:
    with suppress(BrokenPipeError):  # input that the worker did not read is lost with it
        stream.close()


def explain_exit(
    returncode: int, stderr: str, before: Mapping[str, int], after: Mapping[str, int]
) -> WorkerExit:
    """Explain why a process ended before its work was done.

    The status is `oom` only on evidence: a counter that rose, or the process's own messages; otherwise `failed`.

    Args:
        returncode: As subprocess gives it: negative for a signal.
        stderr: The end of its stderr.
        before: `read_oom_kills` when the process started.
        after: The same after its end.
    """
    risen = [source for source, count in after.items() if count > before.get(source, count)]
    status: Status = "failed"
    if returncode == -signal.SIGKILL and risen:
        status = "oom"
        reason = f"the kernel killed the worker because memory ran out (oom_kill rose in {risen[0]})"
    elif returncode == -signal.SIGKILL:
        counters = "no out-of-memory counter rose" if after else "this system has no out-of-memory counter"
        reason = f"the worker was killed with SIGKILL; {counters}, so the cause is unknown"
    elif any(phrase in stderr.lower() for phrase in _OUT_OF_MEMORY_PHRASES):
        status, reason = "oom", f"the worker ran out of memory and {_describe_early_end(returncode)}"
    else:
        reason = f"the worker {_describe_early_end(returncode)}"
    return WorkerExit(status, f"{reason}.{_quote_tail(stderr)}")


def _describe_early_end(returncode: int) -> str:
    """Return how a worker ended that had work left."""
    return describe_end(returncode) + (" before its work was done" if returncode >= 0 else "")


def describe_end(returncode: int) -> str:
    """Return how a process ended: "ended with exit code 7" or "was ended by SIGSEGV"."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:  # most real-time signals have no name
        name = f"signal {-returncode}"
    return f"was ended by {name}"


def _quote_tail(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    return " Last lines of its stderr:\n" + "\n".join(lines[-8:]) if lines else " It wrote nothing to stderr."


def read_oom_kills() -> dict[str, int]:
    """Return the number of out-of-memory kills by the file that states it; empty where the system has none.

    The files are the system's own counter, and those of the memory control groups (version 2 or 1) of this process,
    which its workers share.
    """
    files = ("memory.events", "memory.oom_control")
    paths = (_VMSTAT, *(folder / name for folder in own_cgroups("memory") for name in files))
    counts = {path: _read_oom_kill_line(path) for path in paths}
    return {str(path): count for path, count in counts.items() if count is not None}


def _read_oom_kill_line(path: Path) -> int | None:
    """Return the number after `oom_kill` in a file of `name value` lines, or None."""
    text = read_text(path) or ""
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), None)
