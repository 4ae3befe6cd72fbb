"""Why a worker's process ended: by its exit status, its last words, and the kernel's memory counters."""

import signal
from collections.abc import Mapping
from pathlib import Path

from retbench.records.record import Status

_VMSTAT = Path("/proc/vmstat")
_CGROUPS = Path("/sys/fs/cgroup")
_MEMORY_WORDS = (
    "bad_alloc",
    "can't allocate memory",
    "cannot allocate memory",
    "memoryerror",
    "out of memory",
)


def read_oom_kills(pid: int) -> dict[str, int]:
    """How many processes the kernel has killed for want of memory, by the file that says so.

    The system's own counter, and that of the memory control group that process `pid` is in (version 2 or 1).
    Empty where the system has none.
    """
    sources = [_VMSTAT, *_cgroup_files(pid)]
    found = {}
    for path in sources:
        count = _oom_kill_line(path)
        if count is not None:
            found[str(path)] = count
    return found


def _cgroup_files(pid: int) -> list[Path]:
    """Files that count out-of-memory kills in the control groups of `pid`."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            files.append(_CGROUPS / group.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            files.append(_CGROUPS / "memory" / group.lstrip("/") / "memory.oom_control")
    return files


def _oom_kill_line(path: Path) -> int | None:
    """The number after `oom_kill` in a file of `name value` lines; None without one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), None)


def explain_death(
    returncode: int, last_words: str, before: Mapping[str, int], after: Mapping[str, int]
) -> tuple[Status, str]:
    """Status and reason of a process that ended before its work was done.

    Args:
        returncode: As subprocess gives it: negative for a signal.
        last_words: The end of its stderr.
        before: `read_oom_kills` when the process started.
        after: The same after its end.

    Returns:
        `oom` only on evidence: a counter that rose, or the process's own words; otherwise `failed`.
    """
    risen = [source for source, count in after.items() if count > before.get(source, count)]
    starved = any(words in last_words.lower() for words in _MEMORY_WORDS)
    status: Status = "failed"
    if returncode == -signal.SIGKILL and risen:
        status, reason = (
            "oom",
            f"the kernel killed the worker for want of memory (oom_kill rose in {risen[0]})",
        )
    elif returncode == -signal.SIGKILL:
        counters = "no out-of-memory counter rose" if after else "this system has no out-of-memory counter"
        reason = f"the worker was killed with SIGKILL; {counters}, so who did it and why is not known"
    elif starved:
        status, reason = "oom", f"the worker ran out of memory and {_how_it_ended(returncode)}"
    else:
        reason = f"the worker {_how_it_ended(returncode)}"
    return status, f"{reason}.{_quote(last_words)}"


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode} before its work was done"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"was ended by {name}"


def _quote(last_words: str) -> str:
    """The last lines of stderr, or that there were none."""
    lines = [line for line in last_words.splitlines() if line.strip()]
    return " Last lines of its stderr:\n" + "\n".join(lines[-8:]) if lines else " It wrote nothing to stderr."
