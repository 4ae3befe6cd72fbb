"""A ceiling on the memory of a worker, and how it shows that memory, of the host or of a device, does not suffice."""

import ctypes
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from retbench.errors import UnsupportedError
from retbench.units import format_bytes

if TYPE_CHECKING:
    import torch

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "alloc_failed",
)
"""In what torch's CPU allocator, CUDA, the C++ library and cuBLAS say, each in a plain RuntimeError."""

_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES = -3, 2**17
"""mallopt(3): the size from which glibc gives a freed block back, and its default."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory, of the host or of a device, did not suffice."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def limit_memory(limit_bytes: int, device: "torch.device") -> None:
    """Let this process take `limit_bytes` of memory from now on; what would be more is out of memory.

    On a CPU it is the kernel that refuses: writable private memory (RLIMIT_DATA of setrlimit(2)) may grow by that much
    over what it is now. To be called once torch's threads have run, so that their stacks and buffers are not counted,
    and before the model is built. On CUDA it is torch's allocator, which counts its blocks whole; what CUDA itself and
    libraries take beside it is not counted.

    Raises:
        UnsupportedError: more than there is, or a system whose kernel keeps no such limit.
    """
    if device.type == "cuda":
        _limit_cuda(limit_bytes, device)
    elif sys.platform != "linux":
        raise UnsupportedError(
            f"memory_limit_bytes is {limit_bytes:,}, and only Linux limits the memory that a process writes to; this "
            f"is {sys.platform}. Use a profile without it, or run on Linux."
        )
    else:
        _require(limit_bytes, psutil.virtual_memory().available, "are free here")
        limit = _written_bytes() + limit_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _limit_cuda(limit_bytes: int, device: "torch.device") -> None:
    """The share of the device's memory that torch's allocator may take."""
    import torch

    total = torch.cuda.get_device_properties(device).total_memory
    _require(limit_bytes, total, f"are on {device}")
    torch.cuda.set_per_process_memory_fraction(limit_bytes / total, device)


def headroom_bytes(device: "torch.device", limit_bytes: int | None) -> int | None:
    """Bytes that this process may still take; None on a CPU without a limit, where nobody can tell.

    Args:
        device: Where models run.
        limit_bytes: What `limit_memory` was given, if it was called.
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free if limit_bytes is None else min(free, limit_bytes - torch.cuda.memory_reserved(device))
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if limit == resource.RLIM_INFINITY else limit - _written_bytes()


def return_freed_memory() -> None:
    """From now on have every large block go back to the kernel when it is freed.

    glibc keeps blocks of up to 32 MiB for later use once one has been freed, in pieces that a larger one does not fit
    into, and they count towards the limit. It is not to be called where anything is timed afterwards: a step's
    temporaries would be fetched from the kernel each time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def _require(limit_bytes: int, there_bytes: int, where: str) -> None:
    """UnsupportedError for a limit above what is there: it could not be kept."""
    if limit_bytes > there_bytes:
        raise UnsupportedError(
            f"memory_limit_bytes is {limit_bytes:,} ({format_bytes(limit_bytes)}), and {format_bytes(there_bytes)} "
            f"{where}. Give less (--set memory_limit_bytes={there_bytes // 2})."
        )


def _written_bytes() -> int:
    """Bytes of writable private memory of this process, as RLIMIT_DATA counts it: VmData of proc_pid_status(5)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmData:\s+(\d+) kB$", status, flags=re.MULTILINE)
    if found is None:
        raise UnsupportedError(
            "memory_limit_bytes is set, and this kernel does not tell VmData in /proc/self/status, from which the "
            "limit counts. Use a profile without it."
        )
    return int(found.group(1)) * 1024
