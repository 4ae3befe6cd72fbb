"""What NVIDIA's driver tells about a GPU: what it is set to, how it fares, who else is on it.

Nothing here fails: what cannot be read is absent, with the reason. The binding (package nvidia-ml-py, module
`pynvml`) and torch are imported when they are first needed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch

_MHZ = 10**6

_CLOCKS_EVENT_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons. Source: nvml.h, group nvmlClocksEventReasons."""


@dataclass
class Reading:
    """Facts by name, and the reason of each one that could not be read."""

    facts: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def read(self, name: str, query: Callable[[], Any], errors: tuple[type[Exception], ...]) -> None:
        """Store what `query` returns under `name`, or why it failed."""
        try:
            self.facts[name] = query()
        except errors as error:
            self.absent[name] = f"NVML: {error}"


class DriverUnavailableError(Exception):
    """NVML cannot be used here; the text says why."""


@dataclass(frozen=True)
class DeviceIdentity:
    """How torch names a GPU so that NVML finds the same one, whatever CUDA_VISIBLE_DEVICES has renumbered.

    Attributes:
        uuid: Without its prefix: 8a3b... of GPU-8a3b....
        pci_bus_id: domain:bus:device.function; None where this torch does not tell.
    """

    uuid: str
    pci_bus_id: str | None


def identify(device: "torch.device") -> DeviceIdentity:
    """The identity of a CUDA device. A process without a CUDA context gets one by this."""
    import torch

    properties: Any = torch.cuda.get_device_properties(device)
    bus = getattr(properties, "pci_bus_id", None)
    if bus is None:
        return DeviceIdentity(str(properties.uuid), None)
    place = f"{properties.pci_domain_id:08x}:{bus:02x}:{properties.pci_device_id:02x}.0"
    return DeviceIdentity(str(properties.uuid), place)


@contextmanager
def open_nvml() -> Iterator[Any]:
    """The `pynvml` module, initialised inside.

    Raises:
        DriverUnavailableError: the package is not installed, or there is no driver, or it refuses what is
            asked of it inside without being caught there.
    """
    try:
        nvml = import_module("pynvml")
    except ImportError as error:
        raise DriverUnavailableError(f"the package nvidia-ml-py is not installed ({error})") from error
    try:
        nvml.nvmlInit()
        try:
            yield nvml
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise DriverUnavailableError(f"NVML: {error}") from error


def find_handle(nvml: Any, identity: DeviceIdentity) -> Any:
    """NVML's handle of a GPU; for a MIG slice that of the whole GPU, which has the clocks and the heat.

    Raises:
        DriverUnavailableError: NVML knows no such GPU.
    """
    ways: list[Callable[[], Any]] = [
        lambda: nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity.uuid}"),
        lambda: nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
            nvml.nvmlDeviceGetHandleByUUID(f"MIG-{identity.uuid}")
        ),
    ]
    if identity.pci_bus_id is not None:
        ways.append(lambda: nvml.nvmlDeviceGetHandleByPciBusId(identity.pci_bus_id))
    reasons = []
    for way in ways:
        try:
            return way()
        except nvml.NVMLError as error:
            reasons.append(str(error))
    raise DriverUnavailableError(
        f"NVML does not find the GPU that torch uses, {identity}: {', '.join(reasons)}"
    )


def gpu_names() -> list[str]:
    """Models of all GPUs of the machine; empty where NVML cannot tell, or where one is in slices (MIG)."""
    try:
        with open_nvml() as nvml:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            if any(is_sliced(nvml, handle) for handle in handles):
                return []
            return [nvml.nvmlDeviceGetName(handle) for handle in handles]
    except DriverUnavailableError:
        return []


def is_sliced(nvml: Any, handle: Any) -> bool:
    """Whether MIG is on; a GPU that knows no MIG is whole."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False


def read_settings(nvml: Any, handle: Any) -> Reading:
    """What the GPU is set to and does not change by itself: driver, limits, modes."""
    errors = (nvml.NVMLError, AttributeError)  # AttributeError: an older binding without the function
    reading = Reading()
    queries: dict[str, Callable[[], Any]] = {
        "driver_version": nvml.nvmlSystemGetDriverVersion,
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,  # mW
        "max_sm_clock_hz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) * _MHZ,
        "max_memory_clock_hz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * _MHZ,
        "persistence_mode": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
        "mig_mode": lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]),  # current, pending
        "ecc_mode": lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0]),
    }
    for name, query in queries.items():
        reading.read(name, query, errors)
    return reading


def read_state(nvml: Any, handle: Any) -> Reading:
    """How the GPU fares at this moment: clocks, heat, power, what slows it, and who else computes on it.

    `power_violation_s` and `thermal_violation_s` count up for as long as the driver is loaded; their
    difference over a window is the time that the clocks were held down in it, which a glance at either end
    can miss.
    """
    errors = (nvml.NVMLError, AttributeError)
    reading = Reading()
    queries: dict[str, Callable[[], Any]] = {
        "sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * _MHZ,
        "memory_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM) * _MHZ,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,  # mW
        "power_violation_s": lambda: _violation_s(nvml, handle, nvml.NVML_PERF_POLICY_POWER),
        "thermal_violation_s": lambda: _violation_s(nvml, handle, nvml.NVML_PERF_POLICY_THERMAL),
        "clocks_event_reasons": lambda: decode_reasons(_reasons_mask(nvml, handle)),
    }
    for name, query in queries.items():
        reading.read(name, query, errors)
    _read_processes(nvml, handle, reading)
    return reading


def _violation_s(nvml: Any, handle: Any, policy: int) -> float:
    """Seconds so far that the clocks were held down for `policy`; NVML counts in ns."""
    return float(nvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime) / 1e9


def _reasons_mask(nvml: Any, handle: Any) -> int:
    """Bits of what holds the clocks down, by the newer name of the query or, where unknown, by the older."""
    try:
        return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except (AttributeError, nvml.NVMLError):
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def decode_reasons(mask: int) -> list[str]:
    """Names of the bits set, lowest first: 0x44 -> sw_power_cap, hw_thermal_slowdown; or unknown_0x800."""
    bits = (1 << position for position in range(mask.bit_length()))
    return [_CLOCKS_EVENT_REASONS.get(bit, f"unknown_{bit:#x}") for bit in bits if mask & bit]


def _read_processes(nvml: Any, handle: Any, reading: Reading) -> None:
    """Processes other than this one that compute on the GPU.

    In a container NVML may give process ids of the host. Then this process, which is on the GPU, is not among
    them by its own number, and which of them it is cannot be told: only how many there are.
    """
    import torch

    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError as error:
        reading.absent["num_foreign_processes"] = reading.absent["foreign_processes"] = f"NVML: {error}"
        return
    foreign = [process for process in processes if process.pid != os.getpid()]
    if torch.cuda.is_initialized() and processes and len(foreign) == len(processes):
        reading.facts["num_foreign_processes"] = len(processes) - 1
        reading.absent["foreign_processes"] = "NVML gives process ids of another namespace (a container)"
        return
    reading.facts["num_foreign_processes"] = len(foreign)
    reading.facts["foreign_processes"] = [
        {"pid": process.pid, "memory_bytes": process.usedGpuMemory} for process in foreign
    ]


def describe_gpu(device: "torch.device") -> Reading:
    """Settings of the GPU that `device` is; without a driver, one reason under `driver_version`."""
    try:
        with open_nvml() as nvml:
            return read_settings(nvml, find_handle(nvml, identify(device)))
    except DriverUnavailableError as error:
        return Reading(absent={"driver_version": str(error)})


def gpu_uuid(device: "torch.device") -> tuple[str | None, str]:
    """Return the UUID of the GPU that `device` is; or None and the reason."""
    if device.type != "cuda":
        return None, "the device is a CPU"
    try:
        with open_nvml() as nvml:
            return str(nvml.nvmlDeviceGetUUID(find_handle(nvml, identify(device)))), ""
    except (DriverUnavailableError, AttributeError) as error:
        return None, str(error)


class DeviceWatch:
    """Reads how the GPU fares on the way in and on the way out of a `with` block that measures something.

    Attributes:
        facts: For a record's environment: `gpu_state` with what was read `before` and `after`, and `violation_s`:
            for how long, in between, the clocks were held down for power and for heat.
        absent: For a record's absent: what could not be read, each with the reason.
    """

    def __init__(self, device: "torch.device") -> None:
        self._device = device
        self._before = Reading()
        self.facts: dict[str, Any] = {}
        self.absent: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._before = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return  # nothing was measured, and a GPU in trouble may not answer
        after = self._read()
        self.absent |= self._before.absent | after.absent
        if self._before.facts and after.facts:
            self.facts["gpu_state"] = {
                "before": self._before.facts,
                "after": after.facts,
                "violation_s": _violation_between(self._before.facts, after.facts),
            }

    def _read(self) -> Reading:
        """The state now; one reason where there is no GPU or no driver."""
        if self._device.type != "cuda":
            return Reading(absent={"gpu_state": f"the device is '{self._device}', not a GPU with NVML"})
        try:
            with open_nvml() as nvml:
                reading = read_state(nvml, find_handle(nvml, identify(self._device)))
        except DriverUnavailableError as error:
            return Reading(absent={"gpu_state": str(error)})
        return Reading(
            reading.facts, {f"gpu_state.{name}": reason for name, reason in reading.absent.items()}
        )


def _violation_between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Growth of each counter of held-down time that was read at both ends."""
    counters = {"power": "power_violation_s", "thermal": "thermal_violation_s"}
    return {
        name: after[counter] - before[counter]
        for name, counter in counters.items()
        if counter in before and counter in after
    }
