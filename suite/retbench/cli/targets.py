"""The devices that `retbench predict` predicts for: from a datasheet, from records, or measured now."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from retbench.architectures.configs import ModelConfig
from retbench.cli.in_process import alone_on_machine, become_worker
from retbench.errors import RecordError, shown
from retbench.measure import machine
from retbench.measure.environment import machine_name
from retbench.papers.papers import find_datasheet
from retbench.planning.prediction import StepTime, expected, roofline
from retbench.records.record import Ceilings, ReadRate
from retbench.running.devices import find_device


@dataclass(frozen=True)
class PredictionTarget:
    """A device that is predicted for.

    Attributes:
        title: The device in words.
        source: Origin of its ceilings.
        memory_bytes: None if unknown.
        step_time: Gives the time of a step.
        dtype: Dtype of the weights.
        ceilings: Bandwidth and products, which bound the time; None where it is the expected time.
    """

    title: str
    source: str
    memory_bytes: int | None
    step_time: StepTime
    dtype: str
    ceilings: Ceilings | None


def _bounded(
    title: str, source: str, memory_bytes: int | None, ceilings: Ceilings, dtype: str
) -> PredictionTarget:
    """Return a target whose ceilings bound the time of a step."""
    return PredictionTarget(title, source, memory_bytes, roofline(ceilings, dtype), dtype, ceilings)


def datasheet_target(device: str, dtype: str) -> PredictionTarget:
    """Return a device by its datasheet; it need not be on this machine."""
    sheet = find_datasheet(device)
    return _bounded(sheet.title, sheet.source, sheet.usable_bytes, sheet.ceilings(dtype), dtype)


def recorded_target(path: Path, dtype: str | None) -> PredictionTarget:
    """Return the device of the newest records, by the ceilings that they reached.

    Args:
        path: Folder or file of records.
        dtype: Dtype of the records to take; that of the newest when None.

    Raises:
        RecordError: there are no such records.
    """
    from retbench.report.frames import load_results, set_of
    from retbench.report.selection import choose_conditions

    records = [
        record
        for record in load_results(path).records
        if record.ceilings and dtype in (None, record.settings.get("dtype"))
    ]
    if not records:
        raise RecordError(
            f"no record at {shown(str(path))} has ceilings{f' at {dtype}' if dtype else ''}. "
            "Give another --dtype, or measure: `retbench run latency`."
        )
    newest, _ = choose_conditions(records)
    found = [record.ceilings for record in newest if record.ceilings]
    ceilings = _median_ceilings(found)
    key, gpu = set_of(newest[-1]), newest[-1].environment.get("gpu")
    return _bounded(
        title=str(key.machine),
        source=f"median of {len(found)} records in {path}, {newest[-1].started_at[:10]}",
        memory_bytes=gpu.get("memory_bytes") if isinstance(gpu, dict) else None,
        ceilings=ceilings,
        dtype=str(key.dtype),
    )


def _median_ceilings(found: Sequence[Ceilings]) -> Ceilings:
    """Return the medians of the ceilings of several records, of the curve at the sizes that all of them have."""
    sizes = [{rate.footprint_bytes: rate for rate in each.read_curve} for each in found]
    shared = sorted(set(sizes[0]).intersection(*sizes[1:]))
    return Ceilings(
        read_bandwidth_bytes_per_s=median(each.read_bandwidth_bytes_per_s for each in found),
        matmul_flops_per_s=median(each.matmul_flops_per_s for each in found),
        read_curve=tuple(
            ReadRate(
                footprint_bytes=size,
                bytes_per_s=median(each[size].bytes_per_s for each in sizes),
                kernel=sizes[0][size].kernel,
            )
            for size in shared
        ),
    )


def measured_target(
    device: str, models: Sequence[tuple[ModelConfig, str]], dtype: str, *, compiled: bool
) -> PredictionTarget:
    """Return a device of this machine, by what it reaches now at the operators of a step.

    Args:
        device: cpu, cuda or cuda:N.
        models: Each with its backend.
        dtype: Dtype of the weights.
        compiled: Predict compiled steps.

    Raises:
        UnsupportedError: the device is not there, or nothing can be compiled on it.
    """
    found = find_device(device)
    become_worker(found.name)
    import torch

    from retbench.ops import fused
    from retbench.workloads.step_rates import count_operators, measure_step_rates

    torch_dtype = getattr(torch, dtype)
    with alone_on_machine("retbench predict", found.name):
        rates = measure_step_rates(torch.device(found.name), torch_dtype, compiled=compiled)
    operators = fused.default_operators(torch.device(found.name), torch_dtype)
    counts = {
        model.fingerprint: count_operators(model, torch_dtype, backend=backend, decode_operators=operators)
        for model, backend in models
    }
    memory_bytes = machine.memory_limit_bytes() if found.name == "cpu" else found.memory_bytes
    return PredictionTarget(
        title=machine_name(found.name),
        source=f"operators of {'compiled' if compiled else operators} steps measured now",
        memory_bytes=memory_bytes,
        step_time=expected(rates, dtype, lambda model: counts[model.fingerprint]),
        dtype=dtype,
        ceilings=None,
    )
