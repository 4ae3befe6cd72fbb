"""Energy that a GPU takes for a step, by the counter that its driver keeps.

The counter is NVML's nvmlDeviceGetTotalEnergyConsumption: of the whole board, in millijoules since the driver was
loaded, on Volta and later. What the board takes when it idles, and whatever else runs on it, is in it; nothing is
subtracted. It does not move at every reading but each 20 to 100 ms (PETSc's manual, PetscLogGpuEnergyMeter), and the
sensor behind it looks at a quarter of the time on an A100 or H100 (arXiv:2312.02741). A step is therefore repeated
alike for a second and more, and the window begins and ends where the counter is seen to move.
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
"""Time in which the counter moves at the latest."""

_LOOK_S = 0.01
"""Time between two looks at the counter, as far as steps are that short: how far off either end may be."""

_PATIENCE_S = 3.0
"""A counter that does not move for so long under load is none."""


class CounterUnavailableError(Exception):
    """There is no energy counter to be read here; the text says why."""


@dataclass(frozen=True)
class EnergyUse:
    """What a window of repeated steps took.

    Attributes:
        num_steps: Steps in it.
        energy_j: Of the whole board, idle power included.
        seconds: Length of the window.
    """

    num_steps: int
    energy_j: float
    seconds: float

    @property
    def power_w(self) -> float:
        """Mean power over the window."""
        return self.energy_j / self.seconds


@dataclass(frozen=True)
class _Look:
    """The counter at a moment at which the device was done with so many steps."""

    num_steps: int
    energy_j: float
    at_s: float


def measure_energy(step: Callable[[], object], *, device: "torch.device", step_s: float) -> EnergyUse:
    """Energy of `step`, repeated without a pause for at least `WINDOW_S`.

    Includes: everything that the board takes meanwhile, at rest too, and waits of the device for the host.
    Excludes: host and power supply.

    Args:
        step: Can be called any number of times, with the same work each time.
        device: Where it runs; nothing else may run on it meanwhile.
        step_s: Roughly what one takes: how many are launched between two looks at the counter.

    Raises:
        CounterUnavailableError: the device is a CPU, or has no counter, or one for several slices of it.
    """
    if device.type != "cuda":
        raise CounterUnavailableError(
            "the device is a CPU" if device.type == "cpu" else f"it is on '{device}'"
        )
    try:
        with nvml.open_nvml() as binding:
            read_j = _counter(binding, nvml.find_handle(binding, nvml.identify(device)))
            return _repeat(step, read_j, device, step_s)
    except nvml.DriverUnavailableError as error:
        raise CounterUnavailableError(str(error)) from error


def _counter(binding: Any, handle: Any) -> Callable[[], float]:
    """What reads the counter, in joules; CounterUnavailableError where there is none for this device alone."""
    if nvml.is_sliced(binding, handle):
        raise CounterUnavailableError("the GPU is in slices (MIG), and its energy counter is of all of them")
    try:
        binding.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (
        binding.NVMLError,
        AttributeError,
    ) as error:  # AttributeError: an older binding without the function
        raise CounterUnavailableError(f"NVML: {error}") from error
    return lambda: binding.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000  # mJ


def _repeat(
    step: Callable[[], object], read_j: Callable[[], float], device: "torch.device", step_s: float
) -> EnergyUse:
    """Repeat until the counter has moved at either end of a window that is long enough."""
    import torch

    steps_a_look = max(1, round(_LOOK_S / max(step_s, 1e-6)))
    torch.cuda.synchronize(device)
    last = _Look(0, read_j(), perf_counter())
    # Between two looks that are further apart than its updates it moves in any case, and any look is as good.
    first = last if steps_a_look * step_s > UPDATE_S else None
    num_steps = 0
    while True:
        for _ in range(steps_a_look):
            step()
        torch.cuda.synchronize(device)
        num_steps += steps_a_look
        look = _Look(num_steps, read_j(), perf_counter())
        if look.energy_j != last.energy_j:
            if first is not None and look.at_s - first.at_s >= WINDOW_S:
                return EnergyUse(
                    look.num_steps - first.num_steps, look.energy_j - first.energy_j, look.at_s - first.at_s
                )
            first, last = first or look, look
        elif look.at_s - last.at_s > _PATIENCE_S:
            raise CounterUnavailableError(f"the energy counter stood still for {_PATIENCE_S:g} s under load")
