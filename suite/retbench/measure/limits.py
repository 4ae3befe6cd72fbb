"""Limits on the memory of a worker, and detection of out-of-memory errors of the host or of a device."""

import errno
import gc
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import psutil

from retbench.errors import UnsupportedError
from retbench.measure import allocator
from retbench.measure.machine import status_bytes
from retbench.ops import GPU_SHORTAGE
from retbench.units import format_bytes

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_OUT_OF_MEMORY: dict[type[Exception], tuple[str, ...]] = {
    RuntimeError: (
        "can't allocate memory",
        "not enough memory",
        *GPU_SHORTAGE,
        "bad_alloc",
        "alloc_failed",
    ),
    ImportError: ("cannot allocate memory",),
}
"""Parts of the messages of torch's CPU allocator, CUDA, the C++ library and cuBLAS; of the dynamic loader."""

_OUT_OF_LIMIT: dict[type[Exception], tuple[str, ...]] = {
    RuntimeError: ("can't start new thread", "could not create a primitive", "could not execute a primitive"),
    ImportError: ("failed to map segment",),
}
"""The same of threading, oneDNN and the dynamic loader, where the memory of this process is limited. Elsewhere another
limit may be at fault, on the number of processes or on what may be executed, or the inputs of a primitive."""

_reserved_before: dict["torch.device", int] = {}
"""Bytes that torch's allocator held on a CUDA device when it was limited, such as the workspaces of cuBLAS."""

_lifted: list[int] = []
"""The limit that the process had before each of this package's."""


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory of the host or of a device ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return _says(error, _OUT_OF_MEMORY) or (_is_limited() and _says(error, _OUT_OF_LIMIT))


def _says(error: Exception, messages: dict[type[Exception], tuple[str, ...]]) -> bool:
    """Return whether the message of an error has any of the parts that belong to its kind."""
    message = str(error).lower()
    return any(
        isinstance(error, kind) and any(words in message for words in found)
        for kind, found in messages.items()
    )


def _is_limited() -> bool:
    """Return whether the memory of this process is limited, by this package or from outside."""
    limits = (resource.RLIMIT_DATA, resource.RLIMIT_AS)
    return any(resource.getrlimit(one)[0] != resource.RLIM_INFINITY for one in limits)


def try_in_memory(call: Callable[[], T], device: "torch.device") -> T | None:
    """Return the result of a call; None where memory ran out, which is then free again."""
    try:
        return call()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free_memory(device)  # outside the handler, where no traceback holds the tensors of the failed call
    return None


def free_memory(device: "torch.device") -> None:
    """Free the memory that a measurement left behind, and return it to the kernel or the device."""
    import torch

    gc.collect()
    allocator.return_free_pages()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_blas_handles(device: "torch.device", *, gradients: bool) -> None:
    """Multiply on a CUDA device while it has memory left, so that the handles of cuBLAS exist.

    Each thread needs a handle for its first product, and autograd computes gradients in another thread. On a full
    device it cannot be made, and the error, CUBLAS_STATUS_NOT_INITIALIZED, does not say that memory ran out.
    """
    import torch

    if device.type == "cuda":
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            one = torch.ones(1, 1, device=device, requires_grad=gradients)
            product = one @ one
            if gradients:
                product.backward()


def limit_memory(limit_bytes: int, device: "torch.device") -> None:
    """Limit the memory that this process may allocate from now on; beyond it, allocations are out of memory.

    On a CPU the kernel enforces the limit on the growth of writable private memory (RLIMIT_DATA of setrlimit(2)). Call
    this once torch's threads have run, so that their stacks and buffers are not counted, and before the model is built.
    On CUDA torch's allocator enforces it and counts whole blocks, without what it holds already, such as workspaces of
    cuBLAS, and without memory of CUDA itself.

    Raises:
        UnsupportedError: the limit exceeds the available memory, or the system cannot enforce it.
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
        before, hard = resource.getrlimit(resource.RLIMIT_DATA)
        _lifted.append(before)
        resource.setrlimit(resource.RLIMIT_DATA, (_written_bytes() + limit_bytes, hard))


@contextmanager
def lift_limit() -> Iterator[None]:
    """Let the block take more memory than the limit on a CPU; what it keeps does not count towards the limit."""
    if not _lifted:
        yield
        return
    limit, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = _written_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (_lifted[-1], hard))
    try:
        yield
    finally:
        limit += _written_bytes() - before
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _limit_cuda(limit_bytes: int, device: "torch.device") -> None:
    """Limit the share of the device's memory that torch's allocator may use."""
    import torch

    total = torch.cuda.get_device_properties(device).total_memory
    _require(limit_bytes, total, f"are on {device}")
    torch.cuda.empty_cache()
    held = _reserved_before[device] = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + limit_bytes) / total), device)


def headroom_bytes(device: "torch.device", limit_bytes: int | None) -> int | None:
    """Return the bytes that this process may still allocate; None on a CPU without a limit, where it is unknown.

    Args:
        device: Device of the models.
        limit_bytes: The limit given to `limit_memory`, if any.
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        taken = torch.cuda.memory_reserved(device) - _reserved_before.get(device, 0)
        return free if limit_bytes is None else min(free, limit_bytes - taken)
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if limit == resource.RLIM_INFINITY else limit - _written_bytes()


def _require(limit_bytes: int, available_bytes: int, where: str) -> None:
    """Raise an UnsupportedError if the limit exceeds the available memory."""
    if limit_bytes > available_bytes:
        raise UnsupportedError(
            f"memory_limit_bytes is {limit_bytes:,} ({format_bytes(limit_bytes)}), and {format_bytes(available_bytes)} "
            f"{where}. Give less (--set memory_limit_bytes={available_bytes // 2})."
        )


def _written_bytes() -> int:
    """Return the writable private memory of this process as RLIMIT_DATA counts it: VmData of proc_pid_status(5)."""
    written = status_bytes("VmData")
    if written is None:
        raise UnsupportedError(
            "memory_limit_bytes is set, and this kernel does not report VmData in /proc/self/status, which the limit "
            "is added to. Use a profile without it."
        )
    return written
