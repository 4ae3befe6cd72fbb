import subprocess
import sys

import pytest

from retbench.errors import ConfigError, UnsupportedError
from retbench.run import devices
from retbench.run.devices import Device, find_device


def test_the_cpu_needs_no_asking() -> None:
    code = (
        "import sys; from retbench.run.devices import find_device; "
        "assert find_device('cpu').name == 'cpu'; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("asked", ["gpu", "mps", "cuda:", "cuda:x", "CPU", "", "cuda:1234"])
def test_an_unknown_device_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="'cpu', 'cuda' and 'cuda:N'"):
        find_device(asked)


class Torch:
    """What torch would say, in place of asking it."""

    def __init__(self, cuda: str | None, *memory_bytes: int) -> None:
        self.facts = devices._TorchFacts("2.9.0", cuda, memory_bytes)

    def __call__(self) -> devices._TorchFacts:
        return self.facts


def test_without_a_driver_the_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_driver", lambda: False)
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


def test_a_driver_without_a_usable_device_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    monkeypatch.setattr(devices, "_ask_torch", Torch(None))
    assert find_device(None) == Device("cpu")


def test_torch_is_asked_in_a_process_of_its_own() -> None:
    import torch

    found = devices._ask_torch()
    assert found.torch == torch.__version__
    assert len(found.memory) == torch.cuda.device_count()
