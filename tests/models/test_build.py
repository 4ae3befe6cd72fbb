"""Models as built: seeded, counted, in the dtype asked for."""

import pytest
import torch

from retbench import costs
from retbench.cells import resolve_models
from retbench.config import load_experiment
from retbench.models.build import assemble, build_model
from retbench.sizes import SIZES

VARIANTS = {
    "retnet fla": ("retnet", ["models.retnet.variant=fla"], "chunkwise"),
    "retnet torchscale": ("retnet", ["models.retnet.variant=torchscale"], "chunkwise"),
    "transformer": ("transformer", [], "sdpa"),
    "transformer grouped-query": ("transformer", ["models.transformer.num_kv_heads=1"], "sdpa"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_parameters_of_every_size_equal_the_closed_form(size, variant):
    name, overrides, backend = VARIANTS[variant]
    experiment = load_experiment("latency", [f"size={size}", "allow_mismatch=true", *overrides])
    config = resolve_models(experiment, "paper")[name]
    with torch.device("meta"):
        model = assemble(config, backend)
    counted = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.embedding.weight.numel() + model.head.weight.numel()
    assert counted == costs.num_params(config)
    assert counted - embedding == costs.num_params_nonembedding(config)
    state = model.init_state(2, 100)
    assert state.num_bytes == costs.state_bytes(config, "float32", 2, 100)


def small(dtype=torch.float32, seed=0):
    config = resolve_models(load_experiment("latency", ["size=1m"]), "cpu")["retnet"]
    return build_model(config, dtype=dtype, device="cpu", seed=seed, backend="chunkwise")


def test_one_seed_gives_one_model():
    first, second, other = small().state_dict(), small().state_dict(), small(seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_weight_has_the_dtype_asked_for(dtype):
    model = small(dtype)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert model.mixers[0].log_decay.value.dtype == torch.float64


def test_weights_are_drawn_as_stated():
    weights = dict(small().named_parameters())
    assert weights["head.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(weights["norm.weight"], torch.ones(128))
