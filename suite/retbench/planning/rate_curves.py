"""Rates of operators by footprint: calls are timed one after another until all of its memory was read."""

from collections.abc import Callable, Sequence
from statistics import median

import torch

from retbench.errors import UnsupportedError
from retbench.measure.clock import time_in_turn
from retbench.planning.prediction import Curve
from retbench.units import MIB

_WARMUP_S = 0.1
_NUM_WARMUPS, _NUM_SAMPLES = 3, 9
_SAMPLE_BYTES = {"cpu": 32 * MIB, "cuda": 256 * MIB}
"""Bytes that a timed sample reads at least."""

Call = Callable[[], object]

Operator = tuple[int, Callable[[], Call]]
"""Bytes that a call of an operator moves, and a function that allocates new ones and returns the call."""


def rate_curve(
    operator: Operator, footprints: Sequence[int], device: torch.device, *, call_s: float = 0.0
) -> Curve:
    """Return the rate of an operator, in bytes per second, by footprint.

    Args:
        operator: The called operator.
        footprints: Bytes, the smallest first.
        device: Device that the calls run on.
        call_s: Seconds of a call in addition to those of its bytes, which are subtracted.

    Raises:
        UnsupportedError: a call took no longer than `call_s`.
    """
    num_bytes, make = operator
    calls: list[Call] = []
    rates = []
    for footprint in footprints:
        calls += [make() for _ in range(max(1, footprint // num_bytes) - len(calls))]
        repeats = max(1, _SAMPLE_BYTES[device.type] // (num_bytes * len(calls)))
        seconds = median_seconds(calls, device, repeats=repeats)
        rates.append((footprint, num_bytes / positive(seconds - call_s)))
    return tuple(rates)


def positive(seconds: float) -> float:
    """Return the difference of two measured times; UnsupportedError where the part took longer than the whole."""
    if seconds <= 0:
        raise UnsupportedError(
            "rates of operators cannot be measured: other processes disturb them so much that a part took longer than "
            "the whole. Try again while nothing else runs."
        )
    return seconds


def median_seconds(calls: Sequence[Call], device: torch.device, *, repeats: int = 1) -> float:
    """Return the seconds of a call, of several that are made in turn: the median of samples of `time_in_turn`."""
    return median(
        time_in_turn(calls, device=device, warmup_s=_WARMUP_S, min_steps=_NUM_SAMPLES, repeats=repeats)
    )


def median_of(measure: Callable[[], float]) -> float:
    """Return the median of a measurement that times parts of itself, after some that do not count."""
    return median([measure() for _ in range(_NUM_WARMUPS + _NUM_SAMPLES)][_NUM_WARMUPS:])
