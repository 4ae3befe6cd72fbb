"""Memory that a call needs in addition to what was allocated before; measured in a separate pass, never timed."""

import gc
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

# There is no public path to it; documented for users in PyTorch's "Extending PyTorch".
from torch.utils._python_dispatch import TorchDispatchMode

from retbench.measure.clock import check_device
from retbench.measure.machine import status_bytes

_ALLOCATED_BEFORE_DISPATCH = frozenset({torch.ops.aten.lift_fresh.default})
"""torch.tensor(...) allocates first and passes its result to this operator."""

PeakSource = Literal["during the call", "since the process began"]


@dataclass(frozen=True)
class MemoryUse:
    """Memory use of one call.

    Attributes:
        workspace_bytes: Peak of live tensor bytes during the call, less those live before it: temporaries and results.
        process_peak_bytes: Largest resident size of this process on the host.
        process_peak_since: Begin of the period of that peak: the call if the kernel's high-water mark can be reset
            before it, otherwise the start of the process.
        device_peak_bytes: Peak of the bytes allocated by PyTorch on the GPU; None on a CPU.
        reserved_peak_bytes: Peak of the bytes that PyTorch's allocator reserved on the GPU; None on a CPU.
    """

    workspace_bytes: int
    process_peak_bytes: int
    process_peak_since: PeakSource
    device_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None


def measure_memory(call: Callable[[], object], device: torch.device) -> MemoryUse:
    """Measure the memory that one `call` needs.

    On a CPU every operator is observed: each storage that it returns counts once, whatever its views, until it is
    freed. On CUDA the workspace is the allocator's peak less the bytes allocated before.
    Excludes: on a CPU, memory that an operator allocates and frees internally (packing for a matrix product, buffers
    per thread), which `process_peak_bytes` includes; on CUDA, memory that libraries allocate without PyTorch.

    Args:
        call: Called once. Call it once before, so that one-off allocations (a library's workspace) are not included.
        device: Device of `call`.

    Raises:
        UnsupportedError: the device is neither a CPU nor CUDA.
    """
    check_device(device, "memory can be measured")
    gc.collect()
    was_reset = _reset_process_peak()
    if device.type == "cuda":
        return _measure_cuda(call, device, was_reset)
    with StorageTracker() as tracker:
        call()
    return MemoryUse(tracker.peak_bytes, *_process_peak(was_reset))


def _measure_cuda(call: Callable[[], object], device: torch.device, was_reset: bool) -> MemoryUse:
    torch.cuda.synchronize(device)
    allocated_before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    reserved_peak = torch.cuda.max_memory_reserved(device)
    return MemoryUse(peak - allocated_before, *_process_peak(was_reset), peak, reserved_peak)


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of CPU storages that are allocated and freed while it is entered.

    A storage that first appears as the result of an operator is new. One that first appears as an argument existed
    before: it is not counted, but subtracted when it is freed, as an allocator would do.

    Attributes:
        live_bytes: Bytes allocated so far less those freed; negative if more were freed.
        peak_bytes: The largest `live_bytes` so far, at least 0.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return false: nothing is compiled in here, and to see to that torch would load its compiler, for 3 s."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and count the storages that it returns."""
        kwargs = kwargs or {}
        # Under inference_mode a composite operator is not decomposed; its parts allocate too, and must be counted.
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
        """Track a storage; one that is tracked already may have been resized."""
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
        """Subtract a freed storage."""
        self.live_bytes -= self._sizes.pop(key)
        del self._references[key]


def _cpu_tensors(value: object) -> Iterator[Tensor]:
    """Yield every CPU tensor with a storage in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        if value.device.type == "cpu" and value.layout is torch.strided:
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _cpu_tensors(item)
    elif isinstance(value, dict):
        yield from _cpu_tensors(list(value.values()))


def _reset_process_peak() -> bool:
    """Reset the high-water mark of this process to the present resident size; return False if that is not possible.

    Source: proc_pid_clear_refs(5), value 5, since Linux 4.0.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _process_peak(was_reset: bool) -> tuple[int, PeakSource]:
    """Return the kernel's high-water mark of this process in bytes, and the begin of its period."""
    if was_reset and (high_water_mark := status_bytes("VmHWM")) is not None:
        return high_water_mark, "during the call"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage(2): KiB on Linux, bytes on macOS.
    return (peak if sys.platform == "darwin" else peak * 1024), "since the process began"
