"""The process that measures: `python -m retbench.running.worker`, started by the runner with one job on its stdin.

It builds the job's model once, does the task, and writes each record itself as soon as it is measured. Its stdout
carries the protocol and nothing else: whatever a library prints there goes to stderr. It never outlives its
runner. It is not a command for people.
"""

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from retbench.errors import RetbenchError
from retbench.running.protocol import Ended, Failed, Job, MeasureCell, Message, encode

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_HIGHEST_OOM_SCORE = 1000
_READ_BYTES = 4096


def main() -> None:
    """Do the job on stdin; never return."""
    gc.disable()  # while torch is imported, which takes a tenth longer with it; the tasks enable it again
    die_with_parent()
    pipe = _claim_stdout()
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(1)  # the runner ended before it sent a job
    job = Job.model_validate_json(line)
    lines = exit_with_stdin(job.parent_pid)
    raise_oom_score()
    try:
        _work(job, lines, _sender(pipe))
    except BrokenPipeError:
        os._exit(1)  # the runner has ended
    sys.stderr.flush()
    os._exit(0)  # nothing is left to clean up, and torch's own clean-up is slow


def _work(job: Job, lines: "SimpleQueue[bytes]", send: Callable[[Message], None]) -> None:
    """Do the task; an error meant for the user goes to the runner, which shows it."""
    from retbench.running.tasks import do_task

    try:
        do_task(job, send, _requests(lines))
        send(Ended())
    except RetbenchError as error:
        send(Failed(kind=type(error).__name__, message=str(error)))


def _requests(lines: "SimpleQueue[bytes]") -> Iterator[MeasureCell]:
    """Yield the runner's requests; never stop, for the end of stdin ends the process."""
    while True:
        yield MeasureCell.model_validate_json(lines.get())


def _claim_stdout() -> BinaryIO:
    """Return the pipe to the runner for the protocol alone; redirect this process's own output to stderr."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def _sender(pipe: BinaryIO) -> Callable[[Message], None]:
    def send(message: Message) -> None:
        pipe.write(encode(message))
        pipe.flush()

    return send


def die_with_parent() -> None:
    """On Linux, have the kernel kill this process when its parent ends, even if it is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def exit_with_stdin(parent_pid: int) -> "SimpleQueue[bytes]":
    """Exit when stdin ends, which the runner holds open; return a queue of every further line on stdin.

    Args:
        parent_pid: The runner. If it is no longer the parent, it ended before `die_with_parent`: exit now.
    """
    if os.getppid() != parent_pid:
        os._exit(1)
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_stdin, args=(lines,), name="stdin", daemon=True).start()
    return lines


def _read_stdin(lines: "SimpleQueue[bytes]") -> None:
    rest = b""
    while chunk := os.read(0, _READ_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            lines.put(line)
    os._exit(1)


def raise_oom_score() -> None:
    """Have the kernel choose this process first when memory runs out, so that the runner lives to record it."""
    with suppress(OSError):  # not Linux, or a sandbox that forbids it
        _OOM_SCORE.write_text(f"{_HIGHEST_OOM_SCORE}\n", encoding="ascii")


if __name__ == "__main__":
    main()
