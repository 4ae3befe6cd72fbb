"""One timing run at a time on a machine: every run of a user takes one lock, wherever it writes to."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from retbench.errors import StorageError

LOCK_DIR_VARIABLE = "RETBENCH_LOCK_DIR"
"""Names another folder for the lock: one that containers on one machine share."""


def lock_dir() -> Path:
    """Folder of the lock: the same for every process of this user on this machine."""
    named = os.environ.get(LOCK_DIR_VARIABLE)
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(tempfile.gettempdir()) / "retbench"
    # Not tempfile's folder: batch systems give every job another TMPDIR, and two jobs must meet here.
    return Path("/tmp") / f"retbench-{os.getuid()}"


@contextmanager
def timing_lock(command: str, *, wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the machine's lock; it is released by the kernel when this process ends in whatever way.

    Args:
        command: What this run is, for those who wait for it.
        wait: Called with the holder, in words, each time the lock was found taken; returns when to try again,
            or raises.

    Raises:
        StorageError: the folder of the lock cannot be made or is another user's.
    """
    folder = lock_dir()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock, holder = FileLock(folder / "timing.lock"), folder / "holder.json"
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except Timeout:
                wait(_describe(holder))
        _announce(holder, command)
    except OSError as error:
        raise StorageError(
            f"{folder}: the lock that keeps two runs from timing each other cannot be taken: {error}. "
            f"Make the folder yours, or name another one in {LOCK_DIR_VARIABLE}."
        ) from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _announce(holder: Path, command: str) -> None:
    """Write down who holds the lock, in one piece."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    draft = holder.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({"pid": os.getpid(), "command": command, "since": since}), encoding="utf-8")
    draft.replace(holder)


def _describe(holder: Path) -> str:
    """Who holds the lock, in words."""
    try:
        found = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {found['pid']}, `{found['command']}`, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run, which has not said yet who it is"
