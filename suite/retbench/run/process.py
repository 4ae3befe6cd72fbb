"""One worker process as the runner sees it: started in its own session, listened to, ended for certain."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

from retbench.records.record import Status
from retbench.run.deaths import explain_death, read_oom_kills
from retbench.run.interrupts import Interrupted
from retbench.run.protocol import CELL_MARK, Advanced, Ended, Job, Message, Started, Visit, decode

SETUP_TIMEOUT_S = 900.0
"""Longest silence outside a cell: imports, building a model, the gate, one segment of a prefill."""

_LAST_LINES = 40
_LINE_BYTES = 2000
_EXIT_WAIT_S = 10.0


@dataclass(frozen=True)
class Interrupt:
    """In an inbox: the run was told to stop."""


@dataclass(frozen=True)
class Death:
    """In a conversation: the worker's process is gone, and its work was not done."""

    status: Status
    reason: str


Inbox = SimpleQueue[tuple[int, Message | None] | Interrupt]
"""What the runner waits on: an interrupt, or a worker's process id and message (None: its stdout ended)."""


class Worker:
    """A running `python -m retbench.run.worker`; use as a context manager, which leaves no process behind.

    Args:
        job: What it is to do.
        inbox: Where its messages go.
        environment: Variables that must be set before its Python starts, on top of the runner's own.
        python: The interpreter; the runner's own when None.
    """

    def __init__(
        self, job: Job, inbox: Inbox, environment: dict[str, str], python: Path | None = None
    ) -> None:
        self._inbox = inbox
        self._last_words: deque[bytes] = deque(maxlen=_LAST_LINES)
        # -P keeps the current folder, and whatever lies in it, off the module path. An own session keeps
        # Ctrl-C in the terminal from reaching the worker: the runner decides.
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-P", "-m", "retbench.run.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._oom_kills = read_oom_kills(self.pid)
        self._listeners = [
            threading.Thread(target=self._hear_messages, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._hear_noise, args=(self._process.stderr,), daemon=True),
        ]
        for listener in self._listeners:
            listener.start()
        self.send(job)

    def send(self, message: Job | Visit) -> None:
        """Hand over the job, or ask for a visit, and keep the pipe open: its end would end the worker."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; the end of its stdout tells

    def _hear_messages(self, stream: IO[bytes]) -> None:
        for line in stream:
            message = decode(line)
            if message is not None:
                self._inbox.put((self.pid, message))
            elif line.strip():
                self._last_words.append(line[:_LINE_BYTES])
        self._inbox.put((self.pid, None))

    def _hear_noise(self, stream: IO[bytes]) -> None:
        for line in iter(lambda: stream.readline(_LINE_BYTES), b""):
            if line.strip() == CELL_MARK:  # what earlier cells survived is no evidence of why this one died
                self._last_words.clear()
            else:
                self._last_words.append(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End the process and whatever it started, at once, and wait until it is gone."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):  # it may go between the two calls
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdin is not None:
            _close(self._process.stdin)
        for listener, stream in zip(
            self._listeners, (self._process.stdout, self._process.stderr), strict=True
        ):
            listener.join(timeout=1.0)
            if stream is not None and not listener.is_alive():
                _close(stream)

    def death(self) -> Death:
        """What became of a process whose stdout has ended."""
        try:
            returncode = self._process.wait(timeout=_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return Death("failed", "the worker closed its stdout but did not end")
        self._listeners[1].join(timeout=1.0)
        words = b"".join(self._last_words).decode("utf-8", errors="replace")
        status, reason = explain_death(returncode, words, self._oom_kills, read_oom_kills(os.getpid()))
        return Death(status, reason)

    def converse(self, cell_timeout_s: float) -> Iterator[Message | Death]:
        """The worker's messages as they come, until it has ended; a Death last where its work was not done.

        Args:
            cell_timeout_s: Longest silence of a cell that was started.

        Raises:
            Interrupted: the run was told to stop.
        """
        in_cell, limit = False, SETUP_TIMEOUT_S
        deadline = time.monotonic() + limit
        while True:
            try:
                item = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                self.kill()
                yield Death("timeout", _too_long(limit, in_cell=in_cell))
                return
            if isinstance(item, Interrupt):
                raise Interrupted
            pid, message = item
            if pid != self.pid:
                continue  # of a worker that was ended while its last message was on the way
            if message is None:
                yield self.death()
                return
            in_cell = isinstance(message, Started | Advanced)
            limit = cell_timeout_s if in_cell else SETUP_TIMEOUT_S
            yield message
            if isinstance(message, Ended):
                return
            deadline = time.monotonic() + limit


def _too_long(limit_s: float, *, in_cell: bool) -> str:
    """Why a worker was ended that said nothing for `limit_s`."""
    if in_cell:
        return (
            f"the cell said nothing for timeout_s = {limit_s:g} and was ended (--set timeout_s= changes it)."
        )
    return f"the worker said nothing for {limit_s:g} s while no cell was being measured, and was ended."


def _close(stream: IO[bytes]) -> None:
    with suppress(BrokenPipeError):  # what the worker did not read is lost with it
        stream.close()
