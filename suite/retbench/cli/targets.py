"""The devices that `retbench predict` predicts for: from a datasheet, from records, or measured now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from retbench.architectures.configs import ModelConfig
from retbench.cli.in_process import alone_on_machine, become_worker, warn_if_busy
from retbench.errors import RecordError, shown
from retbench.measure import machine
from retbench.measure.devices import find_device
from retbench.measure.environment import check_compiled_code, machine_name
from retbench.ops import DecodeOperators
from retbench.papers.papers import Datasheet, find_datasheet, load_datasheets
from retbench.planning.prediction import (
    OperatorCount,
    StepRates,
    StepTime,
    StepTimes,
    expected,
    rates_from,
    roofline,
)
from retbench.records.record import Ceilings, interpolate, median_curve
from retbench.units import format_seconds

Models = Mapping[str, tuple[ModelConfig, str]]
"""Models by name, each with its backend."""

FASTER_STEPS = 1.1
"""Read bandwidth around recorded steps over that of the run's curve from which on predictions state it."""


@dataclass(frozen=True)
class PredictionTarget:
    """A device that is predicted for.

    Attributes:
        title: The device in words.
        source: Origin of its ceilings or rates.
        memory_bytes: None if unknown.
        times: Give the time of a step.
        dtype: Dtype of the weights.
        ceilings: Bandwidth and products, which bound the time; None where only rates are known.
        rates: Rates and cost of an operator, behind the expected time; None where there is no expected time.
        operators: Operators of a step by model, behind the expected time.
        basis: Origin of the cost of an operator, or why there is no expected time; may be empty.
    """

    title: str
    source: str
    memory_bytes: int | None
    times: StepTimes
    dtype: str
    ceilings: Ceilings | None
    rates: StepRates | None = None
    operators: Mapping[str, OperatorCount] = field(default_factory=dict)
    basis: str = ""


def _from_ceilings(
    title: str,
    source: str,
    memory_bytes: int | None,
    ceilings: Ceilings,
    dtype: str,
    sheet: Datasheet | None,
    models: Models,
) -> PredictionTarget:
    """Return a target whose ceilings bound the time of a step, and whose kernels are counted where a sheet has a cost.

    Args:
        title: The device in words.
        source: Origin of the ceilings.
        memory_bytes: None if unknown.
        ceilings: Ceilings of the device.
        dtype: Dtype of the weights.
        sheet: Datasheet with the cost of a kernel; None if there is none.
        models: Models whose steps are predicted.
    """
    bound = roofline(ceilings, dtype)
    rates, operators = None, None
    if sheet is None:
        basis = (
            "No expected time: the records have no cost per operator. On their machine --device measures it."
        )
    elif (operators := count_kernels(models, dtype)) is None:
        basis = "No expected time: PyTorch, which counts the kernels of a step, is not installed."
    else:
        rates = rates_from(ceilings, sheet.kernel_s)
        counts = ", ".join(f"{count.total} ({name})" for name, count in operators.items())
        basis = (
            f"Kernels per step: {counts}; {format_seconds(sheet.kernel_s)} each, an {sheet.kernel_source}."
        )
    return PredictionTarget(
        title=title,
        source=source,
        memory_bytes=memory_bytes,
        times=StepTimes(bound, _expected(rates, dtype, models, operators)),
        dtype=dtype,
        ceilings=ceilings,
        rates=rates,
        operators=operators or {},
        basis=basis,
    )


def _expected(
    rates: StepRates | None, dtype: str, models: Models, operators: Mapping[str, OperatorCount] | None
) -> StepTime | None:
    """Return the expected time of a step; None without rates or counts."""
    if rates is None or operators is None:
        return None
    by_model = {models[name][0].fingerprint: count for name, count in operators.items()}
    return expected(rates, dtype, lambda model: by_model[model.fingerprint])


def count_kernels(
    models: Models, dtype: str, decode_operators: DecodeOperators | None = None
) -> dict[str, OperatorCount] | None:
    """Count the kernels of a step of each model on a GPU; None where torch is not installed.

    Args:
        models: The models.
        dtype: Dtype of the weights.
        decode_operators: Operators of the steps; fused ones, if the dtype has them, when None.
    """
    try:
        import torch
    except ImportError:
        return None
    from retbench.ops import fused
    from retbench.planning.operator_counts import count_operators

    torch_dtype = getattr(torch, dtype)
    operators = decode_operators or fused.default_operators(torch.device("meta"), torch_dtype)
    return {
        name: count_operators(model, torch_dtype, backend=backend, decode_operators=operators)
        for name, (model, backend) in models.items()
    }


def datasheet_target(device: str, dtype: str, models: Models) -> PredictionTarget:
    """Return a device by its datasheet; it need not be on this machine."""
    sheet = find_datasheet(device)
    source = f"{sheet.source}; memory: {sheet.usable_source}"
    return _from_ceilings(
        sheet.title, source, sheet.usable_bytes, sheet.ceilings(dtype), dtype, sheet, models
    )


def recorded_target(path: Path, dtype: str | None, models: Models) -> PredictionTarget:
    """Return the device of the newest records, by the ceilings that they reached.

    Args:
        path: Folder or file of records.
        dtype: Dtype of the records to take; that of the newest when None.
        models: Models whose steps are predicted.

    Raises:
        RecordError: there are no such records.
    """
    from retbench.report.results import load_results, set_of
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
    key, gpu = set_of(newest[-1]), newest[-1].environment.get("gpu")
    gpu = gpu if isinstance(gpu, dict) else {}
    source = f"median of {len(found)} records in {path}, {newest[-1].started_at[:10]}"
    if without := sum(not each.read_curve for each in found):
        source += f", {without} of them with one bandwidth for every footprint"
    ceilings = _median_ceilings(found)
    if (faster := _bandwidth_of_steps(found, ceilings)) > FASTER_STEPS:
        source += (
            f"; their steps had {faster:.2g} times the bandwidth of the curve, which a run measures once, so that "
            "steps may be faster than at best here"
        )
    return _from_ceilings(
        title=str(key.machine),
        source=source,
        memory_bytes=gpu.get("memory_bytes"),
        ceilings=ceilings,
        dtype=str(key.dtype),
        sheet=_sheet_of(str(gpu.get("name", ""))),
        models=models,
    )


def _sheet_of(gpu: str) -> Datasheet | None:
    """Return the first datasheet of the kind of a GPU, 'NVIDIA H100 80GB HBM3'; None if there is none."""
    words = gpu.upper().replace("-", " ").split()
    kinds = {name: name.partition("-")[0].upper() for name in load_datasheets()}
    return next((find_datasheet(name) for name, kind in kinds.items() if kind in words), None)


def _median_ceilings(found: Sequence[Ceilings]) -> Ceilings:
    """Return the medians of the ceilings of several records, of the curve at the sizes that all curves have."""
    return Ceilings(
        read_bandwidth_bytes_per_s=median(each.read_bandwidth_bytes_per_s for each in found),
        matmul_flops_per_s=median(each.matmul_flops_per_s for each in found),
        read_curve=median_curve(each.read_curve for each in found),
    )


def _bandwidth_of_steps(found: Sequence[Ceilings], ceilings: Ceilings) -> float:
    """Return the median bandwidth at the footprints of recorded steps, over that of the common curve; 1 without any.

    The processes of the steps measured it again, and the shares of records are of it.
    """
    curve = [(rate.footprint_bytes, rate.bytes_per_s) for rate in ceilings.read_curve]
    sizes = {size for size, _ in curve}
    ratios = [
        rate.bytes_per_s / interpolate(curve, rate.footprint_bytes)
        for each in found
        for rate in each.read_curve
        if curve and rate.footprint_bytes not in sizes
    ]
    return median(ratios) if ratios else 1.0


def measured_target(device: str, models: Models, dtype: str, *, compiled: bool) -> PredictionTarget:
    """Return a device of this machine, by what it reaches now at the operators of a step.

    A warning on stderr says if other processes keep the machine busy.

    Args:
        device: cpu, cuda or cuda:N.
        models: Models whose steps are predicted.
        dtype: Dtype of the weights.
        compiled: Predict compiled steps.

    Raises:
        UnsupportedError: the device is not there, or nothing can be compiled on it.
        ConfigError: compiled code cannot be written.
    """
    found = find_device(device)
    if compiled:
        check_compiled_code()
    become_worker(found.name)
    import torch

    from retbench.ops import fused
    from retbench.planning.step_rates import measure_step_rates

    torch_dtype = getattr(torch, dtype)
    with alone_on_machine("retbench predict", found.name):
        warn_if_busy(
            machine.busy_ratio(),
            "The rates that are measured now, and the times predicted from them, would be too slow",
        )
        rates = measure_step_rates(torch.device(found.name), torch_dtype, compiled=compiled)
    kind = fused.default_operators(torch.device(found.name), torch_dtype)
    operators = count_kernels(models, dtype, kind) or {}
    memory_bytes = machine.memory_limit_bytes() if found.name == "cpu" else found.memory_bytes
    return PredictionTarget(
        title=machine_name(found.name),
        source=f"operators of {'compiled' if compiled else kind} steps measured now",
        memory_bytes=memory_bytes,
        times=StepTimes(None, _expected(rates, dtype, models, operators)),
        dtype=dtype,
        ceilings=None,
        rates=rates,
        operators=operators,
    )
