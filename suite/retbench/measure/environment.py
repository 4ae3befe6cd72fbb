"""Where a number was measured: described for the record, and held still for the time of a worker.

Facts are JSON-able, in base units, and name no person, host or folder; one that cannot be read is absent with
a reason. PyTorch is imported only where it is asked something, so that a runner can name its machine without
it.
"""

import functools
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from retbench import __version__
from retbench.errors import UnsupportedError
from retbench.measure import machine, nvml, source

if TYPE_CHECKING:
    import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("torch", "numpy", "triton", "flash-attn", "fla-core", "flash-linear-attention", "nvidia-ml-py")
_VARIABLES = re.compile(
    r"(OMP|GOMP|KMP|MKL|OPENBLAS|ONEDNN|DNNL|MALLOC)_\w+|ATEN_CPU_CAPABILITY|CUBLAS_WORKSPACE_CONFIG"
    r"|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|LAUNCH_BLOCKING|MODULE_LOADING)|PYTORCH_(CUDA_)?ALLOC_CONF"
    r"|NVIDIA_TF32_OVERRIDE|TORCH_(ALLOW_TF32_CUBLAS_OVERRIDE|CUDNN_SDPA_DEPRIORITIZED)|GLIBC_TUNABLES|THP_MEM_ALLOC_ENABLE"
)
"""Environment variables that set threads, placement, allocators or modes; none of them names a folder."""
_GRAIN_VALUES = 32768
"""PyTorch gives each thread at least this many values of a pointwise operator (at::internal::GRAIN_SIZE)."""


def worker_environment(threads: int) -> dict[str, str]:
    """Variables that must be set before a worker's Python starts, for OpenMP reads them when it is loaded.

    Each thread is bound to a CPU of its own, on as many physical cores as there are, among those that this
    process may use: two unbound threads now and then share one, and the step stalls.

    Raises:
        UnsupportedError: there are fewer CPUs than threads.
    """
    cores = machine.allowed_cores()
    cpus = [core[0] for core in cores] + [cpu for core in cores for cpu in core[1:]]
    if threads > len(cpus):
        raise UnsupportedError(
            f"threads is {threads}, and this process may use {len(cpus)} CPUs: {', '.join(map(str, cpus))}. "
            f"Give at most that many (--set threads={len(cpus)}), or leave the field out for one a physical core."
        )
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_PROC_BIND": "true",
        "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus[:threads]),
        "OMP_DYNAMIC": "false",
        "MKL_NUM_THREADS": str(threads),
        "MKL_DYNAMIC": "false",
        "OPENBLAS_NUM_THREADS": str(threads),
    }


def pin_process(threads: int) -> None:
    """Apply to a worker what it is measured under: `threads` threads, and denormal numbers flushed to zero.

    To be called first, before anything runs on several threads: the setting is one thread's own, and the
    threads of the pool have it only because they are made afterwards. `describe_environment` tells whether it
    holds on all of them.
    """
    import torch

    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)


def machine_name(device: "torch.device | str") -> str:
    """Model and count of what is measured, as a folder name: amd-epyc-2-cores, nvidia-h100-80gb-hbm3-x8.

    The same after a reboot and on an equal machine; it names no host. Makes a CUDA context only where NVML
    cannot tell, or where the GPUs of the machine differ.

    Raises:
        UnsupportedError: the device is neither a CPU nor a CUDA device that is there.
    """
    if str(device) == "cpu":
        return f"{_slug(machine.cpu_model())}-{machine.physical_cores()}-cores"
    names = nvml.gpu_names()
    if len(set(names)) == 1:
        return f"{_slug(names[0])}-x{len(names)}"
    _check_cuda(device)
    import torch

    return f"{_slug(torch.cuda.get_device_name(device))}-x{torch.cuda.device_count()}"


def _check_cuda(device: "torch.device | str") -> None:
    """UnsupportedError where `device` is not a CUDA device that PyTorch finds."""
    import torch

    kind, _, index = str(device).partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind != "cuda" or int(index or 0) >= count:
        raise UnsupportedError(
            f"device '{device}': PyTorch {torch.__version__} finds {count} CUDA devices here, and what is neither "
            "'cpu' nor 'cuda' is not supported. Give --device cpu, or a CUDA device that is there."
        )


def _slug(model: str) -> str:
    """A model's name in lower case without trade marks, clock rate and core count."""
    plain = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor|\d+-core)\b", " ", model.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


@functools.cache
def code_revision() -> str:
    """Return the version and a hash of the source that all cells run: 0.1.0+src.0123456789ab.

    Comments and docstrings do not count, nor does code that belongs to single models or workloads (`measure.source`).
    """
    return f"{__version__}+src.{source.shared_hash()}"


def library_versions() -> dict[str, str]:
    """Version of Python and of each installed library that could move a number."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not installed: it can move no number
    return versions


def describe_environment(device: "torch.device | str", threads: int) -> dict[str, Any]:
    """Describe everything about machine, libraries and settings that could change a number.

    Args:
        device: Where models run.
        threads: CPU threads that a worker was asked to use.

    Returns:
        Facts by name, and under `absent` the reason of each that could not be read. `flush_denormal` and `num_threads`
        were tested in this process. `node_id` and `gpu_uuid` identify the hardware: numbers of different hardware are
        not paired.

    Raises:
        UnsupportedError: the device is neither a CPU nor a CUDA device that is there.
    """
    import torch

    device = torch.device(device)
    if device.type != "cpu":
        _check_cuda(device)
    absent: dict[str, str] = {}
    facts: dict[str, Any] = {
        "machine": machine_name(device),
        "node_id": machine.node_id(),
        "code_revision": code_revision(),
        "versions": library_versions(),
        "threads": threads,
        "flush_denormal": _flushes_denormals(),
        "torch_build": _torch_build(),
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)
        },
        "load_average": list(os.getloadavg()),
        **_host_facts(absent),
    }
    commit, reason = _git_commit()
    _put(facts, absent, {"git_commit": commit}, reason)
    uuid, reason = nvml.gpu_uuid(device)
    _put(facts, absent, {"gpu_uuid": uuid}, reason)
    if device.type == "cuda":
        facts["gpu"] = _gpu_facts(device, absent)
    return facts | {"absent": absent}


def _put(facts: dict[str, Any], absent: dict[str, str], values: Mapping[str, object], reason: str) -> None:
    """Add each value to the facts, or, where it is None, the reason to what is absent."""
    for name, value in values.items():
        if value is None:
            absent[name] = reason
        else:
            facts[name] = value


def _flushes_denormals() -> bool:
    """Whether a product below the smallest normal float32 (1.2e-38) is zero on every thread of the pool."""
    import torch

    small = torch.full(
        (2 * _GRAIN_VALUES * torch.get_num_threads(),), 2e-38, dtype=torch.float32, device="cpu"
    )
    return not bool((small * 0.25).any())


def _torch_build() -> dict[str, Any]:
    """How PyTorch was built, and the libraries and modes it computes with."""
    import torch

    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    allocators = _mapped_libraries("jemalloc|tcmalloc|mimalloc")
    preloaded = {"allocators": allocators} if allocators else {}
    return preloaded | {
        "num_threads": torch.get_num_threads(),
        "num_interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": blas.group(1) if blas else None,
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available(),
        "openmp": _mapped_libraries("gomp|iomp|omp"),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
    }


def _mapped_libraries(names: str) -> list[str]:
    """File names of the shared libraries in this process whose name begins with one of `a|b|c`."""
    mapped = machine.read_text(Path("/proc/self/maps")) or ""
    return sorted(set(re.findall(rf"/(lib(?:{names})[^/\s]*)$", mapped, flags=re.MULTILINE)))


def _host_facts(absent: dict[str, str]) -> dict[str, Any]:
    """Processor, memory, operating system and the limits of the container."""
    cpus = Path("/sys/devices/system/cpu")
    huge_pages = machine.read_text(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    chosen = re.search(r"\[(\w+)\]", huge_pages or "")
    facts: dict[str, Any] = {
        "os": platform.platform(),
        "cpu_model": machine.cpu_model(),
        "physical_cores": machine.physical_cores(),
        "allowed_cpus": machine.allowed_cpus(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    told = {
        "last_level_cache_bytes": machine.last_level_cache_bytes() or None,
        "governor": machine.read_text(cpus / "cpu0/cpufreq/scaling_governor"),
        "transparent_huge_pages": chosen.group(1) if chosen else None,
    }
    _put(facts, absent, told, "the kernel does not tell")
    limits = {"cpu_quota": machine.cpu_quota(), "memory_limit_bytes": machine.memory_limit_bytes()}
    _put(facts, absent, limits, "no limit is set")
    return facts


def _gpu_facts(device: "torch.device", absent: dict[str, str]) -> dict[str, Any]:
    """The GPU as torch and as its driver describe it."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    reading = nvml.describe_gpu(device)
    absent |= {f"gpu.{name}": reason for name, reason in reading.absent.items()}
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "num_multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_cache_bytes": properties.L2_cache_size,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        **reading.facts,
    }


def _git_commit() -> tuple[str | None, str]:
    """Commit of the checkout that this package runs from, `-dirty` where files differ; or None and why."""
    root = _PACKAGE.parents[1]
    if not (root / ".git").exists():
        return None, "not run from a git checkout"
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except FileNotFoundError:
        return None, "git is not installed"
    except subprocess.TimeoutExpired:
        return None, "git did not answer within 10 s"
    except subprocess.CalledProcessError as error:
        return None, f"git: {error.stderr.strip()}"
    return done.stdout.strip(), ""
