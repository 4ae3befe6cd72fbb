"""What a workload is given to measure a cell with, and what several workloads measure alike."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from retbench.evaluation.progress import Report, tell_nobody
from retbench.measure.clock import time_steps
from retbench.measure.memory import MemoryUse
from retbench.measure.power import CounterUnavailableError, measure_energy
from retbench.models.decoder import Decoder
from retbench.planning.cells import Cell
from retbench.records.record import Ceilings, Metric
from retbench.workloads.metrics import ENERGY_METRICS, MIN_CALLS, counted, energy_metrics, more_calls
from retbench.workloads.states import StateStore
from retbench.workloads.workload import Notes


@dataclass(frozen=True)
class EnergyFound:
    """Parts of a `Measurement`: metrics with the number of steps measured, or the reasons why they are absent."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """Everything that measuring a cell needs.

    Attributes:
        cell: The cell.
        model: Its model, built and checked; other cells of this worker share it.
        device: Where the model is.
        ceilings: Bandwidth and FLOP/s that the device reached in this process.
        states: The streamed states of this run.
        data_dir: Where local data is looked for.
        report: Called after every pass of an evaluation; workloads of cost call nothing while they are timed.
    """

    cell: Cell
    model: Decoder
    device: torch.device
    ceilings: Ceilings
    states: StateStore
    data_dir: Path | None = None
    report: Report = tell_nobody

    def reset_backend_log(self) -> None:
        """Make `model.ran()` report only what runs from here on."""
        self.model.set_backend(self.model.backend)

    def time_calls(
        self, call: Callable[[], object], before: Callable[[], object] = lambda: None
    ) -> list[float]:
        """Return the seconds of each of several long calls.

        A call is timed `MIN_CALLS` times and then as often as `more_calls` says; `before` is as in `time_steps`.
        """
        settings = self.cell.settings
        samples = time_steps(
            call, before, device=self.device, warmup_s=settings.warmup_s, min_steps=MIN_CALLS
        )
        more = more_calls(samples, settings.min_steps)
        if more:
            samples += time_steps(call, before, device=self.device, warmup_s=0.0, min_steps=more)
        return samples

    def measure_energy(
        self, step: Callable[[], object], *, step_s: float, tokens_per_step: int
    ) -> EnergyFound:
        """Repeat a step while the energy counter is read.

        Args:
            step: One step of the workload, with the same work at every call.
            step_s: Seconds of one step.
            tokens_per_step: Tokens that a step processes over all sequences.
        """
        try:
            use = measure_energy(step, device=self.device, step_s=step_s)
        except CounterUnavailableError as error:
            return EnergyFound(absent=dict.fromkeys(ENERGY_METRICS, str(error)))
        return EnergyFound(energy_metrics(use, tokens_per_step), notes={"energy_steps": use.num_steps})


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters, without the few hundred of buffers (decay, rotary frequencies)."""
    return sum(parameter.nbytes for parameter in model.parameters())


def device_peaks(use: MemoryUse) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return the peaks of the GPU's allocator during a call, or why they are absent."""
    peaks = {"device_peak_bytes": use.device_peak_bytes, "reserved_peak_bytes": use.reserved_peak_bytes}
    found = {name: counted(value) for name, value in peaks.items() if value is not None}
    return found, dict.fromkeys(peaks.keys() - found.keys(), "the device is a CPU")
