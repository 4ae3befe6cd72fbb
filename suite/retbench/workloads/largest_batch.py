"""The largest batch whose decode step at a depth fits into the memory, found by trying.

A trial allocates a whole state with room for one token more than the depth and takes a step at that depth; then it is
let go. The batch is doubled until one does not fit, then the gap is halved until it is narrow enough. Nothing is timed,
and the state holds zeros: what is in it does not change how many bytes a step needs. The number of sequences of the
cell's point is 1: the batch is what is found, not what is asked for.

The memory is `memory_limit_bytes`, or without one all of a CUDA device that is free. On a CPU there is no end to it
that could be tried in safety, so there the limit must be set. The closed form is given what libraries leave of it, for
matrix products keep buffers of their own: `available_bytes`, as it is before the first trial that does not fit, for
the C library holds on to some of what such a trial had. So each of these cells has a worker of its own, and nothing is
timed in it. It is measured in one round only: it counts, and would count the same again.
"""

import gc
from collections.abc import Callable

import torch

from retbench.architectures import costs
from retbench.errors import UnsupportedError
from retbench.measure.limits import headroom_bytes, is_out_of_memory, return_freed_memory
from retbench.records.record import Metric
from retbench.workloads.context import Context, Measurement, Notes
from retbench.workloads.metrics import counted

RESOLUTION = 32
"""The batch is found to one sequence, or to a part in so many of itself where it is larger than that."""


def measure(context: Context) -> Measurement:
    """The largest batch found beside the closed form's; MemoryError where not even one sequence fits."""
    cell, settings = context.cell, context.cell.settings
    depth, weights = cell.point.context_len, costs.weight_bytes(cell.model, settings.dtype)
    before = _headroom_bytes(context)
    return_freed_memory()
    context.forget_what_ran()
    left: dict[int, int] = {}  # by batch: the bytes that may be taken after its trial

    def fits(batch_size: int) -> bool:
        fitted = _fits(context, batch_size)
        left[batch_size] = _headroom_bytes(context)
        return fitted

    found, step = find_largest(fits)
    if not found:
        raise MemoryError(
            f"not even one sequence of {depth:,} tokens fits into {before:,} bytes beside the weights"
        )
    available = weights + left[2 ** (found.bit_length() - 1)]  # the last of those that double and fit
    notes: Notes = {"cuda_graph": False, "compile": False, "state_source": "zeros", "trials": len(left)}
    return Measurement(
        metrics={
            "largest_batch": _sequences(found),
            "largest_batch_step": _sequences(step),
            "expected_largest_batch": _sequences(
                costs.largest_batch(cell.model, settings.dtype, available, depth)
            ),
            "memory_limit_bytes": counted(settings.memory_limit_bytes or weights + before),
            "available_bytes": counted(available),
        },
        backend={**context.model.executed_backends(), **notes},
    )


def _sequences(count: int) -> Metric:
    return Metric(unit="count", value=count)


def _headroom_bytes(context: Context) -> int:
    """Bytes that state and workspace may take; UnsupportedError where there is no safe end to them."""
    _let_go(context.device)
    headroom = headroom_bytes(context.device, context.cell.settings.memory_limit_bytes)
    if headroom is None:
        raise UnsupportedError(
            "largest_batch on a CPU needs a limit of the memory, or the kernel would end some process for want of it. "
            "Set memory_limit_bytes in the profile (--set memory_limit_bytes=1000000000)."
        )
    return headroom


def find_largest(fits: Callable[[int], bool]) -> tuple[int, int]:
    """The largest batch that fits, by doubling and then bisection.

    Args:
        fits: Whether a batch fits; taken to hold for every smaller one.

    Returns:
        The largest batch that was seen to fit, 0 where 1 does not; and how many sequences more did not fit: 1, or at
        most a part in `RESOLUTION`.
    """
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // RESOLUTION):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high - low


def _fits(context: Context, batch_size: int) -> bool:
    """Whether a decode step of so many sequences at the cell's depth finds the memory that it needs."""
    try:
        _step(context, batch_size)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fitted = False
    else:
        fitted = True
    _let_go(context.device)  # here, where no traceback holds the tensors of a step that failed
    return fitted


@torch.inference_mode()
def _step(context: Context, batch_size: int) -> None:
    """One decode step at the cell's depth, all of its memory allocated and written to."""
    depth = context.cell.point.context_len
    state = context.model.init_state(batch_size, depth + 1)
    state.position = depth
    context.model(torch.zeros(batch_size, 1, dtype=torch.int64, device=context.device), state)
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)


def _let_go(device: torch.device) -> None:
    """Free what a trial left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
