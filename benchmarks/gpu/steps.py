"""One step of the procedure for a GPU: a process with a time limit and logs, which leaves nothing behind."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal, TextIO

from retbench.errors import UnsupportedError

ROOT = Path(__file__).parents[2]
GRACE_S = (45.0, 15.0)
"""Seconds that a step may take to stop after SIGINT, and then after SIGTERM (where SIGINT is ignored)."""
STOP_S = sum(GRACE_S)
"""Longest time by which a step exceeds its limit, unless the GPU's driver holds it."""
KILL_WAIT_S = 30.0
"""Longest wait after SIGKILL, which does not end a process that the GPU's driver holds."""
COPY_WAIT_S = 1.0
"""Longest wait for the last lines of an ended step's stderr."""

Ending = Literal["done", "failed", "cut short", "not begun", "not supported"]


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: Name in the summary.
        words: Arguments of the interpreter.
        expected_s: Expected seconds.
        spare_s: Seconds beyond the expected ones that it may take at least, if the budget has them.
        is_needed: Whether all later steps are pointless if it fails.
    """

    name: str
    words: tuple[str, ...]
    expected_s: float
    spare_s: float = 0.0
    is_needed: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of a step: how it ended, the time it took and its limit, and a note on a failure."""

    step: Step
    ending: Ending
    took_s: float = 0.0
    limit_s: float = 0.0
    note: str = ""


class Stopped(Exception):  # noqa: N818 - an outcome, not an error
    """The user ended the whole check."""


def run_step(step: Step, limit_s: float, log: Path) -> Outcome:
    """Run one step with its stdout in a file and its stderr in a second one, which is shown as well.

    Raises:
        Stopped: the user interrupted; the step has been ended.
    """
    command = [sys.executable, *step.words]
    start = monotonic()
    with (
        open(log, "w", encoding="utf-8") as file,
        open(_stderr_of(log), "w", encoding="utf-8") as errors,
        _started(command, file, errors) as process,
    ):
        overran = False
        code: int | None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            overran, code = True, stop(process)
        except KeyboardInterrupt:
            stop(process)
            raise Stopped from None
    took_s = monotonic() - start
    if code == 0:
        return Outcome(step, "done", took_s, limit_s)
    if code is None:
        note = f"process {process.pid} has not ended after SIGKILL: a driver holds it"
        return Outcome(step, "failed", took_s, limit_s, note)
    if overran:
        return Outcome(step, "cut short", took_s, limit_s)
    if code == UnsupportedError.exit_code and "pytest" not in step.words:  # pytest's 3 is an internal error
        return Outcome(step, "not supported", took_s, limit_s, _last_line(log))
    return Outcome(step, "failed", took_s, limit_s, f"exit code {code}")


@contextmanager
def _started(command: Sequence[str], file: TextIO, errors: TextIO) -> Iterator[subprocess.Popen[str]]:
    """Start a command for the block; afterwards nothing that it has started in its group is left.

    A profiler's target or a test's process would hold the GPU, and would disturb what later steps measure.
    """
    file.write(f"$ {shlex.join(command)}\n")
    file.flush()
    # In a new process session: Ctrl-C reaches this process only, and the whole group can be killed.
    process = subprocess.Popen(
        command,
        stdout=file,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    copying = threading.Thread(target=_copy, args=(process.stderr, errors), daemon=True)
    copying.start()
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        copying.join(COPY_WAIT_S)


def _copy(source: TextIO, target: TextIO) -> None:
    """Copy lines to a file and to stderr until their source ends, or the file is closed."""
    with source, suppress(ValueError):
        for line in source:
            sys.stderr.write(line)
            sys.stderr.flush()
            target.write(line)
            target.flush()


def _stderr_of(log: Path) -> Path:
    """Return the file of a step's stderr, beside that of its stdout."""
    return log.with_suffix(".stderr.txt")


def _last_line(log: Path) -> str:
    """Return the last line that a step wrote to stdout after its command, or else to stderr: it states its reason."""
    outputs = [path.read_text(encoding="utf-8", errors="replace") for path in (log, _stderr_of(log))]
    written = (outputs[0].partition("\n")[2].strip() or outputs[1].strip()).rpartition("\n")
    return written[2]


def stop(process: subprocess.Popen[str]) -> int | None:
    """Interrupt a step, so that it keeps what it has measured; kill it if it does not end.

    Returns:
        Its exit status; None if it has not ended after SIGKILL either.
    """
    try:
        for number, grace_s in zip((signal.SIGINT, signal.SIGTERM), GRACE_S, strict=True):
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                return process.wait(grace_s)
    finally:  # after a second Ctrl-C too
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.wait(KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        return None
