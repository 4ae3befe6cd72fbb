"""Facts of a record's environment: the name of the processor, what could change a number, and the load."""

import re
from collections.abc import Mapping
from typing import Any

_PLACEMENT = frozenset({"OMP_PLACES", "CUDA_VISIBLE_DEVICES"})
"""Variables that select one of several equal cores or GPUs."""

_NOT_COMPUTING = frozenset({"retbench", "nvidia-ml-py"})
"""Versions that change no number: retbench has a code revision, and nvidia-ml-py only reads counters of the GPU."""
_BUSY_LOAD = 1.5
"""A machine is busy where its load average per physical core exceeds this; the run itself keeps it near 1."""
_NO_MODEL_NUMBER = re.compile(
    r"\b(aarch64|arm64|ppc64le|riscv64|s390x|x86_64|\d+-core)\b", flags=re.IGNORECASE
)
"""Words with numbers that say nothing about the model of a processor: architectures and a number of cores."""


def processor_name(model: str, generation: object) -> str:
    """Return the vendor's name of a processor without clock rate and trade marks: 'AMD EPYC 7763 64-Core Processor'.

    Where a virtual machine hides the model's number, the generation is part of it: 'AMD EPYC family 25 model 1'.
    """
    name = re.sub(r"\((?:R|TM)\)|@.*", "", model, flags=re.IGNORECASE).strip()
    if generation is None or re.search(r"\d", _NO_MODEL_NUMBER.sub("", name)):
        return name
    return f"{name} {str(generation).replace(',', '')}"


def computing_versions(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of Python and of every library that could change a number; empty where none is recorded."""
    stated = environment.get("versions")
    versions = stated if isinstance(stated, dict) else {}
    return {name: str(version) for name, version in sorted(versions.items()) if name not in _NOT_COMPUTING}


def conditions(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conditions of a process other than versions: variables, CPU quota, torch's build, denormal numbers.

    Variables that select one of several equal cores or GPUs, which a scheduler sets anew for each job, do not count.
    """
    found = {
        name: environment[name]
        for name in ("cpu_quota", "flush_denormal", "torch_build")
        if name in environment
    }
    variables = environment.get("variables")
    stated = variables if isinstance(variables, dict) else {}
    return {**found, "variables": {name: value for name, value in stated.items() if name not in _PLACEMENT}}


def excessive_load(environment: Mapping[str, Any]) -> float | None:
    """Return the load average of the minute before a worker started, where it is too high for the machine's cores."""
    match environment:
        case {"load_average": [int() | float() as load, *_], "physical_cores": int(cores)}:
            return float(load) if load > _BUSY_LOAD * cores else None
    return None
