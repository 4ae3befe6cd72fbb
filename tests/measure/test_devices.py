import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retbench.errors import ConfigError, UnsupportedError
from retbench.measure import devices, nvml
from retbench.measure.devices import Device, find_device

HAS_DRIVER = devices._has_driver


def test_the_cpu_needs_no_asking() -> None:
    code = (
        "import sys; from retbench.measure.devices import find_device; "
        "assert find_device('cpu').name == 'cpu'; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("asked", ["gpu", "mps", "cuda:", "cuda:x", "CPU", "", "cuda:1234"])
def test_an_unknown_device_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match=r"'cpu', 'cuda' \(an NVIDIA GPU\) and 'cuda:N'"):
        find_device(asked)


class Torch:
    """Stands for torch on a machine with other devices."""

    def __init__(
        self, cuda: str | None, *memory_bytes: int, hip: str | None = None, stderr: str = ""
    ) -> None:
        self.facts = devices._TorchFacts("2.9.0", cuda, hip, memory_bytes, stderr)

    def __call__(self) -> devices._TorchFacts:
        return self.facts


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start from a machine without the driver of any GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_has_driver", lambda: False)
    monkeypatch.setattr(devices, "_AMD_DRIVER", tmp_path / "no kfd")


def test_without_a_driver_the_cpu_is_taken() -> None:
    assert find_device(None) == Device("cpu")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, Device("cuda:0", 80)),
        ("cuda", Device("cuda:0", 80)),
        ("cuda:1", Device("cuda:1", 40)),
    ],
)
def test_a_cuda_device_is_found(monkeypatch: pytest.MonkeyPatch, asked: str | None, expected: Device) -> None:
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    monkeypatch.setattr(devices, "_ask_torch", Torch("12.8", 80, 40))
    assert find_device(asked) == expected


@pytest.mark.parametrize(
    ("torch", "asked", "reason"),
    [
        (Torch(None), "cuda", "torch 2.9.0 is a build without CUDA. Install one with it"),
        (Torch("12.8"), "cuda", "finds no device. Check `nvidia-smi`"),
        (Torch("12.8", 80, 80), "cuda:2", "the devices here are cuda:0 to cuda:1"),
    ],
)
def test_the_reason_why_cuda_cannot_be_used_is_reported(
    monkeypatch: pytest.MonkeyPatch, torch: Torch, asked: str, reason: str
) -> None:
    monkeypatch.setattr(devices, "_ask_torch", torch)
    with pytest.raises(UnsupportedError) as caught:
        find_device(asked)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"--device {asked}: ")


@contextmanager
def _without_nvml() -> Iterator[None]:
    raise nvml.DriverUnavailableError("NVML: Driver/library version mismatch")
    yield


def test_a_driver_whose_library_cannot_be_used_is_no_reason_to_take_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "_has_driver", HAS_DRIVER)
    monkeypatch.setattr(nvml, "open_nvml", _without_nvml)
    monkeypatch.setattr(devices, "_NVIDIA_DRIVER", tmp_path / "no driver")
    assert find_device(None) == Device("cpu")
    monkeypatch.setattr(devices, "_NVIDIA_DRIVER", tmp_path)
    monkeypatch.setattr(devices, "_ask_torch", Torch("13.0"))
    with pytest.raises(UnsupportedError, match="this machine has a GPU: "):
        find_device(None)
    monkeypatch.setattr(devices, "_ask_torch", Torch("13.0", 80))
    assert find_device(None) == Device("cuda:0", 80)


TOO_OLD = """
torch/cuda/__init__.py:187: UserWarning: CUDA initialization: The NVIDIA driver on your system is too old
  return torch._C._cuda_getDeviceCount() > 0
"""


@pytest.mark.parametrize(
    ("torch", "reasons"),
    [
        (Torch(None), ["is a build without CUDA"]),
        (Torch("13.0"), ["finds no device", "torch wrote no reason"]),
        (  # pip keeps an installed torch that is newer than any of that index
            Torch("13.0", stderr=TOO_OLD),
            ["driver on your system is too old", "uninstall --yes torch, then", "whl/cu126", "--device cpu"],
        ),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_take_the_cpu(
    monkeypatch: pytest.MonkeyPatch, torch: Torch, reasons: list[str]
) -> None:
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    monkeypatch.setattr(devices, "_ask_torch", torch)
    with pytest.raises(UnsupportedError) as caught:
        find_device(None)
    assert str(caught.value).startswith("this machine has a GPU: ")
    assert all(reason in str(caught.value) for reason in reasons)


@pytest.mark.parametrize("asked", [None, "cuda"])
def test_a_torch_for_rocm_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str | None
) -> None:
    monkeypatch.setattr(devices, "_AMD_DRIVER", tmp_path)
    monkeypatch.setattr(devices, "_ask_torch", Torch(None, 192, hip="6.4"))
    with pytest.raises(UnsupportedError, match=r"for ROCm 6\.4.*--device cpu"):
        find_device(asked)


def test_an_amd_gpu_that_torch_was_not_built_for_leaves_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "_AMD_DRIVER", tmp_path)
    monkeypatch.setattr(devices, "_ask_torch", Torch("13.0"))
    assert find_device(None) == Device("cpu")


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus_leave_the_cpu(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_device(None) == Device("cpu")


def test_a_warning_of_torch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    devices._ask_torch.cache_clear()
    warns = "import warnings; warnings.warn('the driver is too old')\n"
    monkeypatch.setattr(devices, "_PROBE", warns + devices._PROBE)
    assert "the driver is too old" in devices._ask_torch().stderr
    devices._ask_torch.cache_clear()


def test_torch_is_asked_in_a_process_of_its_own() -> None:
    import torch

    found = devices._ask_torch()
    assert found.torch == torch.__version__
    assert len(found.memory) == torch.cuda.device_count()
