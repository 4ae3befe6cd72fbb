"""Metrics of a cell from its samples: the arithmetic, without torch, so that made-up times can test it."""

from collections.abc import Sequence
from statistics import median

from retbench.architectures import costs
from retbench.measure.power import EnergyUse
from retbench.planning.cells import Cell
from retbench.records.record import Ceilings, Metric
from retbench.units import tokens_per_second

ENERGY_METRICS = ("energy_per_token_j", "power_w")
"""What `energy_metrics` gives, or, where there is no counter, what is absent."""


def timed(samples: Sequence[float]) -> Metric:
    """Seconds: the median of the samples, with every sample."""
    return Metric(unit="s", value=median(samples), samples=tuple(samples))


def counted(num_bytes: int) -> Metric:
    """A number of bytes."""
    return Metric(unit="bytes", value=num_bytes)


def decode_metrics(cell: Cell, samples: Sequence[float], ceilings: Ceilings) -> dict[str, Metric]:
    """Metrics of decode steps at one depth.

    Args:
        cell: The cell; its context length is the depth.
        samples: Seconds of each step. A step gives every sequence of the batch one token.
        ceilings: What the device reached.
    """
    batch, depth = cell.point.batch_size, cell.point.context_len
    step = timed(samples)
    num_bytes = costs.decode_bytes(cell.model, cell.settings.dtype, batch, depth)
    flops = costs.decode_flops(cell.model, batch, depth)
    moved_at_best_s = num_bytes / ceilings.read_bandwidth_bytes_per_s
    at_best_s = max(moved_at_best_s, flops / ceilings.matmul_flops_per_s)
    return {
        "tpot_s": step,
        "tokens_per_s": Metric(unit="tokens/s", value=tokens_per_second(batch, step.value)),
        "bytes_per_step": counted(num_bytes),
        "flops_per_step": Metric(unit="FLOP", value=flops),
        "bandwidth_ratio": Metric(unit="ratio", value=moved_at_best_s / step.value),
        "roofline_ratio": Metric(unit="ratio", value=at_best_s / step.value),
    }


def prefill_flops(cell: Cell, batch_size: int, context_len: int) -> int:
    """Operations of prompts in the form that a cell runs; the parallel form takes each segment as one chunk."""
    return costs.prefill_flops(cell.model, batch_size, context_len, cell.backend, cell.chunk_size)


def prefill_metrics(cell: Cell, samples: Sequence[float], ceilings: Ceilings) -> dict[str, Metric]:
    """Metrics of whole prompts.

    Args:
        cell: The cell; its context length is the prompt's.
        samples: Seconds of each call. A call processes the prompts of the whole batch.
        ceilings: What the device reached.
    """
    batch, length = cell.point.batch_size, cell.point.context_len
    call = timed(samples)
    num_bytes = costs.prefill_bytes(cell.model, cell.settings.dtype, batch, length)
    flops = prefill_flops(cell, batch, length)
    moved_at_best_s = num_bytes / ceilings.read_bandwidth_bytes_per_s
    at_best_s = max(moved_at_best_s, flops / ceilings.matmul_flops_per_s)
    return {
        "ttft_s": call,
        "tokens_per_s": Metric(unit="tokens/s", value=tokens_per_second(batch * length, call.value)),
        "bytes_per_call": counted(num_bytes),
        "flops_per_call": Metric(unit="FLOP", value=flops),
        "roofline_ratio": Metric(unit="ratio", value=at_best_s / call.value),
    }


def energy_metrics(use: EnergyUse, tokens_per_step: int) -> dict[str, Metric]:
    """Metrics of a window of repeated steps.

    Args:
        use: What they took, idle power included.
        tokens_per_step: Tokens of one step, those of every sequence.
    """
    per_token_j = use.energy_j / (use.num_steps * tokens_per_step)
    found = (Metric(unit="J", value=per_token_j), Metric(unit="W", value=use.power_w))
    return dict(zip(ENERGY_METRICS, found, strict=True))


def training_flops(cell: Cell) -> int:
    """Operations of one training step of a cell, in the form that it runs."""
    batch, length, settings = cell.point.batch_size, cell.point.context_len, cell.settings
    recomputed = settings.activation_checkpointing
    return costs.training_flops(
        cell.model, batch, length, cell.backend, cell.chunk_size, recomputed=recomputed
    )


def training_metrics(cell: Cell, samples: Sequence[float], ceilings: Ceilings) -> dict[str, Metric]:
    """Metrics of training steps.

    Args:
        cell: The cell; its context length is that of each sequence.
        samples: Seconds of each step. A step learns from every token of the batch.
        ceilings: What the device reached.
    """
    step = timed(samples)
    num_tokens = cell.point.batch_size * cell.point.context_len
    flops = training_flops(cell)
    return {
        "step_s": step,
        "tokens_per_s": Metric(unit="tokens/s", value=tokens_per_second(num_tokens, step.value)),
        "flops_per_step": Metric(unit="FLOP", value=flops),
        "roofline_ratio": Metric(unit="ratio", value=flops / ceilings.matmul_flops_per_s / step.value),
    }
