"""Properties of every architecture in every preset: equivalent forms, the budget of a size, parameters and state."""

import pytest
import torch

from retbench.architectures import costs
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import ModelConfig, reading_backend
from retbench.architectures.hybrid import HybridSpec
from retbench.architectures.mamba2 import Mamba2Spec
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.architectures.sizes import find_size
from retbench.architectures.sliding_window import SlidingWindowSpec
from retbench.architectures.yoco import YocoSpec
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.models.equivalence import check_equivalence

SPECS: dict[str, ModelSpec] = {
    # Forms of the pair are compared in tests/models/test_equivalence.py.
    **{name: spec for name, spec in named_specs().items() if not name.startswith(("retnet", "transformer"))},
    "hybrid": HybridSpec(pattern=("retention", "retention", {"mixer": "attention", "num_kv_heads": 1})),
    "mamba2-groups": Mamba2Spec(architecture="mamba2", num_groups=2),
    "sliding_window-sinks": SlidingWindowSpec(architecture="sliding_window", window=16, sinks=4),
    "sliding_window-short": SlidingWindowSpec(architecture="sliding_window", window=100, sinks=0),
    "yoco": YocoSpec(architecture="yoco", num_kv_heads=2),
    "yoco-sw": YocoSpec(architecture="yoco", variant="sw", window=16, num_kv_heads=2),
}
COMPARED = {
    "attention": {"reference"},
    "gated_convolution": {"recurrent"},
    "latent_attention": {"reference", "absorbed"},
    "shared_attention": {"reference"},
    "window_attention": {"reference"},
}
"""The forms that each mixer's default must equal; those of a recurrent state are all alike."""


def config_of(name: str) -> ModelConfig:
    """Return a small model; of YOCO one with two layers that read the cache."""
    return resolve_model(SPECS[name], "3m" if name.startswith("yoco") else "1m")


def build(name: str, dtype: torch.dtype) -> Decoder:
    config = config_of(name)
    backend = reading_backend(config, SPECS[name].backend)
    return build_model(config, dtype=dtype, device="cpu", seed=0, backend=backend)


@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16]
)
@pytest.mark.parametrize("name", SPECS)
def test_the_forms_of_the_model_are_equivalent(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    text = torch.randint(0, 256, (1, 301), generator=torch.Generator().manual_seed(0))
    gate = check_equivalence(model, text, depth=301, lengths=(1, 17, 127))
    assert gate.passed, [check for check in gate.checks if not check.passed]
    kinds = {mixer.mixer for mixer in model.config.mixers}
    forms = {(kind, form) for kind in kinds for form in COMPARED.get(kind, {"parallel", "recurrent"})}
    expected = {form if len(kinds) == 1 else f"{kind}={form}" for kind, form in forms}
    assert {f"{form} = {model.backend}" for form in {*expected, "decode"}} <= {
        check.name for check in gate.checks
    }


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_parameters_and_state_are_those_of_the_model(name: str, dtype: str) -> None:
    config, model = config_of(name), build(name, getattr(torch, dtype))
    assert sum(weight.numel() for weight in model.parameters()) == costs.num_params(config)
    for batch, capacity in ((1, 0), (3, 1), (4, 5), (3, 20), (3, 21), (2, 999), (1, 4096)):
        expected = costs.state_bytes(config, dtype, batch, capacity)
        assert model.init_state(batch, capacity).num_bytes == expected
    near, far = (costs.state_bytes(config, dtype, 1, context) for context in (8192, 32768))
    assert (near < far) == config.grows


@pytest.mark.parametrize("size", ["300k", "1m", "25m", "1.3b", "6.7b", "yoco-3b"])
@pytest.mark.parametrize("name", [name for name in SPECS if name != "mamba2-groups"])
def test_it_is_matched_to_the_budget_of_its_size(name: str, size: str) -> None:
    shape = find_size(size)
    budget = 12 * shape.d_model**2 * shape.num_layers
    assert costs.block_params(resolve_model(SPECS[name], size)) == pytest.approx(budget, rel=0.01)
