"""Time to first token: a whole prompt from an empty state to the logits of its last token.

How often a prompt is timed is in `repetition`.
"""

import torch

from retbench.data import text
from retbench.workloads.context import Context, Measurement, Notes
from retbench.workloads.energy import weigh_energy
from retbench.workloads.metrics import prefill_metrics


@torch.inference_mode()
def measure(context: Context) -> Measurement:
    """Seconds of several prefills of the cell's context length."""
    point = context.cell.point
    tokens = text.read_rows(point.batch_size, point.context_len).to(context.device)
    state = context.model.init_state(point.batch_size, point.context_len)
    empty = state.mark()

    def rewind() -> None:
        state.rewind(empty)

    def prefill() -> None:
        context.model.prefill(tokens, state)

    context.forget_what_ran()
    samples = context.time_calls(prefill, rewind)
    metrics = prefill_metrics(context.cell, samples, context.ceilings)

    def prefill_anew() -> None:
        rewind()
        prefill()

    num_tokens = point.batch_size * point.context_len
    energy = weigh_energy(context, prefill_anew, step_s=metrics["ttft_s"].value, tokens_per_step=num_tokens)
    notes: Notes = {"cuda_graph": False, "compile": False, "timed_calls": len(samples), **energy.notes}
    if state.capacity is not None:
        notes["kv_capacity"] = state.capacity
    return Measurement(
        metrics={**metrics, **energy.metrics},
        absent=energy.absent,
        backend={**context.model.executed_backends(), **notes},
    )
