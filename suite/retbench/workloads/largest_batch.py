"""The largest batch whose decode step at a depth fits into the memory, found by trying.

A trial allocates a whole state with room for one token more than the depth, takes a step at that depth and frees the
state. The batch is doubled until one does not fit, then bisected until the gap is narrow enough. Nothing is timed, and
the state holds zeros: its contents do not change how many bytes a step needs. The batch size of the cell's point is 1:
the batch is found, not given.

The memory is `memory_limit_bytes`, or without a limit all that is free on a CUDA device. On a CPU it cannot be filled
safely, so the limit must be set there. The analytical batch is computed from what libraries leave, because matrix
products keep buffers: `available_bytes`, taken before the first trial that does not fit, because the C library keeps
some of the memory of such a trial. So each of these cells has its own worker, and nothing is timed in it. One round is
enough: another would count the same.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from retbench.architectures import costs
from retbench.config.evaluation import GridSpec
from retbench.errors import UnsupportedError
from retbench.planning.cells import Cell
from retbench.records.record import Ceilings, Metric
from retbench.workloads.metrics import counted, estimated_step_seconds
from retbench.workloads.workload import Measurement, MetricSpec, Notes, Workload, without_gradients

if TYPE_CHECKING:
    from retbench.workloads.context import Context

RESOLUTION = 32
"""The batch is found to one sequence, or to one part in so many where it is larger."""

SEARCH_TRIALS = 8
"""Estimated time of a search, in trials of the batch that it finds."""

FIRST_WRITE = 15
"""Estimated time of writing to memory for the first time on a CPU, in times of reading it."""

SEARCH_START_S = 2.0
"""Estimated time of starting the worker that each of these cells has."""


class LargestBatchSpec(GridSpec):
    """The table `largest_batch`: context lengths, without a batch size."""

    @model_validator(mode="after")
    def _finds_batch(self) -> Self:
        if self.batch_size != (1,):
            raise ValueError(
                f"batch_size is {list(self.batch_size)} in workload 'largest_batch', which finds the batch size "
                "itself; remove the field"
            )
        return self


@without_gradients
def measure(context: "Context") -> Measurement:
    """Find the largest batch, with the analytical one beside it; MemoryError where not even one sequence fits."""
    from retbench.measure.allocator import return_freed_memory
    from retbench.measure.limits import try_in_memory
    from retbench.ops.linear import RowProducts

    # With less than some 500 KB left under a limit oneDNN ends the process by a segmentation fault.
    context.model.set_row_products(RowProducts())
    cell, settings = context.cell, context.cell.settings
    depth, weights = cell.point.context_len, context.weight_bytes
    before = _headroom_bytes(context)
    return_freed_memory()
    context.reset_backend_log()
    left: dict[int, int] = {}  # by batch: the bytes that may be taken after its trial

    def fits(batch_size: int) -> bool:
        fitted = try_in_memory(partial(_step, context, batch_size), context.device) or False
        left[batch_size] = _headroom_bytes(context)
        return fitted

    found, step = find_largest(fits)
    if not found:
        raise MemoryError(
            f"not even one sequence of {depth:,} tokens fits into {before:,} bytes beside the weights"
        )
    available = weights + left[2 ** (found.bit_length() - 1)]  # the last of those that double and fit
    notes: Notes = {"cuda_graph": False, "compile": False, "state_source": "zeros", "trials": len(left)}
    metrics = {
        "largest_batch": _sequences(found),
        "largest_batch_step": _sequences(step),
        "memory_limit_bytes": counted(settings.memory_limit_bytes or weights + before),
        "available_bytes": counted(available),
    }
    reason = costs.missing_reason(cell.model)
    if reason is None:
        expected = costs.largest_batch(cell.model, settings.dtype, available, depth)
        metrics["expected_largest_batch"] = _sequences(expected)
    return Measurement(
        metrics=metrics,
        absent={} if reason is None else {"expected_largest_batch": reason},
        backend=context.backend_with(notes),
    )


def _sequences(count: int) -> Metric:
    return Metric(unit="count", value=count)


def _headroom_bytes(context: "Context") -> int:
    """Return the bytes that state and workspace may take; UnsupportedError where no limit keeps them safe."""
    from retbench.measure.limits import free_memory, headroom_bytes

    free_memory(context.device)
    headroom = headroom_bytes(context.device, context.cell.settings.memory_limit_bytes)
    if headroom is None:
        raise UnsupportedError(
            "largest_batch on a CPU needs a limit of the memory; without it the kernel would kill some process. "
            "Set memory_limit_bytes in the profile (--set memory_limit_bytes=1000000000)."
        )
    return headroom


def find_largest(fits: Callable[[int], bool]) -> tuple[int, int]:
    """Find the largest batch that fits, by doubling and then bisection.

    Args:
        fits: Returns whether a batch fits; if one does, every smaller one is assumed to.

    Returns:
        The largest batch that fitted, 0 where 1 does not; and how many sequences more did not fit: 1, or at most one
        part in `RESOLUTION`.
    """
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // RESOLUTION):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high - low


def _step(context: "Context", batch_size: int) -> bool:
    """Take one decode step at the cell's depth, with all of its memory allocated and written to; return True."""
    import torch

    depth = context.cell.point.context_len
    state = context.model.init_state(batch_size, depth + 1)
    state.start_at(depth)
    context.model(torch.zeros(batch_size, 1, dtype=torch.int64, device=context.device), state)
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)
    return True


def estimate(cell: Cell, ceilings: Ceilings) -> float:
    """Estimate the seconds of a cell, whose batch size is the one expected to be found."""
    point = cell.point
    state = costs.state_bytes(cell.model, cell.settings.dtype, point.batch_size, point.context_len + 1)
    filled_s = FIRST_WRITE * state / ceilings.read_bandwidth_bytes_per_s
    return SEARCH_START_S + SEARCH_TRIALS * (filled_s + estimated_step_seconds(cell, ceilings))


WORKLOAD = Workload(
    name="largest_batch",
    title="Largest batch",
    metrics=(
        MetricSpec("largest_batch", "largest batch", False, better="more sequences", unit="count"),
        MetricSpec("largest_batch_step", "resolution", unit="count"),
        MetricSpec("expected_largest_batch", "analytical", unit="count"),
        MetricSpec("memory_limit_bytes", "memory limit"),
        MetricSpec("available_bytes", "left by libraries"),
    ),
    quantity="largest batch that fits",
    spec=LargestBatchSpec,
    measure=measure,
    estimate=estimate,
    order=5,
    one_round=True,
    finds_batch=True,
)
