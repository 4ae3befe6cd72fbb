"""The device of a run, found without a CUDA context in the runner: that would take memory of the GPU."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from retbench.errors import ConfigError, RetbenchError, UnsupportedError
from retbench.measure import nvml
from retbench.measure.machine import usable_cores

_PROBE = """
import json, torch
usable = torch.cuda.is_available()
devices = range(torch.cuda.device_count()) if usable else ()
found = [torch.cuda.get_device_properties(index) for index in devices]
facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
facts |= {"memory": [one.total_memory for one in found], "uuids": [str(getattr(one, "uuid", "")) for one in found]}
print(json.dumps(facts))
"""
_PROBE_TIMEOUT_S = 120.0

_NVIDIA_DRIVER = Path("/dev/nvidiactl")
"""Device file of NVIDIA's driver. It is there too where NVML cannot be used: after an update of the driver until the
machine starts again, or in a container that has the driver for computation only."""

_AMD_DRIVER = Path("/dev/kfd")
"""Device file of AMD's driver for computation on GPUs (ROCm)."""

_SHOWN_LINES = 8
"""Lines of torch's stderr that a message quotes."""


@dataclass(frozen=True)
class Device:
    """A device by torch's name: `cpu`, or `cuda:N` with its memory."""

    name: str
    memory_bytes: int | None = None


@dataclass(frozen=True)
class _TorchFacts:
    """Report of torch about its build and its devices.

    Attributes:
        torch: Version of torch.
        cuda: CUDA version that torch was built for, if any.
        hip: ROCm version that torch was built for, if any.
        memory: Bytes of each device.
        uuids: UUID of each device, or of a slice of one (MIG), without a prefix.
        stderr: What torch wrote to stderr: its reason where it finds no device.
    """

    torch: str
    cuda: str | None
    hip: str | None
    memory: tuple[int, ...]
    stderr: str = ""
    uuids: tuple[str, ...] = ()


def find_device(asked: str | None) -> Device:
    """Return the requested device, or the best one on this machine.

    A GPU that torch cannot use is an error, and the CPU is used only if it was asked for. CUDA_VISIBLE_DEVICES set to
    nothing or to -1 asks for it.

    Args:
        asked: `cpu`, `cuda` or `cuda:N`; None for the first CUDA device if there is a GPU, else the CPU.

    Raises:
        ConfigError: `asked` is not a kind of device.
        UnsupportedError: the CUDA device cannot be used on this machine.
    """
    if asked == "cpu" or (asked is None and (_hides_gpus() or not (_has_driver() or _AMD_DRIVER.exists()))):
        return Device("cpu")
    index = _cuda_index("cuda" if asked is None else asked)
    found = _ask_torch()
    if asked is None and found.hip is None and not _has_driver():
        # An AMD GPU, also one that is part of the processor, is of no use to a torch that was not built for ROCm.
        return Device("cpu")
    if found.hip is None and index < len(found.memory):
        return Device(f"cuda:{index}", found.memory[index])
    where = "this machine has a GPU" if asked is None else f"--device {asked}"
    raise UnsupportedError(f"{where}: {_why_no_cuda(found)}")


def check_device_name(asked: str | None) -> None:
    """Raise ConfigError unless a name is that of a kind of device, on this machine or on another one."""
    if asked not in (None, "cpu"):
        _cuda_index(asked)


def device_uuid(device: str) -> str:
    """Return the UUID of a CUDA device as torch has it, of a slice of a GPU (MIG) its own.

    Args:
        device: `cuda:N`, as `find_device` gives it.
    """
    return _ask_torch().uuids[_cuda_index(device)]


def default_threads(device: str, num_processes: int = 1) -> int:
    """Return the threads of a process where nothing asks for a number: one per physical core that is its own.

    Processes on one CPU share its cores. On a GPU as many cores count as the machine has for each of its GPUs.

    Args:
        device: torch's name of the device.
        num_processes: Number of processes of this machine that share the cores, or have a GPU each.
    """
    sharing = num_processes if device == "cpu" else max(num_processes, nvml.count_gpus())
    return max(1, usable_cores() // sharing)


def _hides_gpus() -> bool:
    """Return whether the environment hides every GPU from CUDA."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in {"", "-1"}


def _cuda_index(asked: str) -> int:
    """Return N of `cuda:N`, and 0 for `cuda`."""
    match = re.fullmatch(r"cuda(?::([0-9]{1,3}))?", asked)
    if match is None:
        raise ConfigError(
            f"--device {asked!r}: retbench measures on 'cpu', 'cuda' (an NVIDIA GPU) and 'cuda:N'. Give one of them."
        )
    return int(match.group(1) or 0)


def _has_driver() -> bool:
    """Return whether NVIDIA's driver is there; without it there is no GPU, and torch need not be started."""
    try:
        with nvml.open_nvml():
            return True
    except nvml.DriverUnavailableError:
        return _NVIDIA_DRIVER.exists()


@cache
def _ask_torch() -> _TorchFacts:
    """Query torch about CUDA in a separate process, once, with its warnings."""
    command = [sys.executable, "-P", "-W", "default", "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired as error:
        raise UnsupportedError(
            f"torch gave no answer about CUDA devices within {_PROBE_TIMEOUT_S:g} s. Check `nvidia-smi`, or "
            "give --device cpu."
        ) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise RetbenchError(f"torch cannot be used in this Python ({sys.executable}): {last}") from error
    return _TorchFacts(**json.loads(done.stdout.splitlines()[-1]), stderr=done.stderr)


def _why_no_cuda(found: _TorchFacts) -> str:
    """Return the reason why a CUDA device cannot be used, and a remedy."""
    if found.hip is not None:
        return (
            f"torch {found.torch} is a build for ROCm {found.hip}, and retbench measures on NVIDIA GPUs and CPUs "
            "only. Give --device cpu."
        )
    if found.cuda is None:
        return (
            f"torch {found.torch} is a build without CUDA. Install one with it "
            "(https://pytorch.org/get-started/locally), or give --device cpu."
        )
    if not found.memory:
        return (
            f"torch {found.torch} for CUDA {found.cuda} finds no device. Check `nvidia-smi` and "
            "CUDA_VISIBLE_DEVICES, or give --device cpu. If the driver is too old for this CUDA, replace torch by a "
            "build for an older one: pip uninstall --yes torch, then "
            "pip install --index-url https://download.pytorch.org/whl/cu126 torch."
            f"{_quote(found.stderr)}"
        )
    return f"the devices here are cuda:0 to cuda:{len(found.memory) - 1}. Give one of them."


def _quote(stderr: str) -> str:
    """Return the end of torch's stderr as the end of a message."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return " torch wrote:\n" + "\n".join(lines[-_SHOWN_LINES:]) if lines else " torch wrote no reason."
