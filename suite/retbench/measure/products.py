"""Which product with one row is the faster one on this CPU."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from retbench.ops.linear import WIDE_OUTPUT, stream
from retbench.units import MIB

_NUM_SAMPLES = 5
_READ_BYTES = 48 * MIB
"""Bytes of the weights of each kind, which a step of a small model reads too."""
_SHAPES = ((1024, 1024), (512, 2 * WIDE_OUTPUT))
"""Inputs and outputs of a narrow and of a wide product."""
_CLEARLY = 0.9
"""Streaming is chosen if it takes less than this share of the time: between equals all processes choose alike."""


_found: bool | None = None
"""The outcome in this process, measured or told by another; None before it was asked for."""


def streaming_is_faster() -> bool:
    """Return whether `ops.linear.stream` clearly beats torch's product with one row, on torch's present threads.

    Both multiply weights as `ops.linear.Linear` stores them, in float32. It is measured once per process, unless
    another process has: see `agree`.
    """
    global _found
    if _found is None:
        _found = measure_streaming()
    return _found


def found() -> bool | None:
    """Return what `streaming_is_faster` found in this process; None before it was asked."""
    return _found


def agree(streams: bool) -> None:
    """Take what another process has found, so that all models of a run are multiplied alike."""
    global _found
    _found = streams


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
