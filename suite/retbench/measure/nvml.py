"""Settings and state of a GPU, and the processes on it, as NVIDIA's driver reports them.

A fact that cannot be read is absent with the reason. The binding (package nvidia-ml-py, module `pynvml`) and torch are
imported when they are first needed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_MHZ = 10**6
_WORD_BITS = 64
"""CPUs of one word of NVML's masks."""

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


_samplers: list[Callable[[], None]] = []
"""Functions that `sample_device` calls: the sampler of the block that is being watched."""


@dataclass
class DriverReading:
    """Facts by name, and the reason of each one that could not be read."""

    facts: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


class DriverUnavailableError(Exception):
    """NVML, or one of its counters, cannot be used on this machine; the message states the reason."""


@contextmanager
def open_nvml() -> Iterator[Any]:
    """Yield the initialised `pynvml` module.

    Raises:
        DriverUnavailableError: the package is not installed, there is no driver, or a query within the block fails.
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


@contextmanager
def open_gpu(device: "torch.device") -> Iterator[tuple[Any, Any]]:
    """Yield the initialised `pynvml` module and its handle of the GPU that `device` is in torch.

    CUDA_VISIBLE_DEVICES may have renumbered the GPUs. The handle of a MIG slice is that of the whole GPU, which has
    clocks and temperature. A CUDA context is created in this process.

    Raises:
        DriverUnavailableError: as `open_nvml`, or NVML does not find the GPU.
    """
    import torch

    with open_nvml() as nvml:
        yield nvml, _find_handle(nvml, torch.cuda.get_device_properties(device))


def _find_handle(nvml: Any, properties: Any) -> Any:
    """Return NVML's handle of the GPU with these properties, by its UUID or else its place on the bus."""
    lookups: list[Callable[[], Any]] = [
        lambda: nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}"),
        lambda: nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
            nvml.nvmlDeviceGetHandleByUUID(f"MIG-{properties.uuid}")
        ),
    ]
    bus = getattr(properties, "pci_bus_id", None)  # an older torch does not report it
    if bus is not None:
        place = f"{properties.pci_domain_id:08x}:{bus:02x}:{properties.pci_device_id:02x}.0"
        lookups.append(lambda: nvml.nvmlDeviceGetHandleByPciBusId(place))
    reasons = []
    for lookup in lookups:
        try:
            return lookup()
        except nvml.NVMLError as error:
            reasons.append(str(error))
    raise DriverUnavailableError(
        f"NVML does not find the GPU {properties.uuid} that torch uses: {', '.join(reasons)}"
    )


def gpu_names() -> list[str]:
    """Return the models of all GPUs of the machine; none if NVML fails or a GPU is in slices (MIG)."""
    try:
        with open_nvml() as nvml:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            if any(is_sliced(nvml, handle) for handle in handles):
                return []
            return [nvml.nvmlDeviceGetName(handle) for handle in handles]
    except DriverUnavailableError:
        return []


def count_gpus() -> int:
    """Return the number of GPUs of the machine, whole ones where they are in slices; 0 if NVML fails."""
    try:
        with open_nvml() as nvml:
            return int(nvml.nvmlDeviceGetCount())
    except DriverUnavailableError:
        return 0


def near_cpus(uuid: str) -> set[int]:
    """Return the logical CPUs on the memory node of a GPU; none if NVML does not know them."""
    num_words = -(-(os.cpu_count() or 1) // _WORD_BITS)
    try:
        with open_nvml() as nvml:
            words = nvml.nvmlDeviceGetCpuAffinity(_find_handle(nvml, _Uuid(uuid)), num_words)
    except (DriverUnavailableError, AttributeError):
        return set()
    bits = sum(int(word) << (_WORD_BITS * place) for place, word in enumerate(words))
    return {cpu for cpu in range(num_words * _WORD_BITS) if bits >> cpu & 1}


def board_uuid(uuid: str) -> str | None:
    """Return the UUID that records state for a GPU, of the whole GPU for a slice; None if NVML fails.

    Args:
        uuid: The one of `measure.devices.device_uuid`.
    """
    try:
        with open_nvml() as nvml:
            return str(nvml.nvmlDeviceGetUUID(_find_handle(nvml, _Uuid(uuid))))
    except (DriverUnavailableError, AttributeError):
        return None


def is_exclusive(uuid: str) -> bool:
    """Return whether a GPU lets only one process at a time use it; False if NVML fails."""
    try:
        with open_nvml() as nvml:
            mode = nvml.nvmlDeviceGetComputeMode(_find_handle(nvml, _Uuid(uuid)))
            return bool(mode == nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS)
    except (DriverUnavailableError, AttributeError):
        return False


@dataclass(frozen=True)
class _Uuid:
    """Properties of a GPU of which the UUID is known only."""

    uuid: str


def is_sliced(nvml: Any, handle: Any) -> bool:
    """Return whether MIG is on; a GPU that does not support MIG is never sliced."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False


def read_settings(nvml: Any, handle: Any) -> DriverReading:
    """Read what the GPU is configured to: driver, limits, modes."""
    return _read_all(
        nvml,
        {
            "driver_version": nvml.nvmlSystemGetDriverVersion,
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,  # mW
            "max_sm_clock_hz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) * _MHZ,
            "max_memory_clock_hz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * _MHZ,
            "persistence_mode": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
            "mig_mode": lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]),  # current, pending
            "ecc_mode": lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0]),
            "board_memory_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        },
    )


def read_state(nvml: Any, handle: Any) -> DriverReading:
    """Read the GPU's present state: memory, clocks, temperature, power, throttling reasons, other processes.

    `board_used_bytes` are those of all processes and of the driver itself, on all slices of the GPU (MIG).

    `power_violation_s` and `thermal_violation_s` accumulate while the driver is loaded. Their difference over a window
    is the time that the GPU was throttled in it, even if it is not throttled at either end.
    """
    reading = _read_all(
        nvml,
        {
            **_clock_queries(nvml, handle),
            "board_used_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,  # mW
            "power_violation_s": lambda: _violation_s(nvml, handle, nvml.NVML_PERF_POLICY_POWER),
            "thermal_violation_s": lambda: _violation_s(nvml, handle, nvml.NVML_PERF_POLICY_THERMAL),
        },
    )
    _read_processes(nvml, handle, reading)
    return reading


def _clock_queries(nvml: Any, handle: Any) -> dict[str, Callable[[], Any]]:
    """Return the queries that are quick enough to be made while the GPU works."""
    return {
        "sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * _MHZ,
        "memory_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM) * _MHZ,
        "clocks_event_reasons": lambda: decode_reasons(_reasons_mask(nvml, handle)),
    }


def _read_all(nvml: Any, queries: dict[str, Callable[[], Any]]) -> DriverReading:
    reading = DriverReading()
    for name, query in queries.items():
        try:
            reading.facts[name] = query()
        except (nvml.NVMLError, AttributeError) as error:  # AttributeError: a binding without the function
            reading.absent[name] = f"NVML: {error}"
    return reading


def _violation_s(nvml: Any, handle: Any, policy: int) -> float:
    """Return the seconds that the clocks were throttled for `policy` so far; NVML counts in ns."""
    return float(nvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime) / 1e9


def _reasons_mask(nvml: Any, handle: Any) -> int:
    """Return the bits of the throttling reasons, by the newer name of the query or else by the older one."""
    try:
        return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except (AttributeError, nvml.NVMLError):
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def decode_reasons(mask: int) -> list[str]:
    """Return the names of the bits set, lowest first: 0x44 -> sw_power_cap, hw_thermal_slowdown; or unknown_0x800."""
    bits = (1 << position for position in range(mask.bit_length()))
    return [_CLOCKS_EVENT_REASONS.get(bit, f"unknown_{bit:#x}") for bit in bits if mask & bit]


def _compute_processes(nvml: Any, handle: Any) -> list[Any]:
    """Return the processes that compute on the GPU, by the newer version of the query or else by the older one.

    The query without a version fails with an older driver, by an exception that is no NVMLError.
    """
    try:
        return list(nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle))
    except (AttributeError, nvml.NVMLError):
        return list(nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle))


def _read_processes(nvml: Any, handle: Any, reading: DriverReading) -> None:
    """Add the other processes that compute on the GPU.

    In a container NVML may report process ids of the host. This process cannot be identified among them then, and only
    the number of the others is known.
    """
    import torch

    try:
        processes = _compute_processes(nvml, handle)
    except (nvml.NVMLError, AttributeError) as error:
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


def describe_gpu(device: "torch.device") -> DriverReading:
    """Return the settings of a GPU; without a driver, one reason under `driver_version`."""
    try:
        with open_gpu(device) as (nvml, handle):
            return read_settings(nvml, handle)
    except DriverUnavailableError as error:
        return DriverReading(absent={"driver_version": str(error)})


def gpu_uuid(device: "torch.device") -> tuple[str | None, str]:
    """Return the UUID of the GPU that `device` is; or None and the reason."""
    if device.type != "cuda":
        return None, "the device is a CPU"
    try:
        with open_gpu(device) as (nvml, handle):
            return str(nvml.nvmlDeviceGetUUID(handle)), ""
    except (DriverUnavailableError, AttributeError) as error:
        return None, str(error)


@contextmanager
def watch_device(device: "torch.device") -> Iterator[DriverReading]:
    """Read the state of the GPU around a block that measures something, into the reading that is yielded.

    Its facts are `gpu_state` for a record's environment: the states `before` and `after`, `during` from the calls of
    `sample_device` in the block, and `violation_s`, the time in between that the clocks were throttled for power and
    for heat. It stays empty if the block raises, since a failing GPU may not answer.
    """
    before, reading = _read_now(device), DriverReading()
    with _sampling(device) as samples:
        yield reading
    after = _read_now(device)
    reading.absent |= before.absent | after.absent
    if before.facts and after.facts:
        state: dict[str, Any] = {"before": before.facts, "after": after.facts}
        state["violation_s"] = _violation_between(before.facts, after.facts)
        if samples:
            state["during"] = _summarise(samples)
        else:
            reading.absent["gpu_state.during"] = "the cell timed no steps on the device"
        reading.facts["gpu_state"] = state


def sample_device() -> None:
    """Read clocks and throttling reasons for the block that `watch_device` watches; do nothing outside of one.

    Call this while the GPU works on queued steps: before and after them its clocks may be those of an idle GPU.
    """
    for sample in _samplers:
        sample()


@contextmanager
def _sampling(device: "torch.device") -> Iterator[list[DriverReading]]:
    """Yield the list that `sample_device` appends to during the block; it stays empty without a driver."""
    samples: list[DriverReading] = []
    with ExitStack() as stack:
        # Without a driver the reason is among those of the state before the block.
        with suppress(DriverUnavailableError):
            if device.type == "cuda":
                nvml, handle = stack.enter_context(open_gpu(device))
                _samplers.append(lambda: samples.append(_read_all(nvml, _clock_queries(nvml, handle))))
                stack.callback(_samplers.pop)
        yield samples


def _summarise(samples: list[DriverReading]) -> dict[str, Any]:
    """Return the number of samples, the median of each clock, and every throttling reason that was read."""
    facts = [sample.facts for sample in samples]
    medians = {
        name: median(one[name] for one in facts)
        for name in ("sm_clock_hz", "memory_clock_hz")
        if all(name in one for one in facts)
    }
    reasons = {reason for one in facts for reason in one.get("clocks_event_reasons", ())}
    return {"num_samples": len(samples), **medians, "clocks_event_reasons": sorted(reasons)}


def _read_now(device: "torch.device") -> DriverReading:
    """Return the present state; one reason if there is no GPU or no driver."""
    if device.type != "cuda":
        return DriverReading(absent={"gpu_state": f"the device is '{device}', not a GPU with NVML"})
    try:
        with open_gpu(device) as (nvml, handle):
            reading = read_state(nvml, handle)
    except DriverUnavailableError as error:
        return DriverReading(absent={"gpu_state": str(error)})
    absent = {f"gpu_state.{name}": reason for name, reason in reading.absent.items()}
    return DriverReading(reading.facts, absent)


def _violation_between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Return the increase of each counter of throttled time that was read at both ends."""
    return {
        name: after[counter] - before[counter]
        for name, counter in (("power", "power_violation_s"), ("thermal", "thermal_violation_s"))
        if counter in before and counter in after
    }
