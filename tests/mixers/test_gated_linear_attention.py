"""Gated linear attention against its published formula over all pairs of tokens, and GLA as a model."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.gla import GlaSpec
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import find_architecture
from retbench.errors import ConfigError
from retbench.mixers.gated_linear_attention.config import GatedLinearAttention
from retbench.mixers.gated_linear_attention.module import GatedLinearAttentionModule
from retbench.mixers.state import allocate_state
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.ops.position import Positions
from tests.mixers.conftest import read_in_parts

MIXER = GatedLinearAttention(d_model=24, num_heads=3, key_dim=12, value_dim=30, gate_rank=5)
FORMS = ["parallel", "chunkwise", "chunkwise_fp32", "recurrent"]


def model_of(size: str = "1m") -> ModelConfig:
    return resolve_model(GlaSpec(architecture="gla"), size)


def build(dtype: torch.dtype = torch.float32, backend: str = "chunkwise", chunk_size: int = 64) -> Decoder:
    return build_model(model_of(), dtype=dtype, device="cpu", seed=0, backend=backend, chunk_size=chunk_size)


def make_mixer(form: str) -> GatedLinearAttentionModule:
    torch.manual_seed(0)
    module = GatedLinearAttentionModule(MIXER, form, 4).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    torch.nn.init.normal_(module.decay_proj.bias, mean=-20, std=20)  # decays from none to e^-3 per token
    return module


def random_input(length: int, batch: int = 1) -> Tensor:
    return torch.randn(
        batch, length, MIXER.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def plain(module: GatedLinearAttentionModule, x: Tensor) -> Tensor:
    """Sum over pairs of tokens, arXiv:2312.06635 Sec. 4.1: weights sum_c q_ic k_jc exp(G_ic - G_jc), one by one."""
    parts = F.linear(x, module.qgkvd_proj.weight).split([12, 30, 12, 30, 5], dim=-1)
    q, gate, k, v = (part.unflatten(1, (3, -1)) for part in parts[:4])
    log_decay = (torch.sigmoid(module.decay_proj(parts[4])).log() / 16).unflatten(1, (3, -1))
    rows = []
    for i in range(len(x)):
        out = torch.zeros(3, 10, dtype=x.dtype)
        for j in range(i + 1):
            between = log_decay[j + 1 : i + 1].sum(0).exp()
            out += (q[i] * k[j] * between).sum(-1, keepdim=True) / 4**0.5 * v[j]
        normed = out / (out.pow(2).mean(-1, keepdim=True) + MIXER.norm_eps).sqrt() * module.head_norm.weight
        rows.append((normed * gate[i] * torch.sigmoid(gate[i])).flatten())
    return F.linear(torch.stack(rows), module.out_proj.weight)


@settings(max_examples=30, deadline=None)
@given(form=st.sampled_from(FORMS), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_every_cut_of_a_text_equals_the_formula(form: str, cuts: list[int]) -> None:
    module, x = make_mixer(form), random_input(sum(cuts))
    found, _ = read_in_parts(module, x, cuts)
    torch.testing.assert_close(found[0], plain(module, x[0]), rtol=1e-9, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_the_last_token_alone_is_the_last_of_all(form: str) -> None:
    module, x = make_mixer(form), random_input(11, batch=2)
    whole = module(x, None, Positions(0, 11))
    last = module(x, None, Positions(0, 11), last_only=True)
    torch.testing.assert_close(last, whole[:, -1:], rtol=1e-12, atol=1e-12)


def test_the_forms_have_equal_gradients() -> None:
    found = []
    for form in FORMS:
        module, x = make_mixer(form), random_input(13, batch=2).requires_grad_()
        module(x, None, Positions(0, 13)).square().sum().backward()
        found.append([x.grad, *(weight.grad for weight in module.parameters())])
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0], rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_a_decode_step_advances_the_state_in_place() -> None:
    module, x = make_mixer("chunkwise"), random_input(3, batch=4)
    state = allocate_state(MIXER.state, 4, 0, x, torch.float64)
    address = state["values"].data_ptr()
    for t in range(3):
        module(x[:, t : t + 1], state, Positions(t, 1))
    assert state["values"].data_ptr() == address
    assert module.executed == {"decode": "recurrent"}


@pytest.mark.peers
@pytest.mark.skipif(find_spec("fla") is None, reason="fla-core is not installed")
@torch.no_grad()
def test_the_operator_is_that_of_flash_linear_attention() -> None:
    naive = pytest.importorskip("fla.ops.gla.naive", reason="fla-core has no naive operators")
    module, x = make_mixer("chunkwise").float(), random_input(33, batch=2).float()
    outs: list[Tensor] = []
    module.read_out.register_forward_pre_hook(lambda _, args: outs.append(args[0]))
    module(x, None, Positions(0, 33))
    q, _, k, v, log_decay = module._project(x, last_only=False)
    expected, _ = naive.naive_recurrent_gla(q * 4**0.5, k, v, log_decay)  # it scales the queries itself
    torch.testing.assert_close(outs[0], expected, rtol=1e-4, atol=1e-4)


def counted_flops(model: Decoder, *arguments: object, **options: object) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*arguments, **options)
    return counter.get_total_flops()


def mixer_of(config: ModelConfig) -> GatedLinearAttention:
    mixer = config.mixer
    assert isinstance(mixer, GatedLinearAttention)
    return mixer


@pytest.mark.parametrize("length", [128, 512])
def test_prefill_flops_are_those_of_torch_but_for_pairs_of_neighbours(length: int) -> None:
    """Torch counts no products of a token with itself and its neighbour, and the model reads no zero state."""
    config, model = model_of(), build()
    counted = counted_flops(model, torch.zeros(2, length, dtype=torch.int64), last_only=True)
    mixer = mixer_of(config)
    heads = 2 * (config.num_layers - 1) * mixer.num_heads
    unread = heads * 2 * 64 * mixer.head_dim * mixer.value_head_dim
    elementwise = heads * 3 * length * mixer.head_dim
    assert costs.prefill_flops(config, 2, length, "chunkwise", 64) == counted + unread + elementwise


def test_the_published_size_has_the_published_parameters() -> None:
    """The sum for fla-hub/gla-1.3B-100B, whose state is half of that of RetNet at this size."""
    spec = GlaSpec(architecture="gla", ffn_dim="published")
    config = resolve_model(spec, "fla-1.3b")
    assert costs.num_params(config) == 1_365_514_240
    assert costs.state_bytes(config, "float32", 1, 0) == 24 * 524_288 * 4


def test_other_heads_are_named_and_heads_that_do_not_fit_are_refused() -> None:
    unusual = find_architecture("gla").unusual
    assert unusual(model_of()) == []
    assert unusual(resolve_model(GlaSpec(architecture="gla", num_heads=8), "1m")) == ["8 heads"]
    with pytest.raises(
        ConfigError, match="num_heads is 7, which does not divide half of d_model 128 of size '1m'"
    ):
        resolve_model(GlaSpec(architecture="gla", num_heads=7), "1m")
