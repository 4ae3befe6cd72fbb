import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import retbench
from retbench.errors import UnsupportedError
from retbench.measure import environment, machine, nvml
from tests.measure.forked import as_worker

ROOT = Path(retbench.__file__).parents[2]
DESCRIBE = "print(json.dumps(environment.describe_environment('cpu', {threads})))"
PIN = "environment.pin_process({threads})\n"
USE_ALL_THREADS = "import torch; torch.ones(2**20).exp()\n"
GLIBC = platform.libc_ver()[0] == "glibc"
needs_two_cpus = pytest.mark.skipif(len(machine.allowed_cpus()) < 2, reason="one CPU")


def describe_in_worker(
    code: str, threads: int, *, device: str = "cpu", with_variables: bool = True
) -> dict[str, Any]:
    """Return the description that a process started like a worker prints."""
    code = "import json\nfrom retbench.measure import environment\n" + code.format(threads=threads)
    variables = os.environ | (environment.worker_environment(threads, device) if with_variables else {})
    command = [sys.executable, "-c", as_worker(code)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    described: dict[str, Any] = json.loads(done.stdout)
    return described


def test_a_worker_of_one_thread_is_held_on_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    found = describe_in_worker(PIN + DESCRIBE, 1)
    assert found["threads"] == found["torch_build"]["num_threads"] == 1
    assert found["flush_denormal"] is True
    assert found["keeps_freed_memory"] is True or not GLIBC
    assert found["variables"]["OMP_PROC_BIND"] == "true"
    assert found["variables"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1", "it moved decode times by 7 %"
    assert "allocators" not in found["torch_build"], "none is preloaded"
    if "libgomp.so.1" in found["torch_build"]["openmp"]:
        assert found["allowed_cpus"] == machine.allowed_cpus()[:1]


@needs_two_cpus
@pytest.mark.usefixtures("every_core")
def test_a_worker_of_two_threads_flushes_denormals_on_both_and_has_a_cpu_for_each() -> None:
    found = describe_in_worker(PIN + DESCRIBE, 2)
    assert found["torch_build"]["num_threads"] == 2
    assert found["flush_denormal"] is True
    assert len(found["allowed_cpus"]) == 2 or "libgomp.so.1" not in found["torch_build"]["openmp"]


AFFINITY = "import json, os, torch; print(json.dumps(sorted(os.sched_getaffinity(0))))"


@needs_two_cpus
@pytest.mark.usefixtures("every_core")
@pytest.mark.parametrize(("device", "bound"), [("cpu", True), ("cuda:0", False)])
def test_the_main_thread_of_a_worker_on_a_gpu_may_use_every_cpu(
    monkeypatch: pytest.MonkeyPatch, device: str, bound: bool
) -> None:
    monkeypatch.setenv("OMP_PLACES", "{0}")
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    variables = os.environ | environment.worker_environment(2, device)
    command = [sys.executable, "-c", as_worker(AFFINITY)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert (len(json.loads(done.stdout)) == 1) == bound


def test_the_workspaces_of_a_gpus_products_are_kept_unless_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "TORCH_CUBLAS_WORKSPACE_CACHE"
    monkeypatch.delenv(name, raising=False)
    assert environment.worker_environment(1, "cuda:0")[name] == "1"
    assert name not in environment.worker_environment(1, "cpu")
    monkeypatch.setenv(name, "0")
    assert environment.worker_environment(1, "cuda:0")[name] == "0"


@needs_two_cpus
@pytest.mark.usefixtures("every_core")
def test_pinning_sets_the_threads_by_itself() -> None:
    assert describe_in_worker(PIN + DESCRIBE, 1, with_variables=False)["torch_build"]["num_threads"] == 1


@needs_two_cpus
@pytest.mark.usefixtures("every_core")
def test_pinning_too_late_is_recorded() -> None:
    assert describe_in_worker(USE_ALL_THREADS + PIN + DESCRIBE, 2)["flush_denormal"] is False


def test_more_threads_than_cpus_are_refused_with_the_number_that_goes() -> None:
    count = len(machine.allowed_cpus())
    with pytest.raises(UnsupportedError, match=rf"--set threads={count}\b"):
        environment.worker_environment(count + 1, "cpu")


def test_each_physical_core_has_a_thread_before_one_has_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "allowed_cores", lambda: [[0, 4], [1, 5]])
    assert environment.worker_environment(2, "cpu")["OMP_PLACES"] == "{0},{1}"
    assert environment.worker_environment(3, "cpu")["OMP_PLACES"] == "{0},{1},{4}"


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return environment.describe_environment(torch.device("cpu"), 2)


def test_the_description_is_json_and_says_why_what_is_absent(described: dict[str, Any]) -> None:
    assert json.loads(json.dumps(described)) == described
    assert all(isinstance(reason, str) and reason for reason in described["absent"].values())
    assert not described["absent"].keys() & described.keys()


def test_the_description_names_what_moves_a_number(described: dict[str, Any]) -> None:
    assert described["machine"] == environment.machine_name("cpu")
    assert described["code_revision"] == environment.code_revision()
    assert torch.__version__.startswith(described["versions"]["torch"])  # the index has CUDA's without a tag
    assert described["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert described["memory_bytes"] > 2**28
    assert described["node_id"] == machine.node_id()
    assert described["absent"]["gpu_uuid"] == "the device is a CPU"
    assert len(described["load_average"]) == 3


def test_the_description_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", "/home/somebody/torch")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    found = environment.describe_environment("cpu", 1)
    assert "somebody" not in json.dumps(found)
    assert str(Path.home()) + os.sep not in json.dumps(found)
    assert found["variables"]["OMP_WAIT_POLICY"] == "passive"
    assert found["variables"]["TORCH_CUDNN_SDPA_DEPRIORITIZED"] == "1"


@pytest.mark.parametrize(
    "name",
    [
        *("CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING", "CUBLASLT_WORKSPACE_SIZE"),
        *("TORCHINDUCTOR_MAX_AUTOTUNE", "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS"),
        *("TORCHINDUCTOR_COORDINATE_DESCENT_TUNING", "TRITON_DEFAULT_FP_FUSION", "DISABLE_PTXAS_OPT"),
        *("FLA_USE_TMA", "FLA_TRIL_PRECISION"),
    ],
)
def test_variables_that_change_kernels_are_named_and_their_folders_are_not(name: str) -> None:
    folders = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TRITON_HOME", "FLA_CONFIG_DIR")
    assert environment.computing_variables({name: "1", **dict.fromkeys(folders, "/home/somebody")}) == {
        name: "1"
    }


@pytest.mark.parametrize(
    ("model", "generation", "name"),
    [
        ("AMD EPYC 7763 64-Core Processor", "family 25, model 1", "amd-epyc-7763-8-cores"),
        ("13th Gen Intel(R) Core(TM) i7-1370P", None, "13th-gen-intel-core-i7-1370p-8-cores"),
        ("AMD EPYC", "family 25, model 1", "amd-epyc-family-25-model-1-8-cores"),
        ("AMD EPYC", None, "amd-epyc-8-cores"),
        ("AMD EPYC 64-Core Processor", "family 25, model 1", "amd-epyc-family-25-model-1-8-cores"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "family 6, model 85", "intel-xeon-family-6-model-85-8-cores"),
        ("aarch64", "part 0xd40", "aarch64-part-0xd40-8-cores"),
    ],
)
def test_a_machine_is_called_after_its_processor(
    model: str, generation: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(machine, "cpu_model", lambda: model)
    monkeypatch.setattr(machine, "cpu_generation", lambda: generation)
    monkeypatch.setattr(machine, "physical_cores", lambda: 8)
    assert environment.machine_name("cpu") == name


def test_a_machine_is_called_after_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpu_names", lambda: ["NVIDIA H100 80GB HBM3"] * 8)
    assert environment.machine_name("cuda:3") == "nvidia-h100-80gb-hbm3-x8"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UnsupportedError, match=f"device '{device}'.*--device cpu"):
        environment.machine_name(device)
    with pytest.raises(UnsupportedError, match=f"device '{device}'"):
        environment.describe_environment(device, 1)


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Put two different GPUs in place of torch's; the result is the device that is current at each call of CUDA."""
    current, used = [0], []

    def index(device: Any) -> int:
        return torch.device(device).index

    def calls(function: Any) -> Any:
        return lambda device: (used.append(current[0]), function(index(device)))[1]

    def properties(number: int) -> Any:
        sizes = {"total_memory": 2**30, "L2_cache_size": 2**20, "multi_processor_count": 100}
        return SimpleNamespace(name=f"GPU {number}", major=9, minor=number, **sizes)

    def make_current(device: Any) -> None:
        current[0] = index(device)
        used.append(current[0])

    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", make_current)
    monkeypatch.setattr(torch.cuda, "get_device_properties", calls(properties))
    monkeypatch.setattr(torch.cuda, "get_device_name", calls(lambda number: f"GPU {number}"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", calls(lambda number: (number, 2**30)))
    return used


def test_a_second_gpu_is_described_without_a_context_on_the_first(contexts: list[int]) -> None:
    found = environment.describe_environment("cuda:1", 1)
    assert (found["machine"], found["gpu"]["name"], found["gpu"]["free_bytes"]) == ("gpu-1-x2", "GPU 1", 1)
    assert set(contexts) == {1}


@pytest.mark.usefixtures("contexts")
def test_nothing_is_computed_in_tensorfloat32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    environment.use_device("cuda:0")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_naming_machine_and_code_needs_no_torch() -> None:
    code = (
        "import sys; from retbench.measure import environment as e; e.machine_name('cpu'); e.code_revision(); "
        "e.library_versions(); e.worker_environment(1, 'cpu'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_in_a_checkout_the_commit_is_recorded(described: dict[str, Any]) -> None:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    assert (
        described.get("git_commit", "").removesuffix("-dirty") == head or "git_commit" in described["absent"]
    )


def test_what_compilation_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert environment.missing_for_compilation() == "there is no C++ compiler 'no-such-compiler'"
    monkeypatch.setenv("CXX", sys.executable)  # any program
    monkeypatch.setattr(environment.sysconfig, "get_path", lambda name: str(tmp_path))
    assert environment.missing_for_compilation() == f"Python's headers are not in {tmp_path}"
    (tmp_path / "Python.h").touch()
    assert environment.missing_for_compilation() is None


def test_compiled_code_is_kept_in_the_cache_folder_unless_another_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path))
    assert environment.worker_environment(1, "cpu")["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert environment.worker_environment(1, "cpu")["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
