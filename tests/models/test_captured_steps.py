"""Decode steps ask nothing of the host that a CUDA graph refuses: no tensor of the CPU, and no value of the device.

Models are on the meta device, which computes nothing and gives no value away, so that the test needs no GPU.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.checkpoints.loading import load_model
from retbench.checkpoints.reading import read_checkpoint
from retbench.models.build import allocate_model
from retbench.models.decoder import Decoder
from retbench.models.language_model import LanguageModel
from retbench.ops import fused
from tests.models.hf_models import WINDOW, save_hf_model

START = 40
FROM_HOST = ("tensor", "as_tensor", "from_numpy")
"""Functions of torch that copy values of the host to a device, which the dispatcher does not show."""


class HostTensors(TorchDispatchMode):
    """Collects the operators that take or give a tensor of the CPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, torch.Tensor)]
        if any(one.device.type == "cpu" for one in tensors):
            self.found.append(str(func))
        return out


@pytest.fixture
def from_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the names of the functions in `FROM_HOST` that are called."""
    called: list[str] = []

    def noting(name: str) -> Any:
        function = getattr(torch, name)
        return lambda *args, **options: (called.append(name), function(*args, **options))[1]

    for name in FROM_HOST:
        monkeypatch.setattr(torch, name, noting(name))
    return called


def on_meta(name: str, operators: str) -> Decoder:
    """Return a named model with one layer of each kind."""
    spec = named_specs()[name]
    config = resolve_model(spec, "1m")
    blocks = tuple(block.model_copy(update={"count": 1}) for block in dict.fromkeys(config.blocks))
    return allocate_model(
        config.model_copy(update={"blocks": blocks}),
        dtype=torch.bfloat16,
        device="meta",
        backend=spec.backend,
        decode_operators=operators,
    )


def host_work_of_a_step(model: LanguageModel, from_host: list[str], batch: int = 2) -> list[str]:
    """Return the operators and functions by which a step involves the host; the first step may prepare itself."""
    state = model.init_state(batch, 64)
    state.start_at(START)
    token = torch.zeros(batch, 1, dtype=torch.int64, device="meta")
    model(token, state)
    from_host.clear()
    with HostTensors() as seen:
        model(token, state)
    return [*seen.found, *from_host]


@pytest.mark.parametrize("operators", ["eager", "fused"])
@pytest.mark.parametrize("name", sorted(named_specs()))
@torch.no_grad()
def test_a_step_can_be_captured(
    name: str, operators: str, from_host: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "missing_reason", lambda device, dtype: None)
    assert host_work_of_a_step(on_meta(name, operators), from_host) == []


@pytest.mark.peers
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "mamba"])
@torch.no_grad()
def test_a_step_of_transformers_can_be_captured(name: str, from_host: list[str], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert START > WINDOW  # windows are full, which transformers treats in another way
    info = read_checkpoint(str(save_hf_model(name, tmp_path)), format="hf")
    model = load_model(info, dtype=torch.float32, device="cpu", backend="default")
    assert host_work_of_a_step(model.to("meta"), from_host) == []


@pytest.mark.parametrize(
    ("what", "found"),
    [
        (lambda x: x + torch.zeros(()), "aten.add.Tensor"),
        (lambda x: x + torch.tensor(2.0, device=x.device), "tensor"),
    ],
)
@torch.no_grad()
def test_work_of_the_host_is_found(
    what: Any, found: str, from_host: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_meta("transformer", "eager")
    norm = model.norm.forward
    monkeypatch.setattr(model.norm, "forward", lambda x: norm(what(x)))
    assert found in host_work_of_a_step(model, from_host)


@torch.no_grad()
def test_a_value_of_the_device_is_an_error(from_host: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_meta("transformer", "eager")
    norm = model.norm.forward
    monkeypatch.setattr(model.norm, "forward", lambda x: norm(x * x.sum().item()))
    with pytest.raises(RuntimeError, match="meta"):
        host_work_of_a_step(model, from_host)
