"""Time to first token: a whole prompt from an empty state to the logits of its last token."""

from typing import TYPE_CHECKING

from retbench.planning.cells import Cell
from retbench.records.record import Ceilings
from retbench.workloads import metrics
from retbench.workloads.workload import Measurement, MetricSpec, Workload, without_gradients

if TYPE_CHECKING:
    from retbench.workloads.context import Context


@without_gradients
def measure(context: "Context") -> Measurement:
    """Time several prefills of the cell's context length."""
    point = context.cell.point
    footprint_bytes = metrics.prefill_bytes(context.cell)
    context.measure_read_rate(footprint_bytes)
    tokens = context.read_tokens(point.context_len)
    state = context.model.init_state(point.batch_size, point.context_len)
    empty = state.mark()

    def rewind() -> None:
        state.rewind(empty)

    def prefill() -> None:
        context.model.prefill(tokens, state)

    context.reset_backend_log()
    samples = context.time_calls(prefill, rewind)
    context.measure_read_rate(footprint_bytes, again=True)
    ceilings = context.ceilings_at(footprint_bytes)
    timed = metrics.prefill_metrics(context.cell, samples, ceilings)

    def prefill_anew() -> None:
        rewind()
        prefill()

    num_tokens = point.batch_size * point.context_len
    call_s = timed.metrics["ttft_s"].value
    energy = context.measure_energy(prefill_anew, step_s=call_s, tokens_per_step=num_tokens)
    notes = {"cuda_graph": False, "compile": False, "timed_calls": len(samples), **energy.backend}
    return Measurement(
        metrics={**timed.metrics, **energy.metrics},
        absent={**timed.absent, **energy.absent},
        backend=context.backend_with(notes, state),
        ceilings=ceilings,
    )


def estimate(cell: Cell, ceilings: Ceilings) -> float:
    """Estimate the seconds of a cell in one round."""
    point = cell.point
    call_s = metrics.estimated_prefill_seconds(cell, point.batch_size, point.context_len, ceilings)
    calls_s = metrics.estimated_calls_seconds(call_s, cell.settings)
    rates_s = metrics.estimated_read_rates_seconds(cell)
    return calls_s + rates_s + metrics.estimated_energy_seconds(cell, call_s)


WORKLOAD = Workload(
    name="prefill",
    title="Prefill latency",
    metrics=(
        MetricSpec("ttft_s", "time to first token", True, has_interval=True, better="faster"),
        metrics.TOKENS_PER_S,
        metrics.ROOFLINE,
        *metrics.ENERGY,
    ),
    quantity="time to first token",
    measure=measure,
    estimate=estimate,
    order=2,
    reads_prompts=True,
)
