"""Wall time of single steps, after a warm-up by wall time; every sample is kept.

Workloads define the steps, and `retbench.stats` evaluates the samples over rounds.
"""

import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from retbench.errors import UnsupportedError
from retbench.measure.limits import is_out_of_memory
from retbench.measure.nvml import sample_device

_CAPTURE_WARMUP_STEPS = 3
"""Warm-up steps before a capture: num_warmup_iters of PyTorch's make_graphed_callables."""
_a_capture_failed = False


def check_device(device: torch.device, what: str) -> None:
    """Raise an UnsupportedError that starts with `what` if the device is neither a CPU nor CUDA."""
    if device.type not in {"cpu", "cuda"}:
        raise UnsupportedError(f"device '{device}': {what} on 'cpu' and 'cuda' only. Give one of them.")


def time_call(call: Callable[[], object]) -> float:
    """Return the seconds of one call on a CPU, without pauses of Python's garbage collector."""
    with _collector_off():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def time_steps(
    step: Callable[[], object],
    before: Callable[[], object],
    *,
    device: torch.device,
    warmup_s: float,
    min_steps: int,
    sampled: bool = False,
) -> list[float]:
    """Return the seconds of each of `min_steps` calls of `step`, in order.

    Includes: everything until the device has finished `step`. On a CPU that is the call. On CUDA it is the time
    between two events on the current stream, which includes waiting for a slower host.
    Excludes: `before`, the warm-up, Python's garbage collector (off from the first step to the last).
    Unit: s. Resolution: nanoseconds on a CPU, about half a microsecond on CUDA.

    Args:
        step: The timed call.
        before: Called before every `step`, also in the warm-up, and not timed: restores the state that `step` changes.
        device: Device of `step`.
        warmup_s: Wall time of untimed steps before the first sample; one step is run even if it is 0.
        min_steps: Number of samples, at least 1.
        sampled: Read the clocks of a GPU during these steps, for the record of the cell that they measure.

    Raises:
        UnsupportedError: the device is neither a CPU nor CUDA.
    """
    check_device(device, "steps can be timed")
    with _collector_off():
        _warm_up(step, before, device, warmup_s)
        if device.type == "cuda":
            return _time_on_cuda(step, before, device, min_steps, sampled=sampled)
        return _time_on_cpu(step, before, min_steps)


def time_in_turn(
    calls: Sequence[Callable[[], object]],
    *,
    device: torch.device,
    warmup_s: float,
    min_steps: int,
    repeats: int = 1,
) -> list[float]:
    """Return the mean seconds of a call in each of `min_steps` samples, which make all calls in turn several times.

    On CUDA a sample is a replay of a graph, which the host does not delay. Times, arguments and errors are otherwise
    those of `time_steps`.

    Args:
        calls: The timed calls; what they read and write stays in place.
        device: Device of the calls.
        warmup_s: Wall time of untimed samples before the first.
        min_steps: Number of samples, at least 1.
        repeats: Times that a sample makes all calls, at least 1.
    """
    run = in_turn(calls, repeats)
    if device.type == "cuda":
        run = capture_graph(run, device=device)
    samples = time_steps(run, lambda: None, device=device, warmup_s=warmup_s, min_steps=min_steps)
    return [seconds / (repeats * len(calls)) for seconds in samples]


def in_turn(calls: Sequence[Callable[[], object]], repeats: int = 1) -> Callable[[], None]:
    """Return a call of all calls in turn, several times."""

    def run() -> None:
        for _ in range(repeats):
            for call in calls:
                call()

    return run


@contextmanager
def _collector_off() -> Iterator[None]:
    """Disable Python's garbage collector, whose pauses are not part of a step: 0.2 s where torch compiles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _warm_up(
    step: Callable[[], object], before: Callable[[], object], device: torch.device, warmup_s: float
) -> None:
    """Run untimed steps until `warmup_s` have passed, at least one.

    Waiting after each step prevents a CUDA host from queueing thousands of steps in that time.
    """
    end = time.perf_counter() + warmup_s
    while True:
        before()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if time.perf_counter() >= end:
            return


def _time_on_cpu(step: Callable[[], object], before: Callable[[], object], num_steps: int) -> list[float]:
    """Return the seconds of each step by the host's clock."""
    samples = []
    for _ in range(num_steps):
        before()
        start = time.perf_counter()
        step()
        samples.append(time.perf_counter() - start)
    return samples


def _time_on_cuda(
    step: Callable[[], object],
    before: Callable[[], object],
    device: torch.device,
    num_steps: int,
    *,
    sampled: bool,
) -> list[float]:
    """Return the seconds of each step between two events on the current stream, read after one wait for all."""
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(num_steps)
    ]
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device)
        for start, end in events:
            before()
            start.record(stream)
            step()
            end.record(stream)
        if sampled:
            # The device still works on the queued steps: its clocks are now those of the measurement.
            sample_device()
        torch.cuda.synchronize(device)
    # elapsed_time is in milliseconds.
    return [start.elapsed_time(end) / 1000 for start, end in events]


def capture_graph(
    step: Callable[[], object], *, device: torch.device, before: Callable[[], object] = lambda: None
) -> Callable[[], None]:
    """Capture `step` as a CUDA graph, and return a function that replays its kernels with one launch.

    A graph reads and writes the captured addresses. Every tensor of `step` must therefore stay alive and in place:
    inputs, outputs and state are written in place. Python code in `step` is not repeated: a counter on the host, such
    as a position, does not advance, and results that depend on it stay as captured. `step` must not wait for the
    device.

    Args:
        step: Run three times to warm up and once to capture, all on one side stream.
        device: Device of `step`.
        before: Called before each of these four runs, outside the graph: restores the state that `step` changes.

    Returns:
        A function that replays the graph on the current stream of `device`, without waiting for it.

    Raises:
        UnsupportedError: the device is not CUDA, or `step` cannot be captured.
        RuntimeError: memory ran out, in any of the forms that `limits.is_out_of_memory` recognises.
    """
    if device.type != "cuda":
        raise UnsupportedError(
            f"cuda_graph is on and the device is '{device}': CUDA graphs need a CUDA device. "
            "Set cuda_graph = false in the profile (--set cuda_graph=false), or give --device cuda."
        )
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        side = _capture_stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_CAPTURE_WARMUP_STEPS):
                before()
                step()
            # Raises the errors of the warm-up, which are not the capture's.
            torch.cuda.synchronize(device)
            before()
            _record_graph(graph, step, before, side, device)
        torch.cuda.current_stream(device).wait_stream(side)
    return graph.replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the side stream of all warm-ups and captures on a device.

    Libraries keep a handle and a workspace of tens of megabytes for every stream. These cannot be created during a
    capture, and with a new stream per capture they would add to the next cell's memory.
    """
    return torch.cuda.Stream(device)


def has_failed_capture() -> bool:
    """Return whether a capture failed in this process, which cannot go on with CUDA then.

    A failed capture leaves the allocator in capture mode (pytorch#180395), and keeps its memory (pytorch#190308).
    """
    return _a_capture_failed


def _record_graph(
    graph: torch.cuda.CUDAGraph,
    step: Callable[[], object],
    before: Callable[[], object],
    stream: torch.cuda.Stream,
    device: torch.device,
) -> None:
    """Capture one run of `step`; raise an UnsupportedError if that fails for another reason than memory."""
    global _a_capture_failed
    gc.collect()  # now and not in the capture, which tensors and events would spoil that are freed there
    try:
        with _collector_off(), torch.cuda.graph(graph, stream=stream):
            step()
    except RuntimeError as error:
        _a_capture_failed = True
        # Ending a failed capture raises a second error over the first.
        causes = [one for one in (error.__context__, error) if isinstance(one, Exception)]
        shortage = next(filter(is_out_of_memory, causes), None) or _retry_eagerly(step, before, device)
        if shortage is not None:
            raise shortage from None
        raise UnsupportedError(
            f"the step cannot be captured in a CUDA graph on '{device}': {causes[0]}. "
            "Set cuda_graph = false in the profile (--set cuda_graph=false)."
        ) from error


def _retry_eagerly(
    step: Callable[[], object], before: Callable[[], object], device: torch.device
) -> RuntimeError | None:
    """Run a step whose capture failed once more without a graph; return its error if memory runs out, else None.

    In a capture the allocator may free cached blocks when memory runs out. That invalidates the capture, whose error
    then does not mention memory (pytorch#159594).
    """
    try:
        before()
        step()
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        # Any other error is a consequence of the failed capture, which is reported instead.
        return error if is_out_of_memory(error) else None
    return None
