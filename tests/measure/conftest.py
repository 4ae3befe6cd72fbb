"""A driver and its binding to measure without: what NVML would say of one GPU."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

UUID = "8a3b2c1d-0000-1111-2222-333344445555"
CUDA = torch.device("cuda:0")


class PretendError(Exception):
    """Stands for pynvml.NVMLError."""


class PretendNvml(ModuleType):
    """Stands for `pynvml` with one GPU; `missing` functions are not there, `refused` ones fail."""

    NVMLError = PretendError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1
    NVML_COMPUTEMODE_EXCLUSIVE_PROCESS = 3

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0
        self.missing: set[str] = set()
        self.refused: set[str] = set()
        self.processes: list[tuple[int, int | None]] = []
        self.violation_ns = 0
        self.sm_clock_mhz = 1095
        self.reasons = 0x44
        self.names = ["NVIDIA A100-SXM4-80GB"]
        self.mig = [0, 1]  # off, and on after the next reset
        self.compute_mode = 0

    def answers(self) -> dict[str, Any]:
        return {
            "nvmlSystemGetDriverVersion": lambda: "550.54.15",
            "nvmlDeviceGetCount": lambda: len(self.names),
            "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
            "nvmlDeviceGetUUID": lambda handle: f"UUID of {handle}",
            "nvmlDeviceGetCpuAffinity": lambda handle, words: [0b1001, *[0] * (words - 2), 1][:words],
            "nvmlDeviceGetName": lambda handle: self.names[int(handle.split()[-1])],
            "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle of {uuid}",
            "nvmlDeviceGetHandleByPciBusId": lambda place: f"handle at {place}",
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda handle: f"parent of {handle}",
            "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 400_000,
            "nvmlDeviceGetMaxClockInfo": lambda handle, clock: {1: 1410, 2: 1593}[clock],
            "nvmlDeviceGetPersistenceMode": lambda handle: 1,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
                total=85_899_345_920, free=80_000_000_000, used=5_899_345_920
            ),
            "nvmlDeviceGetComputeMode": lambda handle: self.compute_mode,
            "nvmlDeviceGetMigMode": lambda handle: self.mig,
            "nvmlDeviceGetEccMode": lambda handle: [1, 0],
            "nvmlDeviceGetClockInfo": lambda handle, clock: {1: self.sm_clock_mhz, 2: 1593}[clock],
            "nvmlDeviceGetTemperature": lambda handle, sensor: 61,
            "nvmlDeviceGetPowerUsage": lambda handle: 250_500,
            "nvmlDeviceGetViolationStatus": lambda handle, policy: SimpleNamespace(
                violationTime=self.violation_ns if policy == 0 else 0
            ),
            "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: self.reasons,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x8,
            "nvmlDeviceGetComputeRunningProcesses_v3": self.compute_processes,
            "nvmlDeviceGetComputeRunningProcesses_v2": self.compute_processes,
        }

    def compute_processes(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml") or name in self.missing or name not in self.answers():
            raise AttributeError(f"module 'pynvml' has no attribute '{name}'")
        if name in self.refused:
            return self.refuse
        return self.answers()[name]

    def refuse(self, *args: object) -> None:
        raise PretendError("Not Supported")

    def nvmlInit(self) -> None:  # noqa: N802  (NVML's name)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> PretendNvml:
    module = PretendNvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = SimpleNamespace(uuid=UUID, pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return module
