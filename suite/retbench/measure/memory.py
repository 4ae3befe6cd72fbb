"""Bytes that a call needs beyond what was there before it: in a pass of its own, never while timing."""

import gc
import re
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

# The one place that has it; documented for users in PyTorch's "Extending PyTorch".
from torch.utils._python_dispatch import TorchDispatchMode

from retbench.errors import UnsupportedError

_ALLOCATED_BEFORE_DISPATCH = frozenset({torch.ops.aten.lift_fresh.default})
"""torch.tensor(...) allocates first and shows its result as the argument of this operator."""

PeakSource = Literal["during the call", "since the process began"]


@dataclass(frozen=True)
class MemoryUse:
    """What one call needed.

    Attributes:
        workspace_bytes: Peak of live tensor bytes during the call beyond those live before it: temporaries,
            and what the call allocated and kept.
        process_peak_bytes: Largest resident size of this process on the host.
        process_peak_since: The time that peak is of. The kernel's high-water mark is reset ahead of the call
            where it can be; where not, the peak is of the whole life of the process.
        device_peak_bytes: Peak of all that PyTorch's allocator had allocated on the GPU; None on a CPU.
        reserved_peak_bytes: Peak of what that allocator had taken from the GPU, its free blocks included;
            None on a CPU.
    """

    workspace_bytes: int
    process_peak_bytes: int
    process_peak_since: PeakSource
    device_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None


def measure_memory(call: Callable[[], object], device: torch.device) -> MemoryUse:
    """Bytes that one `call` needs.

    On a CPU the workspace is counted by watching every operator: storages it returns count once, however many
    views they have, until they are freed. On CUDA it is the allocator's peak less what was allocated before.
    Excludes: on a CPU, what an operator allocates and frees inside itself (packing in a matrix product, a
    kernel's buffers a thread), which `process_peak_bytes` shows; on CUDA, what libraries take past PyTorch's
    allocator.

    Args:
        call: Run once. Run it once before, untracked, so that one-off allocations (a library's workspace) are
            not in it.
        device: Where `call` runs.

    Raises:
        UnsupportedError: the device is neither a CPU nor CUDA.
    """
    if device.type not in {"cpu", "cuda"}:
        raise UnsupportedError(
            f"device '{device}': memory can be measured on 'cpu' and 'cuda'. Give one of them."
        )
    gc.collect()
    was_reset = _reset_process_peak()
    if device.type == "cuda":
        return _measure_cuda(call, device, was_reset)
    with StorageTracker() as tracker:
        call()
    return MemoryUse(tracker.peak_bytes, *_process_peak(was_reset))


def _measure_cuda(call: Callable[[], object], device: torch.device, was_reset: bool) -> MemoryUse:
    """The allocator's peaks over one call."""
    torch.cuda.synchronize(device)
    allocated_before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    reserved_peak = torch.cuda.max_memory_reserved(device)
    return MemoryUse(peak - allocated_before, *_process_peak(was_reset), peak, reserved_peak)


class StorageTracker(TorchDispatchMode):
    """While entered, counts the bytes of CPU storages that come and go.

    A storage that an operator returns and that was not seen before is new. One that is first seen as an
    argument was there before: it counts nothing while it lives, and is taken off when it is freed, as an
    allocator would do.

    Attributes:
        live_bytes: Bytes allocated so far less those freed; negative where more was freed than allocated.
        peak_bytes: The largest `live_bytes` so far, at least 0.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator, then count what it returned."""
        kwargs = kwargs or {}
        # Under inference_mode a composite operator arrives whole; its parts allocate too, and must be seen.
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if func not in _ALLOCATED_BEFORE_DISPATCH:
            for tensor in _cpu_tensors((args, kwargs)):
                self._notice(tensor.untyped_storage(), is_new=False)
        result = func(*args, **kwargs)
        for tensor in _cpu_tensors(result):
            self._notice(tensor.untyped_storage(), is_new=True)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _notice(self, storage: torch.UntypedStorage, *, is_new: bool) -> None:
        """Follow a storage from now on; one that is followed already may have been resized."""
        key, size = id(storage), storage.nbytes()
        if key in self._sizes:
            self.live_bytes += size - self._sizes[key]
        elif is_new:
            self.live_bytes += size
        self._sizes[key] = size
        if key not in self._references:
            # A storage's Python object lives exactly as long as its memory does.
            self._references[key] = weakref.ref(storage, lambda _: self._forget(key))

    def _forget(self, key: int) -> None:
        """A storage was freed."""
        self.live_bytes -= self._sizes.pop(key)
        del self._references[key]


def _cpu_tensors(value: object) -> Iterator[Tensor]:
    """Every CPU tensor with a storage in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        if value.device.type == "cpu" and value.layout is torch.strided:
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _cpu_tensors(item)
    elif isinstance(value, dict):
        yield from _cpu_tensors(list(value.values()))


def _reset_process_peak() -> bool:
    """Set the high-water mark of this process back to what is resident now; False where it cannot be.

    Source: proc_pid_clear_refs(5), value 5, since Linux 4.0.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _process_peak(was_reset: bool) -> tuple[int, PeakSource]:
    """Bytes of the kernel's high-water mark of this process, and the time it is of."""
    if was_reset:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        mark = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
        if mark:
            return int(mark.group(1)) * 1024, "during the call"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage(2): KiB on Linux, bytes on macOS.
    return (peak if sys.platform == "darwin" else peak * 1024), "since the process began"
