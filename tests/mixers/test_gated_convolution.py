"""The gated convolution against torch's own convolution, and its costs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.hybrid import HybridSpec
from retbench.architectures.matching import resolve_model
from retbench.mixers.gated_convolution.config import GatedConvolution
from retbench.mixers.gated_convolution.module import GatedConvolutionModule
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.ops.position import Positions
from tests.mixers.conftest import read_in_parts

MIXER = GatedConvolution(d_model=8, inner_width=12, kernel_size=3)
FORMS = ["convolution", "recurrent"]


def make_mixer(form: str) -> GatedConvolutionModule:
    torch.manual_seed(0)
    module = GatedConvolutionModule(MIXER, form, None).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    return module


def random_input(length: int) -> Tensor:
    return torch.randn(2, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain(module: GatedConvolutionModule, x: Tensor) -> Tensor:
    inputs, gate = F.linear(x, module.in_proj.weight).chunk(2, dim=-1)
    padded = F.pad(inputs.mT, (2, 0))
    convolved = F.conv1d(padded, module.conv_weight[:, None], groups=12).mT
    return F.linear(F.silu(convolved) * gate, module.out_proj.weight)


@settings(max_examples=20, deadline=None)
@given(form=st.sampled_from(FORMS), cuts=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_every_cut_of_a_text_is_the_convolution_of_torch(form: str, cuts: list[int]) -> None:
    module, x = make_mixer(form), random_input(sum(cuts))
    found, _ = read_in_parts(module, x, cuts)
    torch.testing.assert_close(found, plain(module, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_and_the_last_token_are_those_of_the_convolution_of_torch(form: str) -> None:
    module, x = make_mixer(form), random_input(7)
    found, expected = module(x, None, Positions(0, 7)), plain(module, x)
    weights = list(module.parameters())
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    last = module(x, None, Positions(0, 7), last_only=True)
    torch.testing.assert_close(last, expected[:, -1:])


def model_of() -> ModelConfig:
    """The feed-forward is narrow, so that the mixer takes most."""
    return resolve_model(HybridSpec(pattern=("gated_convolution",), ffn_dim=8), "1m", vocab_size=256)


def build() -> Decoder:
    return build_model(model_of(), dtype=torch.float32, device="cpu", seed=0, backend="convolution")


def test_state_and_initial_weights() -> None:
    config, model = model_of(), build()
    assert costs.state_bytes(config, "bfloat16", 1, 999) == config.num_layers * 2 * 2 * config.d_model * 2
    weight = model.mixers[0].get_parameter("conv_weight")
    assert weight.abs().max().item() == pytest.approx(3**-0.5, rel=0.01)


def test_flops_exceed_the_products_by_the_convolution() -> None:
    """Torch counts products only."""
    config, model = model_of(), build()
    mixer = config.mixer
    assert isinstance(mixer, GatedConvolution)
    per_token = config.num_layers * 2 * 3 * mixer.inner_width
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 1, dtype=torch.int64), model.init_state(2, 0))
    assert costs.decode_flops(config, 2, 0) == counter.get_total_flops() + 2 * per_token
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 40, dtype=torch.int64)).sum().backward()
    counted = counter.get_total_flops() + 3 * 2 * 40 * per_token
    assert costs.training_flops(config, 2, 40, "convolution", None) == counted


@pytest.mark.parametrize("fields", [{"num_heads": 2}, {"kernel_size": 1}, {"inner_width": 0}])
def test_what_has_no_effect_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        GatedConvolution.model_validate({"d_model": 8, "inner_width": 12, **fields})
