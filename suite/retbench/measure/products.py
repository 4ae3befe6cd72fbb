"""The faster product with one row: on a CPU by one of two methods, on a GPU by one of two layouts of the weights."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from retbench.measure import machine
from retbench.measure.clock import capture_graph, time_steps
from retbench.measure.limits import free_memory
from retbench.ops.linear import WIDE_OUTPUT, stored_weight, stream
from retbench.units import MIB

_NUM_SAMPLES = 5
_READ_BYTES = 48 * MIB
"""Bytes of the weights of each kind, which a step of a small model reads too."""
_SHAPES = ((1024, 1024), (512, 2 * WIDE_OUTPUT))
"""Inputs and outputs of a narrow and of a wide product."""
_CLEARLY = 0.9
"""Streaming is chosen if it takes less than this share of the time: between equals all processes choose alike."""

_LAYOUT_SHAPES = ((2048, 6144), (2048, 2048), (5504, 2048), (4096, 11008))
"""Inputs and outputs of the products by which layouts are compared: some of the Transformers of 1.3B and 6.7B."""
_CACHES = 4
"""Copies of a weight take at least so many times the bytes of the last cache."""
_CLEARLY_BY_OUTPUT = 0.97
"""Weights are stored by output if that takes less than this share of the time."""
_LAYOUT_WARMUP_S = 0.1
_LAYOUT_STEPS = 10

_found: bool | None = None
"""The outcome in this process, measured or told by another; None before it was asked for."""


def streaming_is_faster() -> bool:
    """Return whether `ops.linear.stream` clearly beats torch's product with one row, on torch's present threads.

    Both multiply weights as `ops.linear.Linear` stores them, in float32. It is measured once per process, unless
    another process has: see `agree`.
    """
    return _once(measure_streaming)


def storing_by_output_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether weights stored (out, in) clearly beat weights stored (in, out) in products with one row.

    It is measured once per process, unless another process has: see `agree`.

    Args:
        device: A CUDA device; nothing else may run on it.
        dtype: Dtype of the weights.
    """
    return _once(partial(measure_layouts, device, dtype))


def _once(measure: Callable[[], bool]) -> bool:
    """Return the outcome in this process, which is measured if it is not known."""
    global _found
    if _found is None:
        _found = measure()
    return _found


def found() -> bool | None:
    """Return the outcome in this process; None before it was asked for."""
    return _found


def agree(outcome: bool) -> None:
    """Take what another process has found on this device, so that all models of a run are multiplied alike."""
    global _found
    _found = outcome


def measure_layouts(device: torch.device, dtype: torch.dtype) -> bool:
    """Measure what `storing_by_output_is_faster` returns."""
    by_output, by_input = (
        sum(
            product_seconds(
                shape, 1, by_output=by_output, device=device, dtype=dtype, num_steps=_LAYOUT_STEPS
            )
            for shape in _LAYOUT_SHAPES
        )
        for by_output in (True, False)
    )
    free_memory(device)
    return by_output < _CLEARLY_BY_OUTPUT * by_input


@torch.inference_mode()
def product_seconds(
    shape: tuple[int, int],
    rows: int,
    *,
    by_output: bool,
    device: torch.device,
    dtype: torch.dtype,
    num_steps: int,
) -> float:
    """Return the median seconds of a product of some rows with a weight that no cache holds.

    As many copies of the weight as exceed the last cache are multiplied in turn, on CUDA from a graph.

    Args:
        shape: Inputs and outputs.
        rows: Rows that are multiplied.
        by_output: Whether the weight is stored (out, in) or (in, out).
        device: `cpu` or `cuda:N`; nothing else may run on it.
        dtype: Dtype of the weight and the rows.
        num_steps: Timed steps, each with all copies.
    """
    inputs, outputs = shape
    copies = max(2, math.ceil(_CACHES * _cache_bytes(device) / (inputs * outputs * dtype.itemsize)))
    values = torch.randn(outputs, inputs, device=device).to(dtype)
    weights = [stored_weight(values.clone(), by_output=by_output) for _ in range(copies)]
    x = torch.randn(rows, inputs, device=device).to(dtype)  # a graph does not keep its inputs alive
    step: Callable[[], object] = partial(multiply_all, x, weights)
    if device.type == "cuda":
        step = capture_graph(step, device=device)
    samples = time_steps(step, lambda: None, device=device, warmup_s=_LAYOUT_WARMUP_S, min_steps=num_steps)
    return median(samples) / copies


def multiply_all(x: Tensor, weights: Sequence[Tensor]) -> None:
    """Multiply x (rows, in) by each of several weights (out, in)."""
    for weight in weights:
        F.linear(x, weight)


def _cache_bytes(device: torch.device) -> int:
    """Return the bytes of the device's last cache."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return machine.last_level_cache_bytes()


def measure_streaming() -> bool:
    """Measure what `streaming_is_faster` returns."""
    with torch.inference_mode():
        seconds = [_seconds_of_both(*shape) for shape in _SHAPES]
    return sum(streamed for streamed, _ in seconds) < _CLEARLY * sum(usual for _, usual in seconds)


def _seconds_of_both(in_features: int, out_features: int) -> tuple[float, float]:
    """Return the least seconds of streamed and of usual products with many weights of one shape."""
    num_weights = _READ_BYTES // (in_features * out_features * torch.float32.itemsize)
    tables = torch.ones(num_weights, in_features, out_features, dtype=torch.float32, device="cpu").unbind()
    row = torch.ones(in_features, dtype=torch.float32, device="cpu")
    calls = (lambda table: stream(row, table), lambda table: F.linear(row[None], table.t()))
    samples = [[_seconds(call, tables) for call in calls] for _ in range(1 + _NUM_SAMPLES)]
    # The first of each also warms up.
    streamed, usual = (min(times) for times in zip(*samples[1:], strict=True))
    return streamed, usual


def _seconds(call: Callable[[Tensor], Tensor], tables: tuple[Tensor, ...]) -> float:
    start = time.perf_counter()
    for table in tables:
        call(table)
    return time.perf_counter() - start
