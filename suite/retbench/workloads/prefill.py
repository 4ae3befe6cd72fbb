"""Time to first token: a whole prompt from an empty state to the logits of its last token.

How often a prompt is timed: `MIN_CALLS` times, and then as often as fits into `BUDGET_S` in all, up to the
profile's `min_steps`. A prompt that takes a third of a second or longer is thus timed three times. Every
sample is in the record.
"""

from collections.abc import Sequence
from statistics import median

import torch

from retbench.data import text
from retbench.measure.clock import time_steps
from retbench.workloads.context import Context, Measurement, Notes
from retbench.workloads.metrics import prefill_metrics

BUDGET_S = 1.0
MIN_CALLS = 3


def more_calls(samples: Sequence[float], min_steps: int) -> int:
    """How many calls are timed beyond the first few, given how many seconds those took."""
    fitting = int(BUDGET_S / median(samples))
    return max(0, min(fitting, min_steps) - len(samples))


@torch.inference_mode()
def measure(context: Context) -> Measurement:
    """Seconds of several prefills of the cell's context length."""
    settings, point = context.cell.settings, context.cell.point
    tokens = text.read_rows(point.batch_size, point.context_len).to(context.device)
    state = context.model.init_state(point.batch_size, point.context_len)
    empty = state.mark()

    def rewind() -> None:
        state.rewind(empty)

    def prefill() -> None:
        context.model.prefill(tokens, state)

    context.forget_what_ran()
    samples = time_steps(
        prefill, rewind, device=context.device, warmup_s=settings.warmup_s, min_steps=MIN_CALLS
    )
    more = more_calls(samples, settings.min_steps)
    if more:
        samples += time_steps(prefill, rewind, device=context.device, warmup_s=0.0, min_steps=more)
    notes: Notes = {"cuda_graph": False, "timed_calls": len(samples)}
    if state.capacity is not None:
        notes["kv_capacity"] = state.capacity
    return Measurement(
        metrics=prefill_metrics(context.cell, samples, context.ceilings),
        backend={**context.model.ran(), **notes},
    )
