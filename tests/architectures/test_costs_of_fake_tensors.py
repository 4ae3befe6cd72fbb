"""Analytical costs at 6.7B against models of fake tensors, which have shapes and bytes but take no memory."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

# There is no public path to it; PyTorch documents it under "Fake tensor".
from torch._subclasses.fake_tensor import FakeTensorMode

from retbench.architectures import costs
from retbench.config.experiment_files import load_experiment
from retbench.measure.memory import StorageTracker
from retbench.models.decoder import Decoder
from retbench.models.state import DecoderState
from retbench.papers.papers import load_datasheets
from retbench.planning.cells import resolve_models

DTYPE = "bfloat16"
USABLE_BYTES = load_datasheets()["a100-80gb"].usable_bytes
FORMS = {"retnet": "chunkwise", "transformer": "sdpa"}

# Context lengths, each with the batch whose caches hold 131,072 tokens together.
CACHES = [(1024, 128), (2048, 64), (4096, 32), (8192, 16), (16384, 8)]
POINTS = [*(("transformer", *CACHES[end]) for end in (0, -1)), ("retnet", 8192, 128)]


class FakeStorageTracker(StorageTracker):
    """Counts the bytes of fake CPU tensors; a query of a fake tensor's device is no operator."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.fixture(scope="module", autouse=True)
def _no_memory() -> Iterator[None]:
    """Every tensor of this module is fake, and of 16 bits where nothing else is asked for."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with FakeTensorMode(), torch.inference_mode():
        yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def models(_no_memory: None) -> dict[str, Decoder]:
    configs = resolve_models(load_experiment("latency", ["size=6.7b"]), "paper")
    return {name: Decoder(configs[name], form).eval() for name, form in FORMS.items()}


def step(model: Decoder, batch: int, depth: int) -> tuple[torch.Tensor, DecoderState, int]:
    """Take one decode step; return its logits, the state, and the peak of its temporaries in bytes."""
    state = model.init_state(batch, depth + 1)
    state.position = depth
    tokens = torch.zeros(batch, 1, dtype=torch.int64)
    with FakeStorageTracker() as tracker:
        logits = model(tokens, state)
    return logits, state, tracker.peak_bytes


def weight_bytes(model: Decoder) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("name", FORMS)
def test_the_parameters_have_the_analytical_bytes(models: dict[str, Decoder], name: str) -> None:
    assert weight_bytes(models[name]) == costs.weight_bytes(models[name].config, DTYPE)


@pytest.mark.usefixtures("narrow_products")
@pytest.mark.parametrize(("name", "depth", "batch"), POINTS)
def test_state_and_workspace_of_a_step_have_the_analytical_bytes(
    models: dict[str, Decoder], name: str, depth: int, batch: int
) -> None:
    config = models[name].config
    logits, state, workspace = step(models[name], batch, depth)
    assert logits.shape == (batch, 1, config.vocab_size)
    assert state.position == depth + 1
    for layer, block in zip(state.layers, config.layers, strict=True):
        for one in block.mixer.state:
            tokens = () if one.kind == "fixed" else (depth + 1,)
            assert layer[one.name].shape == (batch, one.shape[0], *tokens, *one.shape[1:])
    assert state.num_bytes == costs.state_bytes(config, DTYPE, batch, depth + 1)
    assert workspace == pytest.approx(costs.decode_workspace_bytes(config, DTYPE, batch), rel=0.05)


@pytest.mark.usefixtures("narrow_products")
@pytest.mark.parametrize(("name", "depth"), [(name, depth) for name, depth, _ in POINTS])
def test_the_largest_batch_is_that_of_the_counted_bytes(
    models: dict[str, Decoder], name: str, depth: int
) -> None:
    model = models[name]

    def counted(batch: int) -> int:
        _, state, workspace = step(model, batch, depth)
        return weight_bytes(model) + state.num_bytes + workspace

    largest = costs.largest_batch(model.config, DTYPE, USABLE_BYTES, depth)
    assert counted(largest) <= USABLE_BYTES < counted(largest + 1)


def test_the_caches_of_131072_tokens_fit_the_card_with_little_to_spare(models: dict[str, Decoder]) -> None:
    """A batch that is 5 % larger fits at no depth, so the driver decides whether these are out of memory."""
    config = models["transformer"].config
    for depth, batch in CACHES:
        largest = costs.largest_batch(config, DTYPE, USABLE_BYTES, depth)
        assert batch <= largest < 1.05 * batch
