"""Seconds of single steps: warmed by wall time, timed one at a time, every sample kept.

What a step is belongs to the workload; what its times mean over rounds belongs to `statistics`.
"""

import functools
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from retbench.errors import UnsupportedError

_CAPTURE_WARMUP_STEPS = 3
"""What PyTorch's own make_graphed_callables runs ahead of a capture (num_warmup_iters)."""


def time_steps(
    step: Callable[[], object],
    before: Callable[[], object],
    *,
    device: torch.device,
    warmup_s: float,
    min_steps: int,
) -> list[float]:
    """Seconds of each of `min_steps` calls of `step`, in the order taken.

    Includes: what `step` does until the device is done with it. On a CPU that is the call. On CUDA it is the
    time between two events on the current stream; waiting for the host is in it where the host is slower.
    Excludes: `before`, the warm-up, Python's garbage collector (off from the first step to the last).
    Unit: s. Resolution: nanoseconds on a CPU, about half a microsecond on CUDA.

    Args:
        step: What is timed.
        before: Called ahead of every `step`, the warm-up's too, outside the clock: restores what `step`
            moves on.
        device: Where `step` runs.
        warmup_s: Wall time of untimed steps before the first sample; one step is run even when it is 0.
        min_steps: Samples to take, at least 1.

    Raises:
        UnsupportedError: the device is neither a CPU nor CUDA.
    """
    if device.type not in {"cpu", "cuda"}:
        raise UnsupportedError(
            f"device '{device}': steps can be timed on 'cpu' and 'cuda'. Give one of them."
        )
    with _collector_off():
        _warm_up(step, before, device, warmup_s)
        if device.type == "cuda":
            return _time_on_cuda(step, before, device, min_steps)
        return _time_on_cpu(step, before, min_steps)


@contextmanager
def _collector_off() -> Iterator[None]:
    """Keep Python's garbage collector from running inside: its pause of milliseconds is not the step's."""
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

    The wait after each keeps a CUDA host from queueing thousands of steps in that time.
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
    """Seconds of each step by the host's clock."""
    samples = []
    for _ in range(num_steps):
        before()
        start = time.perf_counter()
        step()
        samples.append(time.perf_counter() - start)
    return samples


def _time_on_cuda(
    step: Callable[[], object], before: Callable[[], object], device: torch.device, num_steps: int
) -> list[float]:
    """Seconds of each step between two events on the current stream, read after one wait for all of them."""
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
        torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1000 for start, end in events]  # elapsed_time is in ms


def capture_graph(
    step: Callable[[], object], *, device: torch.device, before: Callable[[], object] | None = None
) -> Callable[[], None]:
    """`step` as a CUDA graph: what is returned replays its kernels with one launch.

    A graph reads and writes the addresses it saw, so every tensor that `step` uses must stay where it is:
    inputs are refilled in place, outputs and state are written in place, and what `step` refers to is kept
    alive by the caller. Nothing that Python does in `step` is repeated: counters on the host, such as a
    position, stay as they are, and a result that depends on one is that of the capture. `step` must not wait
    for the device.

    Args:
        step: Run three times to warm up and once to capture, all on one side stream.
        device: Where `step` runs.
        before: Called ahead of each of these four runs, outside the graph: restores what `step` moves on.

    Returns:
        Replays the graph on the current stream of `device`, without waiting for it.

    Raises:
        UnsupportedError: the device is not CUDA, or `step` does something that a graph cannot hold.
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
                _restore(before)
                step()
            # An error of the warm-up is told here, and is none of the capture's.
            torch.cuda.synchronize(device)
            _restore(before)
            _record_graph(graph, step, side, device)
        torch.cuda.current_stream(device).wait_stream(side)
    return graph.replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The side stream of all captures on a device, for warm-up and capture alike.

    Libraries keep a handle and a workspace for every stream that they have run on: making one cannot be captured, and
    one of tens of megabytes that stays behind with every capture would be found in the next cell's memory.
    """
    return torch.cuda.Stream(device)


def _restore(before: Callable[[], object] | None) -> None:
    """Call `before` where there is one."""
    if before is not None:
        before()


def _record_graph(
    graph: torch.cuda.CUDAGraph, step: Callable[[], object], stream: torch.cuda.Stream, device: torch.device
) -> None:
    """Capture one run of `step`; UnsupportedError where it cannot be, but not for want of memory."""
    try:
        with torch.cuda.graph(graph, stream=stream):
            step()
    except RuntimeError as error:
        cause = (
            error.__context__ or error
        )  # ending a capture that failed raises a second error over the first
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        raise UnsupportedError(
            f"the step cannot be captured in a CUDA graph on '{device}': {cause}. "
            "Set cuda_graph = false in the profile (--set cuda_graph=false)."
        ) from error
