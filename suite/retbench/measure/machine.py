"""The host as the kernel describes it: processor, cores that this process may use, limits of its container.

Reads only, without torch. A fact that cannot be read is None here, and absent with a reason in `environment`.
"""

import hashlib
import math
import os
import platform
import re
import subprocess
import sys
import uuid
from pathlib import Path

import psutil

_PROC = Path("/proc")
_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_UNLIMITED_BYTES = 2**60
"""A memory limit above this is how cgroup v1 says that there is none."""


def read_text(path: Path) -> str | None:
    """Content of a small file of the kernel without white space around it; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def node_id() -> str:
    """Return a hash that identifies this host and from which neither its name nor its id can be recovered.

    A container without an id of its own is identified by its host name since the last boot.
    """
    known = next(
        (text for path in _MACHINE_IDS if re.fullmatch("[0-9a-f]{32}", text := read_text(path) or "")), None
    )
    boot = read_text(_PROC / "sys/kernel/random/boot_id") or f"{uuid.getnode():x}"
    own = known or f"{platform.node()} {boot}"
    return hashlib.sha256(f"retbench {own}".encode()).hexdigest()[:16]


def cpu_model() -> str:
    """Name of the processor as its maker writes it; the architecture where the system does not tell."""
    match = re.search(r"^model name\s*:\s*(.+)$", read_text(_PROC / "cpuinfo") or "", flags=re.MULTILINE)
    if match:
        return match.group(1).strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if name:
            return name
    return platform.processor() or platform.machine()


def physical_cores() -> int:
    """Cores of the machine, not counting their hardware threads, whoever may use them."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def allowed_cpus() -> list[int]:
    """Numbers of the logical CPUs that any thread of this process may run on.

    Not only the main thread's: OMP_PROC_BIND binds that to a single one when the OpenMP library is loaded.
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


def allowed_cores() -> list[list[int]]:
    """The allowed CPUs grouped by physical core: one list a core, of its hardware threads in order."""
    groups: dict[str, list[int]] = {}
    for cpu in allowed_cpus():
        siblings = read_text(_CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        groups.setdefault(siblings, []).append(cpu)
    return list(groups.values())


def usable_cores() -> int:
    """Physical cores that this process may keep busy, by its affinity and its container's CPU quota."""
    quota = cpu_quota()
    cores = len(allowed_cores())
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def last_level_cache_bytes() -> int:
    """Bytes of all last-level caches of the machine together; 0 where the kernel does not tell."""
    caches: dict[tuple[int, str], int] = {}
    for index in _CPUS.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, shared_by, size = (read_text(index / name) for name in ("level", "shared_cpu_list", "size"))
        if level and shared_by and size and size.endswith("K"):
            caches[int(level), shared_by] = int(size[:-1]) * 1024
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def cpu_quota() -> float | None:
    """CPUs' worth of time that the container may use; None where it is not limited."""
    limits = []
    for folder in _own_cgroups("cpu"):
        quota, _, period = (read_text(folder / "cpu.max") or "").partition(" ")
        if not period:
            quota = read_text(folder / "cpu.cfs_quota_us") or ""
            period = read_text(folder / "cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit_bytes() -> int | None:
    """Memory that the container may use; None where it is not limited."""
    limits = []
    for folder in _own_cgroups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = read_text(folder / name) or ""
            if limit.isdecimal() and int(limit) < _UNLIMITED_BYTES:
                limits.append(int(limit))
    return min(limits, default=None)


def _own_cgroups(controller: str) -> list[Path]:
    """Folders of this process's control group and its parents, of version 2 and of version 1 of cgroups.

    In a container the path is often the host's and not there; the mount's root then is the container's own
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
