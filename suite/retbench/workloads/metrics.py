"""Arithmetic of the workloads, without torch: metrics of a cell from its samples, and estimates of its time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from retbench.architectures import costs
from retbench.measure.power import UPDATE_S, WINDOW_S, EnergyUse
from retbench.planning.cells import Cell, Settings
from retbench.planning.prediction import roofline
from retbench.records.record import FAULTY_CEILING, Ceilings, Metric
from retbench.units import tokens_per_second
from retbench.workloads.workload import Measurement, MetricSpec

ENERGY_METRICS = ("energy_per_token_j", "power_w")
"""Metrics that `energy_metrics` returns, and that are absent without an energy counter."""

ENERGY = (
    MetricSpec(
        "energy_per_token_j", "energy per token", True, has_interval=True, optional=True, better="less energy"
    ),
    MetricSpec("power_w", "power", optional=True),
)
TOKENS_PER_S = MetricSpec("tokens_per_s", "tokens/s", False, has_interval=True, better="more throughput")
ROOFLINE = MetricSpec("roofline_ratio", "% of roofline", has_interval=True)
OF_DECODE_STEPS = (
    ROOFLINE,
    MetricSpec("bandwidth_ratio", "% of bandwidth"),
    MetricSpec("bytes_per_step", "bytes per step", True),
    *ENERGY,
)
WEIGHTS = MetricSpec("weight_bytes", "weights", True)
WORKSPACE = MetricSpec("workspace_bytes", "workspace", True)
PROCESS_PEAK = MetricSpec("process_peak_bytes", "process, peak", True)

MIN_CALLS = 3
BUDGET_S = 0.5
"""A long call is timed `MIN_CALLS` times, then as often as fits into so many seconds in all, up to `min_steps`."""

READ_RATE_S = 0.4
"""Seconds of measuring a read rate on CUDA: four kernels, each warmed up for 0.1 s, and few short samples."""

EFFICIENCY = 0.5
"""Estimated share of the roofline that a step or a prefill reaches."""


def more_calls(samples: Sequence[float], min_steps: int) -> int:
    """Return how many calls are timed beyond the first few, given how many seconds those took."""
    fitting = int(BUDGET_S / median(samples))
    return max(0, min(fitting, min_steps) - len(samples))


def timed(samples: Sequence[float]) -> Metric:
    """Return the median of the samples in seconds, with every sample."""
    return Metric(unit="s", value=median(samples), samples=tuple(samples))


def counted(num_bytes: int) -> Metric:
    """Return a number of bytes as a metric."""
    return Metric(unit="bytes", value=num_bytes)


def decode_metrics(cell: Cell, samples: Sequence[float], ceilings: Ceilings) -> Measurement:
    """Return the metrics of decode steps at one depth.

    Args:
        cell: The cell; its context length is the depth.
        samples: Seconds of each step. A step gives every sequence of the batch one token.
        ceilings: Bandwidth and FLOP/s that the device reached.
    """
    batch, depth = cell.point.batch_size, cell.point.context_len
    num_bytes = decode_bytes(cell)
    if num_bytes is None:
        return _measured_only(cell, "tpot_s", "step", samples, batch)
    flops = costs.decode_flops(cell.model, batch, depth)
    found = _of_calls("tpot_s", "step", samples, batch, flops, num_bytes, ceilings)
    at_best_s = num_bytes / ceilings.read_bytes_per_s(num_bytes)
    return with_shares(found, {"bandwidth_ratio": at_best_s / found.metrics["tpot_s"].value})


def decode_bytes(cell: Cell) -> int | None:
    """Return the bytes that a decode step of a cell must move; None for a model without analytical costs."""
    point = cell.point
    if costs.missing_reason(cell.model):
        return None
    return costs.decode_bytes(cell.model, cell.settings.dtype, point.batch_size, point.context_len)


def prefill_bytes(cell: Cell) -> int | None:
    """Return the bytes that the prompts of a cell must move; None for a model without analytical costs."""
    point = cell.point
    if costs.missing_reason(cell.model):
        return None
    return costs.prefill_bytes(cell.model, cell.settings.dtype, point.batch_size, point.context_len)


def with_shares(found: Measurement, shares: Mapping[str, float]) -> Measurement:
    """Add shares of ceilings to what was measured; one above 1 is absent, because its ceiling is none."""
    sound = {name: Metric(unit="ratio", value=share) for name, share in shares.items() if share <= 1}
    faulty = dict.fromkeys(shares.keys() - sound.keys(), FAULTY_CEILING)
    return replace(found, metrics={**found.metrics, **sound}, absent={**found.absent, **faulty})


def prefill_flops(cell: Cell, batch_size: int, context_len: int) -> int:
    """Return the FLOPs of prompts in the form that a cell runs."""
    return costs.prefill_flops(cell.model, batch_size, context_len, cell.backend, cell.chunk_size)


def prefill_metrics(cell: Cell, samples: Sequence[float], ceilings: Ceilings) -> Measurement:
    """Return the metrics of whole prompts.

    Args:
        cell: The cell; its context length is the prompt's.
        samples: Seconds of each call. A call processes the prompts of the whole batch.
        ceilings: Bandwidth and FLOP/s that the device reached.
    """
    batch, length = cell.point.batch_size, cell.point.context_len
    num_bytes = prefill_bytes(cell)
    if num_bytes is None:
        return _measured_only(cell, "ttft_s", "call", samples, batch * length)
    flops = prefill_flops(cell, batch, length)
    return _of_calls("ttft_s", "call", samples, batch * length, flops, num_bytes, ceilings)


def _measured_only(
    cell: Cell, name: str, call: str, samples: Sequence[float], num_tokens: int
) -> Measurement:
    """Return the metrics of timed calls of a model without analytical costs: the time, and tokens per second."""
    shares = (ROOFLINE.name, "bandwidth_ratio") if call == "step" else (ROOFLINE.name,)
    reason = costs.missing_reason(cell.model)
    assert reason is not None
    return Measurement(
        _times(name, samples, num_tokens),
        absent=dict.fromkeys((f"bytes_per_{call}", f"flops_per_{call}", *shares), reason),
    )


def _times(name: str, samples: Sequence[float], num_tokens: int) -> dict[str, Metric]:
    """Return the time `name` of a call, and the tokens per second."""
    seconds = timed(samples)
    rate = Metric(unit="tokens/s", value=tokens_per_second(num_tokens, seconds.value))
    return {name: seconds, "tokens_per_s": rate}


def _of_calls(
    name: str,
    call: str,
    samples: Sequence[float],
    num_tokens: int,
    flops: int,
    num_bytes: int | None,
    ceilings: Ceilings,
) -> Measurement:
    """Return the metrics of timed calls: the time `name`, tokens per second, work per call, and share of the roofline.

    Without `num_bytes`, the roofline is that of the FLOPs alone.
    """
    times = _times(name, samples, num_tokens)
    moved_s = num_bytes / ceilings.read_bytes_per_s(num_bytes) if num_bytes else 0.0
    at_best_s = max(moved_s, flops / ceilings.matmul_flops_per_s)
    found = {
        **times,
        **({} if num_bytes is None else {f"bytes_per_{call}": counted(num_bytes)}),
        f"flops_per_{call}": Metric(unit="FLOP", value=flops),
    }
    return with_shares(Measurement(found), {ROOFLINE.name: at_best_s / times[name].value})


def energy_metrics(use: EnergyUse, tokens_per_step: int) -> dict[str, Metric]:
    """Return the metrics of a window of repeated steps.

    Args:
        use: Energy and time of the window, idle power included.
        tokens_per_step: Tokens of one step over all sequences.
    """
    per_token_j = use.energy_j / (use.num_steps * tokens_per_step)
    found = (Metric(unit="J", value=per_token_j), Metric(unit="W", value=use.power_w))
    return dict(zip(ENERGY_METRICS, found, strict=True))


def training_flops(cell: Cell) -> int:
    """Return the FLOPs of one training step of a cell, in the form that it runs."""
    batch, length, settings = cell.point.batch_size, cell.point.context_len, cell.settings
    recomputed = settings.activation_checkpointing
    return costs.training_flops(
        cell.model, batch, length, cell.backend, cell.chunk_size, recomputed=recomputed
    )


def training_metrics(cell: Cell, samples: Sequence[float], ceilings: Ceilings) -> Measurement:
    """Return the metrics of training steps.

    Args:
        cell: The cell; its context length is that of each sequence.
        samples: Seconds of each step. A step learns from every token of the batch.
        ceilings: Bandwidth and FLOP/s that the device reached.
    """
    num_tokens = cell.point.batch_size * cell.point.context_len
    return _of_calls("step_s", "step", samples, num_tokens, training_flops(cell), None, ceilings)


def training_bytes(cell: Cell) -> int:
    """Estimate the bytes of weights, gradients and two averages of them, kept activations, and logits."""
    settings, point = cell.settings, cell.point
    return costs.training_memory_bytes(
        cell.model,
        settings.dtype,
        point.batch_size,
        point.context_len,
        cell.backend,
        checkpointing=settings.activation_checkpointing,
    )


def estimated_step_seconds(cell: Cell, ceilings: Ceilings) -> float:
    """Estimate the time of one decode step at the cell's point."""
    step_seconds = roofline(ceilings, cell.settings.dtype)
    return step_seconds(cell.model, cell.point.batch_size, cell.point.context_len) / EFFICIENCY


def estimated_prefill_seconds(cell: Cell, batch_size: int, context_len: int, ceilings: Ceilings) -> float:
    """Estimate the time of one prefill by the cell's model."""
    return prefill_flops(cell, batch_size, context_len) / ceilings.matmul_flops_per_s / EFFICIENCY


def estimated_calls_seconds(call_s: float, settings: Settings) -> float:
    """Estimate the time of warming up and timing a long call."""
    calls = MIN_CALLS + more_calls([call_s] * MIN_CALLS, settings.min_steps)
    return max(settings.warmup_s, call_s) + calls * call_s


def estimated_read_rates_seconds(cell: Cell) -> float:
    """Estimate the time of both read rates of a timed cell; 0 on a CPU, where they are not warmed up."""
    return 0.0 if cell.settings.device == "cpu" else 2 * READ_RATE_S


def estimated_energy_seconds(cell: Cell, step_s: float) -> float:
    """Estimate the time of repeating a step to measure its energy; 0 on a CPU, which has no counter."""
    return 0.0 if cell.settings.device == "cpu" else max(WINDOW_S + 2 * UPDATE_S, step_s)
