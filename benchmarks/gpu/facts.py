"""Print the driver's and torch's facts about the GPUs: `python -m benchmarks.gpu.facts`. Needs no working GPU.

Exit codes: 0 printed, 1 torch has a GPU on which the fused operators of decode steps cannot run, so that a sweep would
measure eager steps.
"""

import json
import subprocess
import sys

import torch

from retbench.ops import fused

_QUERY = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.total,mig.mode.current,compute_mode,power.limit",
    "--format=csv",
)
_TIMEOUT_S = 30.0


def driver_facts() -> str:
    """Return what nvidia-smi prints, or why it prints nothing."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return "nvidia-smi is not installed"
    except subprocess.TimeoutExpired:
        return f"nvidia-smi gave no answer within {_TIMEOUT_S:g} s"
    return (done.stdout + done.stderr).strip()


def torch_facts() -> dict[str, object]:
    """Return torch's version, its CUDA, and the name, capability and memory of each device."""
    usable = torch.cuda.is_available()
    found = [
        torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count() if usable else 0)
    ]
    devices = [
        {"name": one.name, "capability": f"{one.major}.{one.minor}", "memory_bytes": one.total_memory}
        for one in found
    ]
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "is_available": usable,
        "devices": devices,
    }


def main() -> int:
    """Print both, and why a usable GPU cannot run the fused operators; return the exit code."""
    print(driver_facts())
    print(json.dumps(torch_facts()))
    if not torch.cuda.is_available():
        return 0
    reason = fused.missing_reason(torch.device("cuda:0"), torch.bfloat16)
    print(f"fused operators of decode steps: {reason or 'usable'}")
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main())
