import inspect
import os
import sys

import pytest
import torch

from retbench.measure import nvml

from .conftest import CUDA, UUID, PretendError, PretendNvml


def test_settings_are_in_base_units(pretend: PretendNvml) -> None:
    reading = nvml.describe_gpu(CUDA)
    assert reading.facts == {
        "driver_version": "550.54.15",
        "power_limit_w": 400.0,
        "max_sm_clock_hz": 1_410_000_000,
        "max_memory_clock_hz": 1_593_000_000,
        "persistence_mode": True,
        "mig_mode": False,
        "ecc_mode": True,
        "board_memory_bytes": 85_899_345_920,
    }
    assert reading.absent == {}
    assert pretend.open == 0


def test_what_the_driver_refuses_is_absent_with_the_reason(pretend: PretendNvml) -> None:
    pretend.refused = {"nvmlDeviceGetEccMode", "nvmlDeviceGetMigMode"}
    reading = nvml.describe_gpu(CUDA)
    assert reading.absent == {"mig_mode": "NVML: Not Supported", "ecc_mode": "NVML: Not Supported"}
    assert "power_limit_w" in reading.facts


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (0x0, []),
        (0x1, ["gpu_idle"]),
        (0x44, ["sw_power_cap", "hw_thermal_slowdown"]),
        (0x600, ["board_limit", "reliability"]),
        (0x804, ["sw_power_cap", "unknown_0x800"]),
    ],
)
def test_reasons_are_decoded(mask: int, names: list[str]) -> None:
    assert nvml.decode_reasons(mask) == names


def test_reasons_are_named_as_the_installed_binding_numbers_them() -> None:
    binding = pytest.importorskip("pynvml")
    names = {
        "nvmlClocksEventReasonSwPowerCap": "sw_power_cap",
        "nvmlClocksEventReasonHwSlowdown": "hw_slowdown",
        "nvmlClocksEventReasonSwThermalSlowdown": "sw_thermal_slowdown",
        "nvmlClocksEventReasonHwPowerBrakeSlowdown": "hw_power_brake_slowdown",
    }
    for constant, name in names.items():
        assert nvml.decode_reasons(getattr(binding, constant)) == [name]


@pytest.mark.parametrize("how", ["missing", "refused"])
def test_an_older_driver_or_binding_is_asked_by_the_older_name(pretend: PretendNvml, how: str) -> None:
    getattr(pretend, how).add("nvmlDeviceGetCurrentClocksEventReasons")
    assert nvml.read_state(pretend, "handle").facts["clocks_event_reasons"] == ["hw_slowdown"]


def test_the_gpu_is_found_by_its_uuid(pretend: PretendNvml) -> None:
    with nvml.open_gpu(CUDA) as (_, handle):
        assert handle == f"handle of GPU-{UUID}"


def test_a_slice_is_found_as_the_gpu_it_is_of(pretend: PretendNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_slices(uuid: str) -> str:
        if not uuid.startswith("MIG-"):
            raise PretendError("Not Found")
        return f"handle of {uuid}"

    monkeypatch.setattr(pretend, "nvmlDeviceGetHandleByUUID", only_slices, raising=False)
    with nvml.open_gpu(CUDA) as (_, handle):
        assert handle == f"parent of handle of MIG-{UUID}"


def test_the_bus_is_the_last_way_to_find_it(pretend: PretendNvml) -> None:
    pretend.refused = {"nvmlDeviceGetHandleByUUID"}
    with nvml.open_gpu(CUDA) as (_, handle):
        assert handle == "handle at 00000000:3b:00.0"


def test_a_gpu_that_nvml_does_not_know_is_absent_with_the_reason(pretend: PretendNvml) -> None:
    pretend.refused = {"nvmlDeviceGetHandleByUUID", "nvmlDeviceGetHandleByPciBusId"}
    reading = nvml.describe_gpu(CUDA)
    assert reading.facts == {}
    assert "does not find the GPU" in reading.absent["driver_version"]


def test_other_processes_are_distinguished_from_this_one(pretend: PretendNvml) -> None:
    pretend.processes = [(os.getpid(), 10), (1, None)]
    facts = nvml.read_state(pretend, "handle").facts
    assert facts["num_foreign_processes"] == 1
    assert facts["foreign_processes"] == [{"pid": 1, "memory_bytes": None}]


def test_an_older_driver_names_the_processes_by_the_older_query(pretend: PretendNvml) -> None:
    pretend.processes = [(1, 20)]
    pretend.refused = {"nvmlDeviceGetComputeRunningProcesses_v3"}
    assert nvml.read_state(pretend, "handle").facts["num_foreign_processes"] == 1
    pretend.refused |= {"nvmlDeviceGetComputeRunningProcesses_v2"}
    reading = nvml.read_state(pretend, "handle")
    assert "num_foreign_processes" not in reading.facts
    assert reading.absent["num_foreign_processes"] == "NVML: Not Supported"


def test_in_a_container_others_are_counted_but_not_named(
    pretend: PretendNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    pretend.processes = [(0, 10), (1, 20)]
    reading = nvml.read_state(pretend, "handle")
    assert reading.facts["num_foreign_processes"] == 1
    assert "foreign_processes" not in reading.facts
    assert "namespace" in reading.absent["foreign_processes"]


def test_a_watch_reads_before_and_after_and_takes_the_difference(pretend: PretendNvml) -> None:
    with nvml.watch_device(CUDA) as watch:
        pretend.violation_ns += 250_000_000
    state = watch.facts["gpu_state"]
    assert state["before"]["sm_clock_hz"] == state["after"]["sm_clock_hz"] == 1_095_000_000
    assert state["after"]["temperature_c"] == 61
    assert state["after"]["power_w"] == 250.5
    assert state["after"]["board_used_bytes"] == 5_899_345_920
    assert state["violation_s"] == {"power": 0.25, "thermal": 0.0}
    assert watch.absent == {"gpu_state.during": "the cell timed no steps on the device"}
    assert pretend.open == 0


def test_a_watch_samples_clocks_while_the_gpu_works(pretend: PretendNvml) -> None:
    pretend.sm_clock_mhz, pretend.reasons = 210, 0x1
    nvml.sample_device()
    with nvml.watch_device(CUDA) as watch:
        pretend.sm_clock_mhz, pretend.reasons = 1400, 0x4
        nvml.sample_device()
        pretend.sm_clock_mhz, pretend.reasons = 1200, 0x44
        nvml.sample_device()
        nvml.sample_device()
        pretend.sm_clock_mhz, pretend.reasons = 210, 0x1
    nvml.sample_device()
    assert watch.facts["gpu_state"]["during"] == {
        "num_samples": 3,
        "sm_clock_hz": 1_200_000_000,
        "memory_clock_hz": 1_593_000_000,
        "clocks_event_reasons": ["hw_thermal_slowdown", "sw_power_cap"],
    }
    assert pretend.open == 0


def test_the_queries_of_memory_are_those_of_the_installed_binding() -> None:
    binding = pytest.importorskip("pynvml")
    assert "handle" in inspect.signature(binding.nvmlDeviceGetMemoryInfo).parameters
    assert {"total", "used"} <= {name for name, _ in binding.c_nvmlMemory_t._fields_}


def test_a_watch_says_what_it_could_not_read(pretend: PretendNvml) -> None:
    pretend.refused = {"nvmlDeviceGetViolationStatus"}
    with nvml.watch_device(CUDA) as watch:
        pass
    assert watch.facts["gpu_state"]["violation_s"] == {}
    assert watch.absent["gpu_state.power_violation_s"] == "NVML: Not Supported"


def test_a_watch_lets_an_error_through(pretend: PretendNvml) -> None:
    with pytest.raises(KeyError, match="of the cell"), nvml.watch_device(CUDA) as watch:
        raise KeyError("of the cell")
    assert watch.facts == {}


def test_a_watch_on_a_cpu_has_no_gpu_to_read() -> None:
    with nvml.watch_device(torch.device("cpu")) as watch:
        pass
    assert watch.facts == {}
    assert watch.absent == {"gpu_state": "the device is 'cpu', not a GPU with NVML"}


def test_names_are_those_of_every_gpu(pretend: PretendNvml) -> None:
    pretend.names = ["NVIDIA L4", "NVIDIA L4"]
    assert nvml.gpu_names() == ["NVIDIA L4", "NVIDIA L4"]


def test_a_gpu_in_slices_has_no_name_of_its_own(pretend: PretendNvml) -> None:
    pretend.mig = [1, 1]
    assert nvml.gpu_names() == []


def test_no_name_where_nvml_fails(pretend: PretendNvml) -> None:
    pretend.refused = {"nvmlDeviceGetCount"}
    assert nvml.gpu_names() == []
    assert pretend.open == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_everything_is_absent_with_a_reason() -> None:
    with nvml.watch_device(CUDA) as watch:
        pass
    assert watch.facts == {}
    assert watch.absent["gpu_state"].startswith("NVML: ")
    assert nvml.describe_gpu(CUDA).absent["driver_version"].startswith("NVML: ")
    assert nvml.gpu_names() == []


def test_without_the_binding_the_reason_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with nvml.watch_device(CUDA) as watch:
        pass
    assert "nvidia-ml-py is not installed" in watch.absent["gpu_state"]


@pytest.mark.gpu
def test_a_real_gpu_is_read() -> None:
    torch.zeros(1, device=CUDA)
    with nvml.watch_device(CUDA) as watch:
        pass
    state = watch.facts["gpu_state"]["after"]
    assert 10**8 < state["sm_clock_hz"] < 10**10
    assert 0 < state["temperature_c"] < 120
    assert nvml.describe_gpu(CUDA).facts["driver_version"]


def test_a_gpu_is_identified_by_its_uuid(pretend: PretendNvml) -> None:
    assert nvml.gpu_uuid(CUDA) == (f"UUID of handle of GPU-{UUID}", "")
    pretend.missing.add("nvmlDeviceGetUUID")
    uuid, reason = nvml.gpu_uuid(CUDA)
    assert uuid is None
    assert "nvmlDeviceGetUUID" in reason
    assert nvml.gpu_uuid(torch.device("cpu")) == (None, "the device is a CPU")


def test_a_runner_identifies_a_gpu_without_torch(
    pretend: PretendNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nvml.board_uuid(UUID) == nvml.gpu_uuid(CUDA)[0]
    assert nvml.count_gpus() == 1
    monkeypatch.setattr(nvml.os, "cpu_count", lambda: 96)
    assert nvml.near_cpus(UUID) == {0, 3, 64}
    pretend.missing |= {"nvmlDeviceGetUUID", "nvmlDeviceGetCpuAffinity"}
    assert nvml.board_uuid(UUID) is None
    assert nvml.near_cpus(UUID) == set()


def test_a_gpu_for_one_process_at_a_time_is_known_as_such(pretend: PretendNvml) -> None:
    assert not nvml.is_exclusive(UUID)
    pretend.compute_mode = pretend.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
    assert nvml.is_exclusive(UUID)
    pretend.refused.add("nvmlDeviceGetComputeMode")
    assert not nvml.is_exclusive(UUID)
