"""Cost of a training step: forward over real text, cross-entropy, backward and AdamW; its memory, then its time.

The learning rate is zero: the weights, which other cells share, stay what they are, and the arithmetic is that of any
other rate. Weights, gradients and the optimiser's averages are in the model's dtype; there is no wider copy of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW, Optimizer

from retbench.data import text
from retbench.measure.memory import MemoryUse, measure_memory
from retbench.models.decoder import Decoder
from retbench.ops.retention import wide_dtype
from retbench.records.record import Metric
from retbench.workloads.context import Context, Measurement, Notes
from retbench.workloads.memory import device_peaks, weight_bytes
from retbench.workloads.metrics import counted, training_metrics


def training_step(model: Decoder, optimizer: Optimizer, rows: Tensor) -> None:
    """One step on rows (B, T + 1): each of T tokens foretells the next; the gradients are kept until the next step."""
    optimizer.zero_grad(set_to_none=True)
    logits = model(rows[:, :-1])  # (B, T, N)
    loss = F.cross_entropy(logits.flatten(0, 1).to(wide_dtype(logits.dtype)), rows[:, 1:].flatten())
    del logits  # in a 2-byte dtype the loss needs only their wide copy
    loss.backward()
    optimizer.step()


def measure(context: Context) -> Measurement:
    """Bytes of one step with its parts, then seconds of several, at the cell's context length."""
    settings, point = context.cell.settings, context.cell.point
    rows = text.read_rows(point.batch_size, point.context_len + 1).to(context.device)
    with _in_training(context.model, checkpointing=settings.activation_checkpointing) as optimizer:
        step = partial(training_step, context.model, optimizer, rows)
        context.forget_what_ran()
        step()  # what is allocated once and kept is allocated here: the optimiser's averages, libraries' workspaces
        held, absent = _weigh(context, optimizer, step)
        samples = context.time_calls(step)
    notes: Notes = {
        "training": "+".join(sorted(set(context.model.executed_backends().values()))),
        "optimizer": "AdamW, fused, learning rate 0",
        "activation_checkpointing": settings.activation_checkpointing,
        "cuda_graph": False,
        "timed_calls": len(samples),
    }
    return Measurement(
        metrics={**training_metrics(context.cell, samples, context.ceilings), **held},
        absent=absent,
        backend={**notes},
    )


@contextmanager
def _in_training(model: Decoder, *, checkpointing: bool) -> Iterator[AdamW]:
    """An optimiser of a model that takes gradients; afterwards neither is left, and the model is as it was."""
    optimizer = AdamW(model.parameters(), lr=0.0, fused=True)
    model.train()
    model.activation_checkpointing = checkpointing
    try:
        with torch.enable_grad():
            yield optimizer
    finally:
        optimizer.zero_grad(set_to_none=True)
        model.activation_checkpointing = False
        model.eval()


def _weigh(
    context: Context, optimizer: Optimizer, step: partial[None]
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Bytes of one step and of their parts, and what cannot be had here.

    A step begins without gradients: what is alive at its peak beyond weights and averages is activations, temporaries
    and those gradients that are there by then. The workspace is that peak less all gradients.
    """
    optimizer.zero_grad(set_to_none=True)
    use: MemoryUse = measure_memory(step, context.device)
    weights = weight_bytes(context.model)
    gradients = sum(weight.grad.nbytes for weight in context.model.parameters() if weight.grad is not None)
    averages = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    on_device, absent = device_peaks(use)
    held = {
        **on_device,
        "weight_bytes": counted(weights),
        "gradient_bytes": counted(gradients),
        "optimizer_bytes": counted(averages),
        "workspace_bytes": counted(use.workspace_bytes - gradients),
        "peak_bytes": counted(weights + averages + use.workspace_bytes),
        "process_peak_bytes": counted(use.process_peak_bytes),
    }
    return held, absent
