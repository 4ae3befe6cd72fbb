"""One timing run at a time on a machine, and an orderly end when the user stops it.

Every run of a user takes the same lock, wherever it writes to. SIGINT, SIGTERM and SIGHUP become a call, so that
a run handles them in one place, between two steps.
"""

import json
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from retbench.errors import StorageError

LOCK_DIR_VARIABLE = "RETBENCH_LOCK_DIR"
"""Environment variable with another folder for the lock, e.g. one that containers on one machine share."""

_STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Interrupted(Exception):  # noqa: N818 - an outcome, not an error
    """The user asked the run to stop."""


@contextmanager
def catch_signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """Call `on_signal` for every stop signal instead of ending; outside the main thread nothing changes.

    A signal that this process was started to ignore (SIGHUP under nohup, SIGINT in the background of a script) stays
    ignored.

    Args:
        on_signal: Must be safe inside a signal handler (`SimpleQueue.put` is).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        on_signal()

    handled = [number for number in _STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def lock_dir() -> Path:
    """Return the folder of the lock: the same one for every process of this user on this machine."""
    # Not tempfile's folder: batch systems give every job its own TMPDIR, and two jobs must meet here.
    return Path(os.environ.get(LOCK_DIR_VARIABLE) or f"/tmp/retbench-{os.getuid()}")


@contextmanager
def timing_lock(command: str, *, wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the machine's lock; the kernel releases it when this process ends in any way.

    Args:
        command: This run's command line, for those who wait for it.
        wait: Called with a description of the holder each time the lock is taken; returns when to try again, or
            raises.

    Raises:
        StorageError: the folder of the lock cannot be made, is a link, or can be written to by another user.
    """
    folder = lock_dir()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_own(folder)
        lock, holder = FileLock(folder / "timing.lock"), folder / "holder.json"
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except Timeout:
                wait(_describe_holder(holder))
        _write_holder(holder, command)
    except OSError as error:
        raise StorageError(
            f"{folder}: the lock that keeps two runs from timing at once cannot be taken: {error}. "
            f"Make it a folder of yours that only you can write to, or name another one in {LOCK_DIR_VARIABLE}."
        ) from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _check_own(folder: Path) -> None:
    """Raise an OSError unless a folder is this user's alone: anybody may make one of any name in /tmp."""
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise OSError("it is a link")
    if found.st_uid != os.getuid():
        raise OSError(f"it belongs to user {found.st_uid}, and this is user {os.getuid()}")
    # A folder that the user has named may be read by others; nobody else may write to it.
    foreign = 0o022 if os.environ.get(LOCK_DIR_VARIABLE) else 0o077
    if stat.S_IMODE(found.st_mode) & foreign:
        raise OSError(f"its mode {stat.S_IMODE(found.st_mode):o} lets others use it")


def _write_holder(path: Path, command: str) -> None:
    """Write who holds the lock, to a new file: a link of that name is not followed."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    path.unlink(missing_ok=True)  # of a holder that was killed
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump({"pid": os.getpid(), "command": command, "since": since}, file)


def _describe_holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['pid']}, `{found['command']}`, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run that has not identified itself yet"
