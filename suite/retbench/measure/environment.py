"""The environment of a measurement: its description for records, and the thread settings of a worker.

Facts are JSON values in base units and name no person, host or folder; one that cannot be read is absent with a reason.
PyTorch is imported only by the functions that query it, so that a runner can name its machine without it.
"""

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from retbench import __version__
from retbench.errors import UnsupportedError
from retbench.files import cache_dir, check_writable
from retbench.measure import allocator, machine, nvml, source
from retbench.records.environment import processor_name

if TYPE_CHECKING:
    import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("torch", "numpy", "triton", "flash-attn", "fla-core", "flash-linear-attention", "nvidia-ml-py")
_VARIABLES = re.compile(
    r"(OMP|GOMP|KMP|MKL|OPENBLAS|ONEDNN|DNNL|MALLOC)_\w+|ATEN_CPU_CAPABILITY|CUBLAS_WORKSPACE_CONFIG"
    r"|CUBLASLT_WORKSPACE_SIZE|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|LAUNCH_BLOCKING|MODULE_LOADING)"
    r"|PYTORCH_(CUDA_)?ALLOC_CONF|PYTORCH_NO_CUDA_MEMORY_CACHING"
    r"|NVIDIA_TF32_OVERRIDE|TORCH_(ALLOW_TF32_CUBLAS_OVERRIDE|CUBLAS_WORKSPACE_CACHE|CUBLASLT_UNIFIED_WORKSPACE"
    r"|CUDNN_SDPA_DEPRIORITIZED)|TORCHINDUCTOR_(MAX_AUTOTUNE|COORDINATE_DESCENT)_?\w*|GLIBC_TUNABLES"
    r"|THP_MEM_ALLOC_ENABLE|TRITON_(INTERPRET|F32_DEFAULT|DEFAULT_FP_FUSION|FORCE_DISABLE_FP_FUSION)"
    r"|DISABLE_PTXAS_OPT|FLA_(?!\w*DIR)\w+"
)
"""Environment variables that set threads, affinity, allocators, or modes of kernels and compilers; none is a folder."""
_COMPILED_CODE = "TORCHINDUCTOR_CACHE_DIR"
"""Folder in which torch.compile keeps its code. Its own default is a folder below /tmp whose name others can guess."""
_CUBLAS_WORKSPACE = "TORCH_CUBLAS_WORKSPACE_CACHE"
"""Makes torch keep the workspaces of cuBLAS (ATen/cuda/CUDAContextLight.h of torch 2.15)."""
_GRAIN_VALUES = 32768
"""PyTorch gives each thread at least this many values of a pointwise operator (at::internal::GRAIN_SIZE)."""


def worker_environment(threads: int, device: str) -> dict[str, str]:
    """Return the variables that must be set before a worker starts, because libraries read them when they are loaded.

    On a CPU each thread is bound to its own CPU among those that this process may use, and each physical core gets one
    thread before any gets two. Unbound threads occasionally share a CPU, which delays the step. On CUDA no thread is
    bound: OpenMP would bind the main thread to one CPU, and its children inherit that. Compilation, the threads of
    autograd and those of NCCL would then share this CPU with the launches of kernels.

    On a CPU memory is asked for in huge pages; see `allocator.with_huge_pages`.

    Args:
        threads: Number of threads.
        device: torch's name of the device that the worker measures on.

    Raises:
        UnsupportedError: there are fewer CPUs than threads.
    """
    cores = machine.allowed_cores()
    cpus = [core[0] for core in cores] + [cpu for core in cores for cpu in core[1:]]
    if threads > len(cpus):
        raise UnsupportedError(
            f"threads is {threads}, and this process may use {len(cpus)} CPUs: {', '.join(map(str, cpus))}. "
            f"Give at most that many (--set threads={len(cpus)}), or leave the field out for one per physical core."
        )
    places = ",".join(f"{{{cpu}}}" for cpu in cpus[:threads])
    if device == "cpu":
        of_device = {"OMP_PROC_BIND": "true", "OMP_PLACES": places, **allocator.with_huge_pages(os.environ)}
    else:
        # Since torch 2.15 cuBLAS has its workspace, up to 32 MiB, from torch's allocator for the length of each
        # product, so that it would be part of every step's memory. Kept, it is there before a step, as with earlier
        # versions.
        kept = os.environ.get(_CUBLAS_WORKSPACE, "1")
        of_device = {"OMP_PROC_BIND": "false", _CUBLAS_WORKSPACE: kept}
    return {
        "OMP_NUM_THREADS": str(threads),
        **of_device,
        "OMP_DYNAMIC": "false",
        "MKL_NUM_THREADS": str(threads),
        "MKL_DYNAMIC": "false",
        "OPENBLAS_NUM_THREADS": str(threads),
        _COMPILED_CODE: _compiled_code()[0],
    }


def check_compiled_code() -> None:
    """Check that torch.compile can write its code, before time is spent on a step that is to be compiled.

    Raises:
        ConfigError: its folder cannot be created or written to; the message names the variable that moves it.
        StorageError: the disk is full.
    """
    folder, variable = _compiled_code()
    check_writable(Path(folder), variable)


def _compiled_code() -> tuple[str, str]:
    """Return the folder of torch.compile's code, and the environment variable that decides it."""
    given = os.environ.get(_COMPILED_CODE)
    return (given, _COMPILED_CODE) if given else (str(cache_dir() / "compiled"), "RETBENCH_CACHE")


def become_worker(threads: int, device: str) -> None:
    """Make this process a worker: with its variables, and pinned. Call this before torch is loaded.

    On a CPU the command of this process starts again where it may; see `allocator.start_again_with_huge_pages`.

    Raises:
        UnsupportedError: there are fewer CPUs than threads.
    """
    variables = worker_environment(threads, device)
    if device == "cpu":
        # Before the other variables are set: OpenMP, if it is loaded by now, would bind the new program to one CPU.
        allocator.start_again_with_huge_pages()
    os.environ.update(variables)
    pin_process(threads)


def computing_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those variables of an environment that set threads, affinity, allocators or modes."""
    return {name: value for name, value in sorted(variables.items()) if _VARIABLES.fullmatch(name)}


def missing_for_compilation() -> str | None:
    """Return what torch.compile lacks on the CPU of this machine; None where it lacks nothing."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler '{compiler}'"
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        return f"Python's headers are not in {headers}"
    return None


def pin_process(threads: int) -> None:
    """Set the number of threads of a worker, flush denormal numbers to zero, and keep freed memory.

    Call this before anything runs on several threads: flushing is set per thread, and threads of the pool inherit it
    when they are created. `describe_environment` tests whether all of them flush, and whether memory is kept.
    """
    import torch

    allocator.keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)


def use_device(device: "torch.device | str") -> None:
    """Make a GPU the current device of this process, without TensorFloat-32; do nothing for the CPU.

    Kernels that are not torch's own run on the current device, which is the first GPU until it is set. Whatever starts
    CUDA without naming a device does so on that one too: its context would hold memory of a GPU that another run uses.

    Raises:
        UnsupportedError: the device is neither a CPU nor an existing CUDA device.
    """
    import torch

    device = torch.device(device)
    if device.type != "cpu":
        _check_cuda(device)
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("highest")  # TORCH_ALLOW_TF32_CUBLAS_OVERRIDE may have lowered it
        torch.backends.cudnn.allow_tf32 = False  # convolutions, of transformers' models; on by default


def machine_name(device: "torch.device | str") -> str:
    """Return the model and number of the processors as a folder name: amd-epyc-7763-8-cores, nvidia-h100-80gb-hbm3-x8.

    The name is the same after a reboot and on an equal machine, and does not identify the host. Where a virtual machine
    hides the model, the generation is part of it: amd-epyc-family-25-model-1-stepping-1-2-cores. A CUDA context is
    created only if NVML fails or the GPUs of the machine differ.

    Raises:
        UnsupportedError: the device is neither a CPU nor an existing CUDA device.
    """
    if str(device) == "cpu":
        model = processor_name(machine.cpu_model(), machine.cpu_generation())
        return f"{_slug(model)}-{machine.physical_cores()}-cores"
    names = nvml.gpu_names()
    if len(set(names)) == 1:
        return f"{_slug(names[0])}-x{len(names)}"
    _check_cuda(device)
    import torch

    return f"{_slug(torch.cuda.get_device_name(device))}-x{torch.cuda.device_count()}"


def _check_cuda(device: "torch.device | str") -> None:
    """Raise an UnsupportedError if PyTorch does not find the CUDA device."""
    import torch

    kind, _, index = str(device).partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind != "cuda" or int(index or 0) >= count:
        raise UnsupportedError(
            f"device '{device}': PyTorch {torch.__version__} finds {count} CUDA devices, and other kinds of device "
            "are not supported. Give --device cpu, or an existing CUDA device."
        )


def _slug(model: str) -> str:
    """Return a model's name in lower case without core count."""
    plain = re.sub(r"\b(cpu|processor|\d+-core)\b", " ", model.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


@functools.cache
def code_revision() -> str:
    """Return the version and a hash of the source that all cells run: 0.1.0+src.0123456789ab.

    Comments and docstrings do not count, nor does code that belongs to single models or workloads (`measure.source`).
    """
    return f"{__version__}+src.{source.shared_hash()}"


def library_versions() -> dict[str, str]:
    """Return the version of Python and of each installed library that could affect a number."""
    found = {name: package_version(name) for name in _LIBRARIES}
    installed = {name: version for name, version in found.items() if version is not None}
    return {"python": platform.python_version(), **installed}


def package_version(name: str) -> str | None:
    """Return the version of a package; None if it is not installed, where it affects no number."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def describe_environment(device: "torch.device | str", threads: int) -> dict[str, Any]:
    """Describe everything about machine, libraries and settings that could change a number.

    A GPU becomes the current device of this process first; see `use_device`.

    Args:
        device: Where models run.
        threads: CPU threads that a worker was asked to use.

    Returns:
        Facts by name, and under `absent` the reason of each that could not be read. `flush_denormal`, `num_threads`,
        `keeps_freed_memory` and `uses_huge_pages` were tested in this process. `node_id` and `gpu_uuid` identify the
        hardware: numbers of different hardware are not paired. `narrow_products` names the 16-bit dtypes that the CPU
        multiplies without widening them; see `ops.precision`.

    Raises:
        UnsupportedError: the device is neither a CPU nor a CUDA device that is there.
    """
    import torch

    from retbench.ops.precision import NARROW_PRODUCTS

    device = torch.device(device)
    use_device(device)
    absent: dict[str, str] = {}
    facts: dict[str, Any] = {
        "machine": machine_name(device),
        "node_id": machine.node_id(),
        "code_revision": code_revision(),
        "versions": library_versions(),
        "threads": threads,
        "flush_denormal": _flushes_denormals(),
        "keeps_freed_memory": allocator.keeps_freed_memory(),
        "torch_build": _torch_build(),
        "narrow_products": sorted(str(dtype).removeprefix("torch.") for dtype in NARROW_PRODUCTS),
        "variables": computing_variables(os.environ),
        "load_average": list(os.getloadavg()),
        **_host_facts(absent),
    }
    uses = {"uses_huge_pages": allocator.uses_huge_pages()}
    _put(facts, absent, uses, "/proc/self/smaps_rollup does not say")
    commit, reason = _git_commit()
    _put(facts, absent, {"git_commit": commit}, reason)
    uuid, reason = nvml.gpu_uuid(device)
    _put(facts, absent, {"gpu_uuid": uuid}, reason)
    if device.type == "cuda":
        facts["gpu"] = _gpu_facts(device, absent)
    return facts | {"absent": absent}


def _put(facts: dict[str, Any], absent: dict[str, str], values: Mapping[str, object], reason: str) -> None:
    """Add each value to the facts, or the reason to `absent` if the value is None."""
    for name, value in values.items():
        if value is None:
            absent[name] = reason
        else:
            facts[name] = value


def _flushes_denormals() -> bool:
    """Return whether products below the smallest normal float32 (1.2e-38) are zero on all threads of the pool."""
    import torch

    small = torch.full(
        (2 * _GRAIN_VALUES * torch.get_num_threads(),), 2e-38, dtype=torch.float32, device="cpu"
    )
    return not bool((small * 0.25).any())


def _torch_build() -> dict[str, Any]:
    """Return PyTorch's build options, libraries and modes."""
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
    """Return the file names of loaded shared libraries whose name begins with one of `a|b|c`."""
    mapped = machine.read_text(Path("/proc/self/maps")) or ""
    return sorted(set(re.findall(rf"/(lib(?:{names})[^/\s]*)$", mapped, flags=re.MULTILINE)))


def _host_facts(absent: dict[str, str]) -> dict[str, Any]:
    """Return facts on processor, memory, operating system and the limits of the container."""
    cpus = Path("/sys/devices/system/cpu")
    huge_pages = machine.read_text(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    chosen = re.search(r"\[(\w+)\]", huge_pages or "")
    facts: dict[str, Any] = {
        "os": platform.platform(),
        "cpu_model": machine.cpu_model(),
        "physical_cores": machine.physical_cores(),
        "allowed_cpus": machine.allowed_cpus(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_limit_bytes": machine.memory_limit_bytes(),
        "memory_available_bytes": psutil.virtual_memory().available,
    }
    from_kernel = {
        "cpu_generation": machine.cpu_generation(),
        "last_level_cache_bytes": machine.last_level_cache_bytes() or None,
        "governor": machine.read_text(cpus / "cpu0/cpufreq/scaling_governor"),
        "transparent_huge_pages": chosen.group(1) if chosen else None,
    }
    _put(facts, absent, from_kernel, "the kernel does not report it")
    _put(facts, absent, {"cpu_quota": machine.cpu_quota()}, "no limit is set")
    return facts


def _gpu_facts(device: "torch.device", absent: dict[str, str]) -> dict[str, Any]:
    """Return facts on the GPU from torch and from its driver."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    reading = nvml.describe_gpu(device)
    absent |= {f"gpu.{name}": reason for name, reason in reading.absent.items()}
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "num_multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "free_bytes": torch.cuda.mem_get_info(device)[0],
        "l2_cache_bytes": properties.L2_cache_size,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        **reading.facts,
    }


def _git_commit() -> tuple[str | None, str]:
    """Return the commit of the package's checkout, with `-dirty` if files differ; or None and the reason."""
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
