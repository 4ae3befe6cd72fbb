"""Time to first token: a whole prompt from an empty state to the logits of its last token."""

from typing import TYPE_CHECKING

from retbench.planning.cells import Cell
from retbench.records.record import Ceilings
from retbench.workloads.metrics import (
    estimated_calls_seconds,
    estimated_energy_seconds,
    estimated_prefill_seconds,
    prefill_metrics,
)
from retbench.workloads.workload import (
    ENERGY,
    ROOFLINE,
    TOKENS_PER_S,
    Measurement,
    MetricSpec,
    Notes,
    Workload,
    without_gradients,
)

if TYPE_CHECKING:
    from retbench.workloads.context import Context


@without_gradients
def measure(context: "Context") -> Measurement:
    """Time several prefills of the cell's context length."""
    from retbench.data import text

    point = context.cell.point
    tokens = text.read_rows(point.batch_size, point.context_len).to(context.device)
    state = context.model.init_state(point.batch_size, point.context_len)
    empty = state.mark()

    def rewind() -> None:
        state.rewind(empty)

    def prefill() -> None:
        context.model.prefill(tokens, state)

    context.reset_backend_log()
    samples = context.time_calls(prefill, rewind)
    metrics = prefill_metrics(context.cell, samples, context.ceilings)

    def prefill_anew() -> None:
        rewind()
        prefill()

    num_tokens = point.batch_size * point.context_len
    energy = context.measure_energy(prefill_anew, step_s=metrics["ttft_s"].value, tokens_per_step=num_tokens)
    notes: Notes = {"cuda_graph": False, "compile": False, "timed_calls": len(samples), **energy.notes}
    if state.capacity is not None:
        notes["kv_capacity"] = state.capacity
    return Measurement(
        metrics={**metrics, **energy.metrics},
        absent=energy.absent,
        backend={**context.model.ran(), **notes},
    )


def estimate(cell: Cell, ceilings: Ceilings) -> float:
    """Estimate the seconds of a cell in one round."""
    call_s = estimated_prefill_seconds(cell, cell.point.batch_size, cell.point.context_len, ceilings)
    return estimated_calls_seconds(call_s, cell.settings) + estimated_energy_seconds(cell, call_s)


WORKLOAD = Workload(
    name="prefill",
    title="Prefill latency",
    kind="cost",
    metrics=(
        MetricSpec("ttft_s", "time to first token", True, has_interval=True, better="faster"),
        TOKENS_PER_S,
        ROOFLINE,
        *ENERGY,
    ),
    quantity="time to first token",
    measure=measure,
    estimate=estimate,
    order=2,
    reads_prompts=True,
)
