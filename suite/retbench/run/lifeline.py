"""Keeps a worker from outliving its runner, and makes it the one that goes when memory is short."""

import ctypes
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_FIRST_VICTIM = 1000
_CHUNK = 4096


def ask_to_die_with_parent() -> None:
    """On Linux, have the kernel kill this process when the one that started it dies, even if stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def watch_parent(parent_pid: int) -> "SimpleQueue[bytes]":
    """End this process when stdin ends, which the runner holds open; called once the job is read from it.

    Args:
        parent_pid: The runner. Where it is no longer the parent, it died before the kernel was asked: exit
            now.

    Returns:
        Every further line on stdin, as it comes.
    """
    if os.getppid() != parent_pid:
        os._exit(1)
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_hear_stdin, args=(lines,), name="lifeline", daemon=True).start()
    return lines


def _hear_stdin(lines: "SimpleQueue[bytes]") -> None:
    """Pass lines on until stdin ends, then end the process."""
    rest = b""
    while chunk := os.read(0, _CHUNK):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            lines.put(line)
    os._exit(1)


def offer_as_oom_victim() -> None:
    """Let the kernel choose this process first when memory runs out: the runner lives to record it."""
    with suppress(OSError):  # not Linux, or a sandbox that keeps it from being changed
        _OOM_SCORE.write_text(f"{_FIRST_VICTIM}\n", encoding="ascii")
