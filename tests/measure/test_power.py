from collections.abc import Callable

import pytest
import torch

from retbench.measure import power
from retbench.measure.nvml import DriverUnavailableError
from retbench.measure.power import EnergyUse, measure_energy

from .conftest import CUDA, PretendNvml

WATTS = 300.0


class Rig:
    """A clock that only steps move, and a counter that follows it at intervals."""

    def __init__(self, step_s: float, update_s: float = 0.1) -> None:
        self.step_s = step_s
        self.update_s = update_s
        self.now_s = 7.03
        self.num_steps = 0

    def step(self) -> None:
        self.now_s += self.step_s
        self.num_steps += 1

    def counter_mj(self, handle: str) -> int:
        """Energy up to the last update, millijoules."""
        updates = int(self.now_s / self.update_s)
        return 5_000_000 + round(1000 * WATTS * updates * self.update_s)


@pytest.fixture
def rig_of(
    pretend: PretendNvml,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Rig]:
    def make(step_s: float, update_s: float = 0.1) -> Rig:
        rig = Rig(step_s, update_s)
        monkeypatch.setattr(power, "perf_counter", lambda: rig.now_s)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(pretend, "nvmlDeviceGetTotalEnergyConsumption", rig.counter_mj, raising=False)
        return rig

    return make


@pytest.mark.parametrize("step_s", [0.0002, 0.004, 0.03])
def test_power_and_energy_of_a_step_are_those_of_the_board(
    rig_of: Callable[..., Rig],
    pretend: PretendNvml,
    step_s: float,
) -> None:
    rig = rig_of(step_s)
    use = measure_energy(rig.step, device=CUDA, step_s=step_s)
    assert 1.0 <= use.seconds < 1.0 + 2 * 0.1 + 3 * max(step_s, 0.01)
    off = max(step_s, 0.01) / use.seconds  # either end is seen at the first sample after it
    assert use.power_w == pytest.approx(WATTS, rel=off)
    assert use.energy_j / use.num_steps == pytest.approx(WATTS * step_s, rel=off)
    assert use.num_steps * step_s == pytest.approx(use.seconds)
    assert pretend.open == 0


def test_of_a_step_longer_than_the_window_the_second_is_measured(
    rig_of: Callable[..., Rig],
) -> None:
    rig = rig_of(2.5)
    use = measure_energy(rig.step, device=CUDA, step_s=2.5)
    assert (use.num_steps, rig.num_steps) == (1, 2), "the first begins on a device that was idle"
    assert use.power_w == pytest.approx(WATTS, rel=0.1 / 2.5)


def test_a_wrong_estimate_of_a_steps_time_only_makes_samples_rarer(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(0.002)
    use = measure_energy(rig.step, device=CUDA, step_s=0.0)
    assert use.num_steps >= 10_000  # launched between two samples, as if they took a microsecond
    assert use.power_w == pytest.approx(WATTS, rel=0.02)


def test_a_counter_that_stands_still_is_none(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(0.01, update_s=1e6)
    with pytest.raises(DriverUnavailableError, match="stood still for 3 s under load"):
        measure_energy(rig.step, device=CUDA, step_s=0.01)


def test_an_older_gpu_has_the_drivers_words(rig_of: Callable[..., Rig], pretend: PretendNvml) -> None:
    rig = rig_of(0.01)
    pretend.nvmlDeviceGetTotalEnergyConsumption = pretend.refuse
    with pytest.raises(DriverUnavailableError, match=r"^NVML: Not Supported$"):
        measure_energy(rig.step, device=CUDA, step_s=0.01)
    assert rig.num_steps == 0


def test_a_binding_without_the_function_has_its_words(pretend: PretendNvml) -> None:
    with pytest.raises(DriverUnavailableError, match="no attribute 'nvmlDeviceGetTotalEnergyConsumption'"):
        measure_energy(lambda: None, device=CUDA, step_s=0.01)


def test_a_slice_has_no_counter_of_its_own(rig_of: Callable[..., Rig], pretend: PretendNvml) -> None:
    rig = rig_of(0.01)
    pretend.mig = [1, 1]
    with pytest.raises(DriverUnavailableError, match="in slices"):
        measure_energy(rig.step, device=CUDA, step_s=0.01)


def test_an_error_of_the_step_comes_through(rig_of: Callable[..., Rig], pretend: PretendNvml) -> None:
    rig_of(0.01)

    def fail() -> None:
        raise KeyError("of the step")

    with pytest.raises(KeyError, match="of the step"):
        measure_energy(fail, device=CUDA, step_s=0.01)
    assert pretend.open == 0


def test_a_cpu_has_no_counter() -> None:
    with pytest.raises(DriverUnavailableError, match="the device is a CPU"):
        measure_energy(lambda: None, device=torch.device("cpu"), step_s=0.01)


def test_the_installed_binding_has_the_function() -> None:
    assert callable(pytest.importorskip("pynvml").nvmlDeviceGetTotalEnergyConsumption)


def test_power_is_energy_over_time() -> None:
    assert EnergyUse(num_steps=10, energy_j=600.0, seconds=2.0).power_w == 300.0


@pytest.mark.gpu
def test_a_real_counter_moves_under_load() -> None:
    device = torch.device("cuda:0")
    left, right = torch.rand(2, 4096, 4096, device=device, dtype=torch.float16)
    try:
        use = measure_energy(lambda: torch.mm(left, right), device=device, step_s=0.001)
    except DriverUnavailableError as error:
        pytest.skip(str(error))
    assert use.seconds >= power.WINDOW_S
    assert 10 < use.power_w < 2000
