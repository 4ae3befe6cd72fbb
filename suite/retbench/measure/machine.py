"""The host as the kernel describes it: processor, cores that this process may use, limits of its container.

Imports no torch. A fact that cannot be read is None here, and absent with a reason in `environment`.
"""

import hashlib
import math
import os
import platform
import re
import resource
import subprocess
import sys
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_PROC = Path("/proc")
_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_GENERATION = {
    "cpu family": "family",
    "model": "model",
    "stepping": "stepping",
    "CPU implementer": "implementer",
    "CPU variant": "variant",
    "CPU part": "part",
    "CPU revision": "revision",
}
"""Entries of /proc/cpuinfo that state a processor's design, the first three on x86 and the others on ARM."""

NODE_VARIABLE = "RETBENCH_NODE"
"""Environment variable that names this host where its id does not: containers of one image may share an id."""

BUSY_RATIO = 0.2
"""Share of the processors that other processes may use without a warning."""
_BUSY_INTERVAL_S = 0.3


def read_text(path: Path) -> str | None:
    """Return the stripped content of a small file of the kernel; None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def node_id() -> str:
    """Return a hash that identifies this host and from which neither its name nor its id can be recovered.

    RETBENCH_NODE replaces name and id where it is set. A container without its own id is identified by its host
    name since the last boot.
    """
    if given := os.environ.get(NODE_VARIABLE):
        return _hashed(f"node {given}")
    known = next(
        (text for path in _MACHINE_IDS if re.fullmatch("[0-9a-f]{32}", text := read_text(path) or "")), None
    )
    boot = read_text(_PROC / "sys/kernel/random/boot_id") or f"{uuid.getnode():x}"
    own = known or f"{platform.node()} {boot}"
    return _hashed(own)


def _hashed(own: str) -> str:
    return hashlib.sha256(f"retbench {own}".encode()).hexdigest()[:16]


def cpu_model() -> str:
    """Return the name of the processor as its maker writes it, or the architecture if the name is unknown."""
    match = re.search(r"^model name\s*:\s*(.+)$", read_text(_PROC / "cpuinfo") or "", flags=re.MULTILINE)
    if match:
        return match.group(1).strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if name:
            return name
    return platform.processor() or platform.machine()


def cpu_generation() -> str | None:
    """Return the numbers by which a processor states its design: 'family 25, model 1, stepping 1'; None if unknown.

    Virtual machines often give processors of several generations one name, such as 'AMD EPYC'.
    """
    facts = dict(
        re.findall(r"^([\w ]+?)\s*:\s*(\S+)\s*$", read_text(_PROC / "cpuinfo") or "", flags=re.MULTILINE)
    )
    stated = [f"{word} {facts[name]}" for name, word in _GENERATION.items() if name in facts]
    return ", ".join(stated) or None


def physical_cores() -> int:
    """Return the number of physical cores of the machine."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def allowed_cpus() -> list[int]:
    """Return the numbers of the logical CPUs that any thread of this process may run on.

    The main thread alone is not enough: OMP_PROC_BIND binds it to a single CPU when the OpenMP library is loaded.
    """
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    cpus: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            cpus |= os.sched_getaffinity(int(task))
        except ProcessLookupError:
            continue  # the thread has ended since it was listed
    return sorted(cpus)


def cores_by_name() -> dict[str, list[int]]:
    """Return the allowed CPUs by physical core; a core is named by all of its hardware threads, allowed or not."""
    groups: dict[str, list[int]] = {}
    for cpu in allowed_cpus():
        siblings = read_text(_CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        groups.setdefault(siblings, []).append(cpu)
    return groups


def allowed_cores() -> list[list[int]]:
    """Return the allowed CPUs by physical core: one list of hardware threads per core."""
    return list(cores_by_name().values())


def bind_process(cpus: Iterable[int]) -> None:
    """Let each thread of this process run on these CPUs only; what the process starts inherits it (Linux)."""
    chosen = set(cpus)
    for thread in os.listdir("/proc/self/task") if hasattr(os, "sched_setaffinity") else ():
        with suppress(ProcessLookupError):  # it has ended since it was listed
            os.sched_setaffinity(int(thread), chosen)


def busy_ratio() -> float:
    """Return the share of the processors that is in use during 0.3 s, in which this process waits."""
    return psutil.cpu_percent(_BUSY_INTERVAL_S) / 100


def usable_cores() -> int:
    """Return the number of physical cores that the affinity and the container's CPU quota allow."""
    quota = cpu_quota()
    cores = len(allowed_cores())
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def last_level_cache_bytes() -> int:
    """Return the total bytes of all last-level caches of the machine; 0 if unknown."""
    caches: dict[tuple[int, str], int] = {}
    for index in _CPUS.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, shared_by, size = (read_text(index / name) for name in ("level", "shared_cpu_list", "size"))
        if level and shared_by and size and size.endswith("K"):
            caches[int(level), shared_by] = int(size[:-1]) * 1024
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def cpu_quota() -> float | None:
    """Return the number of CPUs that the container's time quota allows; None without a quota."""
    limits = []
    for folder in own_cgroups("cpu"):
        quota, _, period = (read_text(folder / "cpu.max") or "").partition(" ")
        if not period:
            quota = read_text(folder / "cpu.cfs_quota_us") or ""
            period = read_text(folder / "cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit_bytes() -> int:
    """Return the most bytes that a process may have here: of the machine, its container and its resource limits."""
    own = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    limits = [psutil.virtual_memory().total, *(limit for limit in own if limit != resource.RLIM_INFINITY)]
    for folder in own_cgroups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = read_text(folder / name) or ""
            if limit.isdecimal():
                limits.append(int(limit))
    return min(limits)


def status_bytes(name: str) -> int | None:
    """Return a memory field of this process in proc_pid_status(5), such as VmData, in bytes; None if unknown."""
    status = read_text(_PROC / "self/status") or ""
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return None if found is None else int(found.group(1)) * 1024


def own_cgroups(controller: str) -> list[Path]:
    """Return the folders of this process's control group and its parents, in cgroups version 2 and 1.

    In a container the path is often that of the host and does not exist; the mount's root is then the container's
    group.
    """
    folders: list[Path] = []
    for line in (read_text(_PROC / "self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = _CGROUPS
        elif controller in controllers.split(","):
            mount = _CGROUPS / controllers
        else:
            continue
        own = mount / path.lstrip("/")
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(mount)]
    return folders
