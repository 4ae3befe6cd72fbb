"""Roughly what a training step holds at its peak, without torch, for estimates; what it does hold is measured."""

from retbench.architectures import costs
from retbench.planning.cells import Cell


def estimated_bytes(cell: Cell) -> int:
    """Return weights, gradients and two averages of them, what the blocks keep for the gradients, and the logits."""
    settings, point = cell.settings, cell.point
    return costs.training_memory_bytes(
        cell.model,
        settings.dtype,
        point.batch_size,
        point.context_len,
        cell.backend,
        checkpointing=settings.activation_checkpointing,
    )
