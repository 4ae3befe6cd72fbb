"""Energy of a step on a GPU, from the counter of its driver.

The counter is NVML's nvmlDeviceGetTotalEnergyConsumption: millijoules of the whole board since the driver was loaded,
on Volta and later. It includes idle power and all other work on the board; nothing is subtracted. It is updated only
every 20 to 100 ms (PETSc's manual, PetscLogGpuEnergyMeter). The sensor behind it samples a quarter of the time on an
A100 or H100 (arXiv:2312.02741). A step is therefore repeated for at least a second, and the window begins and ends
at an update.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from retbench.measure import nvml

if TYPE_CHECKING:
    import torch

WINDOW_S = 1.0
"""Least length of a window."""

UPDATE_S = 0.1
"""Longest time between two updates of the counter."""

_INTERVAL_S = 0.01
"""Time between two reads of the counter, unless a step takes longer: the largest error at either end."""

_TIMEOUT_S = 3.0
"""A counter that is not updated for this long under load does not work."""


@dataclass(frozen=True)
class EnergyUse:
    """Energy of the whole board over a window of repeated steps, idle power included."""

    num_steps: int
    energy_j: float
    seconds: float

    @property
    def power_w(self) -> float:
        """Mean power over the window."""
        return self.energy_j / self.seconds


@dataclass(frozen=True)
class _CounterSample:
    """The counter at a time when the device had finished `num_steps` steps."""

    num_steps: int
    energy_j: float
    at_s: float


def measure_energy(step: Callable[[], object], *, device: "torch.device", step_s: float) -> EnergyUse:
    """Measure the energy of `step`, repeated without a pause for at least `WINDOW_S`.

    Includes: everything that the board consumes, idle power and waits for the host too.
    Excludes: host and power supply.

    Args:
        step: Can be called any number of times, with the same work each time.
        device: Device of the step; nothing else may run on it.
        step_s: Approximate duration of a step, which sets the number of steps between two reads of the counter.

    Raises:
        DriverUnavailableError: the device is a CPU, has no counter, or shares it with other slices of the GPU.
    """
    if device.type != "cuda":
        raise nvml.DriverUnavailableError("the device is a CPU")
    with nvml.open_gpu(device) as (binding, handle):
        return _repeat(step, _energy_reader(binding, handle), device, step_s)


def _energy_reader(binding: Any, handle: Any) -> Callable[[], float]:
    """Return a function that reads the counter in joules."""
    if nvml.is_sliced(binding, handle):
        raise nvml.DriverUnavailableError(
            "the GPU is in slices (MIG), and its energy counter covers all of them"
        )
    try:
        binding.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (binding.NVMLError, AttributeError) as error:  # AttributeError: a binding without the function
        raise nvml.DriverUnavailableError(f"NVML: {error}") from error
    return lambda: binding.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000  # mJ


def _repeat(
    step: Callable[[], object], read_j: Callable[[], float], device: "torch.device", step_s: float
) -> EnergyUse:
    """Repeat a step until the counter was updated at both ends of a window that is long enough."""
    import torch

    steps_per_sample = max(1, round(_INTERVAL_S / max(step_s, 1e-6)))
    torch.cuda.synchronize(device)
    last = _CounterSample(0, read_j(), perf_counter())
    first: _CounterSample | None = None  # what was read before the first step may be of an idle device
    num_steps = 0
    while True:
        for _ in range(steps_per_sample):
            step()
        torch.cuda.synchronize(device)
        num_steps += steps_per_sample
        sample = _CounterSample(num_steps, read_j(), perf_counter())
        if sample.energy_j != last.energy_j:
            if first is not None and sample.at_s - first.at_s >= WINDOW_S:
                return EnergyUse(
                    sample.num_steps - first.num_steps,
                    sample.energy_j - first.energy_j,
                    sample.at_s - first.at_s,
                )
            first, last = first or sample, sample
        elif sample.at_s - last.at_s > _TIMEOUT_S:
            raise nvml.DriverUnavailableError(
                f"the energy counter stood still for {_TIMEOUT_S:g} s under load"
            )
