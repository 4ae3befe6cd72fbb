"""Models as built: seeded, counted, in the dtype asked for."""

import pytest
import torch

from retbench.architectures import costs
from retbench.architectures.sizes import SIZES
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from tests.models.cases import CASES, backends_of, config_of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_parameters_of_every_size_equal_the_closed_form(size, case):
    config = config_of(case, size)
    with torch.device("meta"):
        model = Decoder(config, backends_of(case)[1])
    counted = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.embedding.weight.numel() + model.head.weight.numel()
    assert counted == costs.num_params(config)
    assert counted - embedding == costs.num_params_nonembedding(config)
    state = model.init_state(2, 100)
    state.start_at(100)
    assert state.num_bytes == costs.state_bytes(config, "float32", 2, 100)


def small(dtype=torch.float32, seed=0):
    return build_model(config_of("fla"), dtype=dtype, device="cpu", seed=seed, backend="chunkwise")


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


def test_a_layer_norm_starts_with_a_bias_of_zero():
    model = build_model(config_of("gpt"), dtype=torch.float32, device="cpu", seed=0, backend="sdpa")
    assert torch.equal(model.norm.weight, torch.ones(128))
    assert torch.equal(model.norm.bias, torch.zeros(128))
