"""The context in which a workload measures a cell, and measurements that several workloads share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from retbench.data import text
from retbench.errors import RetbenchError
from retbench.evaluation import PassProgress, ignore_progress
from retbench.measure.ceilings import largest_footprint, measure_read_rate
from retbench.measure.clock import time_steps
from retbench.measure.limits import free_memory, headroom_bytes, try_in_memory
from retbench.measure.memory import MemoryUse, measure_memory
from retbench.measure.nvml import DriverUnavailableError
from retbench.measure.power import measure_energy
from retbench.models.compiled import StepCompiler
from retbench.models.language_model import LanguageModel
from retbench.models.state import DecoderState
from retbench.planning.cells import Cell
from retbench.records.record import SHARES, Ceilings, ReadRate
from retbench.units import MIB
from retbench.workloads.metrics import ENERGY_METRICS, MIN_CALLS, counted, energy_metrics, more_calls
from retbench.workloads.states import StateStore
from retbench.workloads.workload import Measurement, Notes

CAPTURE_BYTES = 256 * MIB
"""Memory for a graph of reads and the workspaces of its kernels, beside the buffer that they read."""


@dataclass(frozen=True)
class Context:
    """Everything that measuring a cell needs.

    Attributes:
        cell: The cell.
        model: Its model, built and checked; other cells of this worker share it.
        device: Where the model is.
        ceilings: Bandwidth and FLOP/s that the device reached; None where no workload of this worker needs them.
        states: The streamed states of this run.
        compiler: Compiles the model's decode steps; other cells of this worker share it.
        data_dir: Where local data is looked for.
        report: Called after every pass of an evaluation; workloads of cost call nothing while they are timed.
        read_rates: The best read bandwidth that this worker has measured, by footprint; its cells share them.
    """

    cell: Cell
    model: LanguageModel
    device: torch.device
    ceilings: Ceilings | None
    states: StateStore
    compiler: StepCompiler
    data_dir: Path | None = None
    report: PassProgress = ignore_progress
    read_rates: dict[int, ReadRate] = field(default_factory=dict)

    def reset_backend_log(self) -> None:
        """Make `model.executed_backends()` report only what runs from here on."""
        self.model.set_backend(self.model.backend)

    def time_calls(
        self, call: Callable[[], object], before: Callable[[], object] = lambda: None
    ) -> list[float]:
        """Return the seconds of each of several long calls.

        A call is timed `MIN_CALLS` times and then as often as `more_calls` says; `before` is as in `time_steps`.
        """
        settings = self.cell.settings
        samples = time_steps(
            call, before, device=self.device, warmup_s=settings.warmup_s, min_steps=MIN_CALLS, sampled=True
        )
        more = more_calls(samples, settings.min_steps)
        if more:
            samples += time_steps(
                call, before, device=self.device, warmup_s=0.0, min_steps=more, sampled=True
            )
        return samples

    def read_tokens(self, num_tokens: int, *, start: int = 0) -> torch.Tensor:
        """Read tokens (B, T) of real text for the batch, a different text for each sequence, from `start` on."""
        return text.read_rows(self.cell.point.batch_size, num_tokens, start=start).to(self.device)

    def backend_with(self, notes: Notes, state: DecoderState | None = None) -> Notes:
        """Return the executed backend with notes, and with the capacity of the state's cache where it has one."""
        found: Notes = {**self.model.executed_backends(), **self.layout_notes, **notes}
        if state is not None and state.capacity is not None:
            found["kv_capacity"] = state.capacity
        return found

    @property
    def layout_notes(self) -> Notes:
        """The layout of the weights on a GPU, where a measurement has chosen it; nothing on a CPU."""
        return {"weight_layout": self.model.weight_layout} if self.device.type == "cuda" else {}

    def measure_energy(
        self, step: Callable[[], object], *, step_s: float, tokens_per_step: int
    ) -> Measurement:
        """Repeat a step while the energy counter is read; without a counter the metrics are absent.

        Args:
            step: One step of the workload, with the same work at every call.
            step_s: Seconds of one step.
            tokens_per_step: Tokens that a step processes over all sequences.
        """
        try:
            use = measure_energy(step, device=self.device, step_s=step_s)
        except DriverUnavailableError as error:
            return Measurement({}, absent=dict.fromkeys(ENERGY_METRICS, str(error)))
        return Measurement(energy_metrics(use, tokens_per_step), backend={"energy_steps": use.num_steps})

    def measure_memory(self, step: Callable[[], object]) -> tuple[MemoryUse, Measurement]:
        """Measure the memory that a step uses; the peaks of the GPU's allocator are absent on a CPU."""
        use = measure_memory(step, self.device)
        peaks = {"device_peak_bytes": use.device_peak_bytes, "reserved_peak_bytes": use.reserved_peak_bytes}
        found = {name: counted(value) for name, value in peaks.items() if value is not None}
        absent = dict.fromkeys(peaks.keys() - found.keys(), "the device is a CPU")
        return use, Measurement(found, absent=absent)

    def measure_read_rate(self, footprint_bytes: int | None, *, again: bool = False) -> None:
        """Measure the read bandwidth at the footprint of a step, just after it is timed and, if unknown, before.

        A machine that others share changes within seconds, and a cache of any size lies between two points of a curve.
        The best of what the cells of a worker find is kept; nothing is where the memory does not suffice.

        Args:
            footprint_bytes: Bytes that the step moves; None for a model without analytical costs.
            again: Measure although an earlier cell has.
        """
        if footprint_bytes is None:
            return
        size = min(footprint_bytes, largest_footprint(self.device))
        known = self.read_rates.get(size)
        if known is not None and not again:
            return
        if self.device.type == "cuda":
            free = headroom_bytes(self.device, self.cell.settings.memory_limit_bytes)
            if free is not None and free < size + CAPTURE_BYTES:
                return  # memory that runs out while a graph is captured leaves a process that cannot go on
        rate = try_in_memory(partial(measure_read_rate, self.device, size), self.device)
        # A tensor of the cell that is put into the freed buffer would keep all of it from being returned.
        free_memory(self.device)
        if rate is not None and (known is None or rate.bytes_per_s > known.bytes_per_s):
            self.read_rates[size] = rate

    def ceilings_at(self, footprint_bytes: int | None) -> Ceilings:
        """Return the ceilings, with the read rate that was measured at a footprint in its place on the curve.

        Raises:
            RetbenchError: none were measured, because no metric of the workload is a share of one.
        """
        if self.ceilings is None:
            raise RetbenchError(
                f"no ceilings were measured, because no metric of workload '{self.cell.workload}' is a share of one "
                f"({' or '.join(SHARES)}). Add the metric to its `metrics`."
            )
        size = None if footprint_bytes is None else min(footprint_bytes, largest_footprint(self.device))
        rate = None if size is None else self.read_rates.get(size)
        return self.ceilings if rate is None else self.ceilings.with_rate(rate)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters, without the few hundred of buffers (decay, rotary frequencies)."""
        return sum(parameter.nbytes for parameter in self.model.parameters())
