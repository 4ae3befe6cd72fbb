"""Cost of a training step: forward over real text, cross-entropy, backward and AdamW; its memory, then its time.

The learning rate is zero: the weights, which other cells share, do not change, and the arithmetic is that of any other
rate. Weights, gradients and the optimiser's averages are in the model's dtype; there is no wider copy of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from retbench.errors import UnsupportedError
from retbench.planning.cells import Cell
from retbench.records.record import Ceilings
from retbench.workloads import metrics
from retbench.workloads.workload import Measurement, MetricSpec, Workload

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import AdamW, Optimizer

    from retbench.models.decoder import Decoder
    from retbench.workloads.context import Context


def training_step(model: "Decoder", optimizer: "Optimizer", rows: "Tensor") -> None:
    """Take one step on rows (B, T + 1): each of T tokens predicts the next; gradients are kept until the next step."""
    import torch.nn.functional as F

    from retbench.ops.precision import wide_dtype

    optimizer.zero_grad(set_to_none=True)
    logits = model(rows[:, :-1])  # (B, T, N)
    loss = F.cross_entropy(logits.flatten(0, 1).to(wide_dtype(logits.dtype)), rows[:, 1:].flatten())
    del logits  # in a 2-byte dtype the loss needs only their wide copy
    loss.backward()
    optimizer.step()


def measure(context: "Context") -> Measurement:
    """Measure the bytes of one step with their parts, then time several, at the cell's context length."""
    from retbench.measure.ceilings import with_product_rate
    from retbench.models.decoder import Decoder

    settings, model = context.cell.settings, context.model
    if not isinstance(model, Decoder):
        raise UnsupportedError(
            f"'{context.cell.model_name}' is a model of another library, whose training is not measured here. "
            "Leave it out of this experiment."
        )
    rows = context.read_tokens(context.cell.point.context_len + 1)
    with _in_training(model, checkpointing=settings.activation_checkpointing) as optimizer:
        step = partial(training_step, model, optimizer, rows)
        context.reset_backend_log()
        step()  # what is allocated once and kept is allocated here: the optimiser's averages, libraries' workspaces
        memory = _measure_step_memory(context, optimizer, step)
        samples = context.time_calls(step)
    ceilings = with_product_rate(context.ceilings_at(None), context.device, model.dtype)
    timed = metrics.training_metrics(context.cell, samples, ceilings)
    return Measurement(
        metrics={**timed.metrics, **memory.metrics},
        absent={**timed.absent, **memory.absent},
        backend={
            "training": model.executed_names,
            **context.layout_notes,
            "optimizer": "AdamW, fused, learning rate 0",
            "activation_checkpointing": settings.activation_checkpointing,
            "cuda_graph": False,
            "timed_calls": len(samples),
        },
        ceilings=ceilings,
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
    context: "Context", optimizer: "Optimizer", step: Callable[[], object]
) -> Measurement:
    """Measure the bytes of one step and of their parts.

    A step begins without gradients: beyond weights and averages its peak holds activations, temporaries and the
    gradients computed by then. The workspace is that peak less all gradients.
    """
    optimizer.zero_grad(set_to_none=True)
    use, peaks = context.measure_memory(step)
    weights = context.weight_bytes
    gradients = sum(weight.grad.nbytes for weight in context.model.parameters() if weight.grad is not None)
    averages = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    held = {
        "weight_bytes": weights,
        "gradient_bytes": gradients,
        "optimizer_bytes": averages,
        "workspace_bytes": use.workspace_bytes - gradients,
        "peak_bytes": weights + averages + use.workspace_bytes,
        "process_peak_bytes": use.process_peak_bytes,
    }
    counted = {name: metrics.counted(value) for name, value in held.items()}
    return Measurement({**peaks.metrics, **counted}, absent=peaks.absent)


def estimate(cell: Cell, ceilings: Ceilings) -> float:
    """Estimate the seconds of a cell in one round."""
    step_s = metrics.training_flops(cell) / ceilings.matmul_flops_per_s / metrics.EFFICIENCY
    # Two steps more: one allocates, one measures memory.
    return 2 * step_s + metrics.estimated_calls_seconds(step_s, cell.settings)


WORKLOAD = Workload(
    name="training",
    title="Cost of a training step",
    metrics=(
        MetricSpec("step_s", "time per step", True, has_interval=True, better="faster"),
        metrics.TOKENS_PER_S,
        MetricSpec("peak_bytes", "peak memory", True, better="less memory"),
        metrics.ROOFLINE,
        metrics.WEIGHTS,
        MetricSpec("gradient_bytes", "gradients", True),
        MetricSpec("optimizer_bytes", "optimizer", True),
        metrics.WORKSPACE,
        metrics.PROCESS_PEAK,
    ),
    quantity="time per training step",
    measure=measure,
    estimate=estimate,
    order=4,
    computes_gradients=True,
)
