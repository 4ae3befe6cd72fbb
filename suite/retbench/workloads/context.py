"""What a workload is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from retbench.evaluation import PassProgress, ignore_progress
from retbench.measure.clock import time_steps
from retbench.models.decoder import Decoder
from retbench.planning.cells import Cell
from retbench.records.record import Ceilings, Metric, Series
from retbench.workloads.repetition import MIN_CALLS, more_calls
from retbench.workloads.states import StateStore

Notes = dict[str, str | int | float | bool]
"""What ran, as records hold it."""


@dataclass(frozen=True)
class Measurement:
    """One cell measured in one round.

    Attributes:
        metrics: What was measured.
        series: What was measured over a quantity of its own, such as the loss by position.
        documents: Results of single documents, where quality is measured.
        absent: What is not defined here, each with the reason.
        backend: What ran, as the code that ran it says.
    """

    metrics: dict[str, Metric]
    series: dict[str, Series] = field(default_factory=dict)
    documents: tuple[dict[str, Any], ...] = ()
    absent: dict[str, str] = field(default_factory=dict)
    backend: Notes = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """Where a cell is measured.

    Attributes:
        cell: The cell.
        model: Its model, built and gated; other cells of this worker share it.
        device: Where the model is.
        ceilings: What the device reached in this process.
        states: The streamed states of this run.
        data_dir: Where local data is looked for.
        report: Told of every pass of an evaluation; what measures cost calls nothing while it is timed.
    """

    cell: Cell
    model: Decoder
    device: torch.device
    ceilings: Ceilings
    states: StateStore
    data_dir: Path | None = None
    report: PassProgress = ignore_progress

    def forget_what_ran(self) -> None:
        """Empty `model.executed_backends()`."""
        self.model.set_backend(self.model.backend)

    def time_calls(
        self, call: Callable[[], object], before: Callable[[], object] = lambda: None
    ) -> list[float]:
        """Seconds of each of several long calls, as often as `repetition` says; `before` is as in `time_steps`."""
        settings = self.cell.settings
        samples = time_steps(
            call, before, device=self.device, warmup_s=settings.warmup_s, min_steps=MIN_CALLS
        )
        more = more_calls(samples, settings.min_steps)
        if more:
            samples += time_steps(call, before, device=self.device, warmup_s=0.0, min_steps=more)
        return samples
