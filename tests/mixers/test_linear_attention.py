"""Linear attention against its formula with every sum written out, and the linear Transformer as a model."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.linear import LinearSpec, Variant
from retbench.architectures.matching import resolve_model
from retbench.architectures.sizes import find_size
from retbench.errors import ConfigError
from retbench.mixers.linear_attention.config import LinearAttention
from retbench.mixers.linear_attention.module import LinearAttentionModule
from retbench.mixers.state import allocate_state
from retbench.models.build import build_model
from retbench.models.equivalence import check_equivalence
from retbench.ops.position import Positions

D_MODEL, HEADS = 24, 3
VARIANTS: list[Variant] = ["elu", "identity"]
FORMS = ["parallel", "chunkwise", "recurrent"]


def model_of(variant: Variant, size: str = "1m") -> ModelConfig:
    return resolve_model(LinearSpec(architecture="linear", variant=variant), size)


def make_mixer(variant: Variant, form: str) -> LinearAttentionModule:
    config = LinearAttention(d_model=D_MODEL, num_heads=HEADS, feature_map=variant)
    torch.manual_seed(0)
    module = LinearAttentionModule(config, form, 4).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return module


def nowhere(start: int = 0, length: int = 0) -> Positions:
    return Positions(start, length)


def plain(module: LinearAttentionModule, x: Tensor) -> Tensor:
    """Equation 7 of arXiv:2006.16236 with every sum written out, or its form without map and division."""
    config = module.config
    q, k, v = (
        part.view(x.shape[1], HEADS, config.head_dim).transpose(0, 1)
        for part in F.linear(x[0], module.qkv_proj.weight).chunk(3, dim=-1)
    )
    is_mapped = config.feature_map == "elu"
    rows = []
    for i in range(x.shape[1]):
        heads = []
        for head in range(HEADS):
            query = F.elu(q[head, i]) + 1 if is_mapped else q[head, i] * config.head_dim**-0.5
            keys = F.elu(k[head, : i + 1]) + 1 if is_mapped else k[head, : i + 1]
            weights = keys @ query
            out = weights @ v[head, : i + 1]
            if is_mapped:
                out = out / (weights.sum() + config.norm_eps)
            else:
                (weight,) = module.head_norm.parameters()
                out = F.rms_norm(out, (config.head_dim,), weight, config.norm_eps)
            heads.append(out)
        rows.append(torch.cat(heads))
    return F.linear(torch.stack(rows)[None], module.out_proj.weight)


@settings(max_examples=30, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    form=st.sampled_from(FORMS),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_every_cut_of_a_text_equals_the_formula(variant: Variant, form: str, cuts: list[int]) -> None:
    module, length = make_mixer(variant, form), sum(cuts)
    x = torch.randn(1, length, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = allocate_state(module.config.state, 1, length, x, torch.float64)
    start, outs = 0, []
    with torch.no_grad():
        for cut in cuts:
            outs.append(module(x[:, start : start + cut], state, nowhere(start, cut)))
            start += cut
        torch.testing.assert_close(torch.cat(outs, dim=1), plain(module, x), rtol=1e-8, atol=1e-10)


def test_weights_of_the_normalised_form_sum_to_one() -> None:
    """Equal values come out as they went in, whatever queries and keys are."""
    module = make_mixer("elu", "chunkwise")
    module.qkv_proj.weight.data[2 * D_MODEL :] = 0
    module.qkv_proj.weight.data[2 * D_MODEL :, 0] = 1
    x = torch.randn(1, 50, D_MODEL, dtype=torch.float64)
    x[..., 0] = 3
    with torch.no_grad():
        out = module(x, None, nowhere(0, x.shape[1]))
    expected = F.linear(torch.full((D_MODEL,), 3.0, dtype=torch.float64), module.out_proj.weight)
    torch.testing.assert_close(out, expected.expand_as(out), rtol=1e-5, atol=1e-5)


def test_the_sum_of_weights_goes_on_growing_in_bfloat16() -> None:
    """A sum of bfloat16 ones stops at 256; this one is held in float32."""
    model = build_model(model_of("elu"), dtype=torch.bfloat16, device="cpu", seed=0, backend="chunkwise")
    state = model.init_state(1, 2000)
    text = torch.randint(0, 256, (1, 2000), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(text[:, :1000], state, last_only=True)
        halfway = state.layers[0]["values"][..., -1].clone()
        model(text[:, 1000:], state, last_only=True)
    growth = state.layers[0]["values"][..., -1] / halfway
    assert growth.dtype == torch.float32
    assert growth.mean().item() == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_forms_of_the_model_are_equivalent(dtype: torch.dtype, variant: Variant) -> None:
    model = build_model(model_of(variant), dtype=dtype, device="cpu", seed=0, backend="chunkwise")
    text = torch.randint(0, 256, (1, 301), generator=torch.Generator().manual_seed(0))
    gate = check_equivalence(model, text, depth=301, lengths=(1, 17, 127))
    assert gate.passed, [check for check in gate.checks if not check.passed]
    names = {check.name for check in gate.checks}
    assert {"parallel = chunkwise", "recurrent = chunkwise"} <= names


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_and_state_are_those_of_the_model(variant: Variant) -> None:
    config = model_of(variant)
    model = build_model(config, dtype=torch.bfloat16, device="cpu", seed=0, backend="chunkwise")
    assert sum(weight.numel() for weight in model.parameters()) == costs.num_params(config)
    assert model.init_state(3, 999).num_bytes == costs.state_bytes(config, "bfloat16", 3, 999)
    assert costs.state_bytes(config, "bfloat16", 1, 1) == costs.state_bytes(config, "bfloat16", 1, 32768)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decode_flops_exceed_the_products_by_the_state_update(variant: Variant) -> None:
    """Torch counts products only; decay and rank-one update are 3 operations a state value."""
    config = model_of(variant)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise")
    state, mixer = model.init_state(2, 0), config.mixers[0]
    assert isinstance(mixer, LinearAttention)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 1, dtype=torch.int64), state)
    values = 2 * config.num_layers * mixer.num_heads * mixer.head_dim * mixer.value_head_dim
    assert costs.decode_flops(config, 2, 0) == counter.get_total_flops() + 3 * values


@pytest.mark.parametrize("size", ["1m", "25m", "1.3b"])
def test_it_is_matched_to_the_budget_of_its_size(size: str) -> None:
    shape = find_size(size)
    budget = 12 * shape.d_model**2 * shape.num_layers
    assert costs.block_params(model_of("elu", size)) == pytest.approx(budget, rel=0.01)


def test_a_published_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="published"):
        resolve_model(LinearSpec(architecture="linear", ffn_dim="published"), "1m")
