"""The device of a run, found without a CUDA context in the runner: that would take memory of the GPU."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

from retbench.errors import ConfigError, RetbenchError, UnsupportedError

_PROBE = """
import json, torch
usable = torch.cuda.is_available()
devices = range(torch.cuda.device_count()) if usable else ()
memory = [torch.cuda.get_device_properties(index).total_memory for index in devices]
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "memory": memory}))
"""
_PROBE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Device:
    """A device by torch's name: `cpu`, or `cuda:N` with its memory."""

    name: str
    memory_bytes: int | None = None


class _TorchFacts(NamedTuple):
    """torch's version, the CUDA version it was built for, and the memory of each device."""

    torch: str
    cuda: str | None
    memory: tuple[int, ...]


def find_device(asked: str | None) -> Device:
    """Return the requested device, or the best one on this machine.

    Args:
        asked: `cpu`, `cuda` or `cuda:N`; None for the first CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: `asked` is not a kind of device.
        UnsupportedError: the CUDA device cannot be used on this machine.
    """
    if asked == "cpu" or (asked is None and not _has_driver()):
        return Device("cpu")
    index = _cuda_index("cuda" if asked is None else asked)
    found = _ask_torch()
    if index < len(found.memory):
        return Device(f"cuda:{index}", found.memory[index])
    if asked is None:
        return Device("cpu")
    raise UnsupportedError(f"--device {asked}: {_why_no_cuda(found)}")


def _cuda_index(asked: str) -> int:
    """Return N of `cuda:N`, and 0 for `cuda`."""
    match = re.fullmatch(r"cuda(?::([0-9]{1,3}))?", asked)
    if match is None:
        raise ConfigError(
            f"--device {asked!r}: retbench measures on 'cpu', 'cuda' and 'cuda:N'. Give one of them."
        )
    return int(match.group(1) or 0)


def _has_driver() -> bool:
    """Return whether NVIDIA's driver answers; without it there is no GPU, and torch need not be started."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


def _ask_torch() -> _TorchFacts:
    """Query torch about CUDA in a separate process."""
    command = [sys.executable, "-P", "-c", _PROBE]
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
    return _TorchFacts(**json.loads(done.stdout.splitlines()[-1]))


def _why_no_cuda(found: _TorchFacts) -> str:
    """Return the reason why a CUDA device cannot be used, and a remedy."""
    if found.cuda is None:
        return (
            f"torch {found.torch} is a build without CUDA. Install one with it "
            "(https://pytorch.org/get-started/locally), or give --device cpu."
        )
    if not found.memory:
        return (
            f"torch {found.torch} for CUDA {found.cuda} finds no device. Check `nvidia-smi` and "
            "CUDA_VISIBLE_DEVICES, or give --device cpu."
        )
    return f"the devices here are cuda:0 to cuda:{len(found.memory) - 1}. Give one of them."
