"""One timing run at a time on a GPU or a core, and an orderly end when the user stops it.

Every run of a user takes the locks of its hardware, wherever it writes to. SIGINT, SIGTERM and SIGHUP become a call, so
that a run handles them in one place, between two steps.
"""

import json
import os
import secrets
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from retbench.errors import StorageError, UnsupportedError
from retbench.measure import nvml
from retbench.measure.devices import device_uuid
from retbench.measure.machine import allowed_cpus, bind_process, cores_by_name

LOCK_DIR_VARIABLE = "RETBENCH_LOCK_DIR"
"""Environment variable with another folder for the locks, e.g. one that containers on one machine share."""

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
    """Return the folder of the locks: the same one for every process of this user on this machine."""
    # Not tempfile's folder: batch systems give every job its own TMPDIR, and two jobs must meet here.
    return Path(os.environ.get(LOCK_DIR_VARIABLE) or f"/tmp/retbench-{os.getuid()}")


@dataclass(frozen=True)
class _Claim:
    """Hardware that a run needs for itself: GPUs by their locks, and so many of the cores by theirs."""

    gpus: tuple[str, ...]
    cores: dict[str, list[int]]
    num_cores: int


@contextmanager
def timing_lock(
    command: str, device: str, *, wait: Callable[[str], None], threads: int = 1, num_gpus: int = 1
) -> Iterator[None]:
    """Hold the locks of a device's hardware; the kernel releases them when this process ends in any way.

    A run on a CPU has every core that its process may use. A run on a GPU has that GPU, and its share of these cores,
    to which the process is bound for as long as it holds them. So runs wait for each other only if they would share a
    core or a GPU.

    Args:
        command: This run's command line, for those who wait for it.
        device: torch's name of the device; of the first GPU if there are several.
        wait: Called with a description of the holder each time a lock is taken; returns when to try again, or raises.
        threads: Cores that a run on a GPU needs at least.
        num_gpus: Number of GPUs that the run uses, numbered from that of the device.

    Raises:
        StorageError: the folder of the locks cannot be made, is a link, or can be written to by another user.
    """
    folder, claim = lock_dir(), _claim_of(device, threads, num_gpus)
    with ExitStack() as held:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_own(folder)
            while (taken := _take(folder, claim, held)) and isinstance(taken, str):
                wait(_describe_holder(folder, taken))
            holder = _write_holder(folder, command, [*claim.gpus, *taken])
        except OSError as error:
            raise StorageError(
                f"{folder}: the lock that keeps two runs from timing at once cannot be taken: {error}. "
                f"Make it a folder of yours that only you can write to, or name another one in {LOCK_DIR_VARIABLE}."
            ) from error
        held.callback(holder.unlink, missing_ok=True)
        if len(taken) < len(claim.cores):
            held.callback(bind_process, allowed_cpus())
            bind_process(cpu for name in taken for cpu in claim.cores[name])
        yield


def refuse_estimate(holder: str) -> NoReturn:
    """Raise UnsupportedError, as the `wait` of an estimate: measuring the machine would disturb the run of a holder."""
    raise UnsupportedError(
        f"an estimate measures the machine, and that would disturb the run of {holder}. Try again when it is done."
    )


def _claim_of(device: str, threads: int, num_gpus: int) -> _Claim:
    """Return what a run on a device needs: on a GPU as many cores as the machine has for each of its GPUs."""
    cores = {f"core-{name}": cpus for name, cpus in cores_by_name().items()}
    if device == "cpu":
        return _Claim((), cores, len(cores))
    first = int(device.partition(":")[2] or 0)
    uuids = [device_uuid(f"cuda:{index}") for index in range(first, first + num_gpus)]
    near = nvml.near_cpus(uuids[0])
    ordered = dict(sorted(cores.items(), key=lambda core: near.isdisjoint(core[1])))
    share = num_gpus * len(cores) // max(num_gpus, nvml.count_gpus())
    return _Claim(tuple(f"gpu-{uuid}" for uuid in uuids), ordered, min(len(cores), max(1, threads, share)))


def _take(folder: Path, claim: _Claim, held: ExitStack) -> list[str] | str:
    """Take the locks of a claim and return the names of its cores; or take none and return the name of a taken one."""
    with ExitStack() as found:
        cores: list[str] = []
        spare = len(claim.cores) - claim.num_cores
        for name in (*claim.gpus, *claim.cores):
            if len(cores) == claim.num_cores:
                break
            lock = FileLock(folder / f"{name}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                # The order is the same for all, so that of two runs that wait for the same cores one gets them.
                if name in claim.gpus or spare == 0:
                    return name
                spare -= 1
                continue
            found.callback(lock.release)
            cores += [name] if name in claim.cores else []
        held.push(found.pop_all())
    return cores


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


def _write_holder(folder: Path, command: str, names: list[str]) -> Path:
    """Write who holds locks, to a new file: a link of that name is not followed."""
    for path, facts in _holders(folder):
        if not set(names).isdisjoint(facts.get("locks", ())):  # of a holder that was killed
            path.unlink(missing_ok=True)
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    path = folder / f"holder-{os.getpid()}-{secrets.token_hex(3)}.json"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump({"pid": os.getpid(), "command": command, "since": since, "locks": names}, file)
    return path


def _holders(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the notes of holders that can be read."""
    for path in folder.glob("holder-*.json"):
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                yield path, found


def _describe_holder(folder: Path, name: str) -> str:
    for _, found in _holders(folder):
        if name in found.get("locks", ()):
            return f"process {found['pid']}, `{found['command']}`, since {found['since']}"
    return "another run that has not identified itself yet"
