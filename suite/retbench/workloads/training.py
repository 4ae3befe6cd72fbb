"""Cost of a training step: forward over real text, cross-entropy, backward and AdamW; its memory, then its time.

The learning rate is zero: the weights, which other cells share, do not change, and the arithmetic is that of any other
rate. Weights, gradients and the optimiser's averages are in the model's dtype; there is no wider copy of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from retbench.planning.cells import Cell
from retbench.records.record import Ceilings, Metric
from retbench.workloads.metrics import (
    EFFICIENCY,
    counted,
    estimated_calls_seconds,
    training_flops,
    training_metrics,
)
from retbench.workloads.workload import (
    PROCESS_PEAK,
    ROOFLINE,
    TOKENS_PER_S,
    WEIGHTS,
    WORKSPACE,
    Measurement,
    MetricSpec,
    Notes,
    Workload,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import AdamW, Optimizer

    from retbench.models.decoder import Decoder
    from retbench.workloads.context import Context


def training_step(model: "Decoder", optimizer: "Optimizer", rows: "Tensor") -> None:
    """Take one step on rows (B, T + 1): each of T tokens predicts the next; gradients are kept until the next step."""
    import torch.nn.functional as F

    from retbench.ops.retention import wide_dtype

    optimizer.zero_grad(set_to_none=True)
    logits = model(rows[:, :-1])  # (B, T, N)
    loss = F.cross_entropy(logits.flatten(0, 1).to(wide_dtype(logits.dtype)), rows[:, 1:].flatten())
    del logits  # in a 2-byte dtype the loss needs only their wide copy
    loss.backward()
    optimizer.step()


def measure(context: "Context") -> Measurement:
    """Measure the bytes of one step with their parts, then time several, at the cell's context length."""
    from retbench.data import text

    settings, point = context.cell.settings, context.cell.point
    rows = text.read_rows(point.batch_size, point.context_len + 1).to(context.device)
    with _in_training(context.model, checkpointing=settings.activation_checkpointing) as optimizer:
        step = partial(training_step, context.model, optimizer, rows)
        context.reset_backend_log()
        step()  # what is allocated once and kept is allocated here: the optimiser's averages, libraries' workspaces
        held, absent = _measure_step_memory(context, optimizer, step)
        samples = context.time_calls(step)
    notes: Notes = {
        "training": "+".join(sorted(set(context.model.ran().values()))),
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
def _in_training(model: "Decoder", *, checkpointing: bool) -> Iterator["AdamW"]:
    """Provide an optimiser and put the model into training mode; afterwards the model is as it was."""
    import torch
    from torch.optim import AdamW

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


def _measure_step_memory(
    context: "Context", optimizer: "Optimizer", step: partial[None]
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return the bytes of one step with their parts, and the metrics that are absent here.

    A step begins without gradients: beyond weights and averages its peak holds activations, temporaries and the
    gradients computed by then. The workspace is that peak less all gradients.
    """
    from retbench.measure.memory import measure_memory
    from retbench.workloads.context import device_peaks, weight_bytes

    optimizer.zero_grad(set_to_none=True)
    use = measure_memory(step, context.device)
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


def estimate(cell: Cell, ceilings: Ceilings) -> float:
    """Estimate the seconds of a cell in one round."""
    step_s = training_flops(cell) / ceilings.matmul_flops_per_s / EFFICIENCY
    return 2 * step_s + estimated_calls_seconds(
        step_s, cell.settings
    )  # one allocates, one's memory is measured


WORKLOAD = Workload(
    name="training",
    title="Cost of a training step",
    kind="cost",
    metrics=(
        MetricSpec("step_s", "time per step", True, has_interval=True, better="faster"),
        TOKENS_PER_S,
        MetricSpec("peak_bytes", "peak memory", True, better="less memory"),
        ROOFLINE,
        WEIGHTS,
        MetricSpec("gradient_bytes", "gradients", True),
        MetricSpec("optimizer_bytes", "optimizer", True),
        WORKSPACE,
        PROCESS_PEAK,
    ),
    quantity="time per training step",
    measure=measure,
    estimate=estimate,
    order=4,
    computes_gradients=True,
)
