"""Mamba-2 against its recurrence with every sum written out, and the architecture as a model."""

import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.mamba2 import Mamba2Spec, mamba2_config
from retbench.architectures.matching import resolve_model
from retbench.architectures.sizes import SIZES, find_size
from retbench.errors import ConfigError
from retbench.mixers.mamba2.config import Mamba2
from retbench.mixers.mamba2.module import Mamba2Module
from retbench.mixers.module import Depth
from retbench.mixers.state import allocate_state
from retbench.models.build import build_model
from retbench.models.equivalence import check_equivalence
from retbench.ops.position import Positions
from tests.mixers.conftest import read_in_parts

FORMS = ["parallel", "chunkwise", "recurrent"]
D_MODEL, HEADS, WIDTH, STATE = 12, 4, 3, 5


def make_mixer(form: str, num_groups: int, dtype: torch.dtype = torch.float64) -> Mamba2Module:
    config = Mamba2(
        d_model=D_MODEL, num_heads=HEADS, inner_dim=HEADS * WIDTH, state_size=STATE, num_groups=num_groups
    )
    module = Mamba2Module(config, form, 4).double()
    generator = torch.Generator().manual_seed(0)
    module.init_weights(generator, Depth(0, 1))
    for name, weight in module.named_parameters():
        if name not in ("dt_bias", "log_rate"):
            weight.data.normal_(1.0 if name in ("skip", "norm.weight") else 0.0, 0.4, generator=generator)
    return module.to(dtype)


def text_of(length: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, D_MODEL, dtype=torch.float64, generator=generator)


def plain(module: Mamba2Module, x: Tensor) -> Tensor:
    """Equations of arXiv:2405.21060, Sec. 7.1, and of `mamba_ssm/modules/mamba2.py`: one token and head at a time."""
    config, weights = module.config, dict(module.named_parameters())
    inner, groups = HEADS * WIDTH, config.num_groups
    channels = inner + 2 * groups * STATE
    projected = x @ weights["in_proj.weight"].T
    state = torch.zeros(HEADS, STATE, WIDTH, dtype=x.dtype)
    rows = []
    for t in range(x.shape[0]):
        convolved = weights["conv_bias"].clone()
        for back in range(min(t + 1, config.conv_width)):
            tap = weights["conv_weight"][:, 0, config.conv_width - 1 - back]
            convolved = convolved + tap * projected[t - back, inner : inner + channels]
        convolved = convolved / (1 + (-convolved).exp())
        values, keys, queries = convolved.split([inner, groups * STATE, groups * STATE])
        y = torch.zeros(HEADS, WIDTH, dtype=x.dtype)
        for head in range(HEADS):
            group = head // (HEADS // groups)
            columns = slice(group * STATE, (group + 1) * STATE)
            step = (1 + (projected[t, inner + channels + head] + weights["dt_bias"][head]).exp()).log()
            decay = (-step * weights["log_rate"][head].exp()).exp()
            value = values[head * WIDTH : (head + 1) * WIDTH]
            state[head] = decay * state[head] + step * torch.outer(keys[columns], value)
            y[head] = queries[columns] @ state[head] + weights["skip"][head] * value
        gate = projected[t, :inner]
        gated = (y.flatten() * gate / (1 + (-gate).exp())).view(groups, -1)
        normed = gated / (gated.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        rows.append(weights["out_proj.weight"] @ (weights["norm.weight"] * normed.flatten()))
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(
    num_groups=st.sampled_from([1, 2, 4]),
    form=st.sampled_from([*FORMS, "chunkwise_fp32"]),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_every_cut_of_a_text_equals_the_recurrence(num_groups: int, form: str, cuts: list[int]) -> None:
    module, x = make_mixer(form, num_groups), text_of(sum(cuts))
    found, _ = read_in_parts(module, x, cuts)
    torch.testing.assert_close(found[0], plain(module, x[0]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_the_last_token_alone_and_the_state_are_those_of_all_tokens(form: str, num_groups: int) -> None:
    module, x = make_mixer(form, num_groups), text_of(11, batch=3)
    whole, last = (allocate_state(module.config.state, 3, 11, x, torch.float64) for _ in range(2))
    with torch.no_grad():
        expected = module(x, whole, Positions(0, 11))[:, -1:]
        for start, end in ((0, 2), (2, 11)):
            found = module(x[:, start:end], last, Positions(start, end - start), last_only=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for name in ("values", "convolution"):
        torch.testing.assert_close(last[name], whole[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("form", ["parallel", "chunkwise"])
def test_gradients_are_those_of_the_recurrence(form: str, num_groups: int) -> None:
    def gradients(module: Mamba2Module) -> list[Tensor]:
        x = text_of(9).requires_grad_()
        state = allocate_state(module.config.state, 1, 9, x, torch.float64)
        outs = [module(x[:, :3], state, Positions(0, 3)), module(x[:, 3:], state, Positions(3, 6))]
        loss = (torch.cat(outs, dim=1) * text_of(9).cos()).sum() + state["values"].sin().sum()
        return list(torch.autograd.grad(loss, [x, *module.parameters()]))

    found = gradients(make_mixer(form, num_groups))
    for mine, reference in zip(found, gradients(make_mixer("recurrent", num_groups)), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-11)


def model_of(size: str = "1m", **fields: Any) -> ModelConfig:
    return resolve_model(Mamba2Spec(architecture="mamba2", **fields), size)


def test_a_model_that_forgets_the_last_inputs_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(model_of(), dtype=torch.bfloat16, device="cpu", seed=0, backend="chunkwise")
    keep = Mamba2Module.keep

    def forget(state: Any, name: str, tensor: Tensor) -> None:
        keep(state, name, tensor.mul_(1e-3) if name == "convolution" else tensor)

    monkeypatch.setattr(Mamba2Module, "keep", staticmethod(forget))
    text = torch.randint(0, 256, (1, 301), generator=torch.Generator().manual_seed(0))
    assert not check_equivalence(model, text, depth=301, lengths=(1, 17)).passed


def test_the_published_130m_model_has_its_parameters() -> None:
    """128,989,632 with one table of 50,288 words for the embedding and the head; here these are two."""
    mixer = Mamba2(d_model=768, num_heads=24, inner_dim=1536)
    config = mamba2_config(mixer, num_layers=24, vocab_size=50288)
    assert costs.num_params(config) - 50288 * 768 == 128_989_632


@pytest.mark.parametrize("size", SIZES)
def test_it_is_matched_to_the_budget_of_its_size(size: str) -> None:
    shape, config = find_size(size), model_of(size)
    budget = 12 * shape.d_model**2 * shape.num_layers
    assert costs.block_params(config) == pytest.approx(budget, rel=0.008)
    mixer = config.mixer
    assert isinstance(mixer, Mamba2)
    assert config.num_layers == 2 * shape.num_layers
    assert 0.84 < mixer.inner_dim / (2 * shape.d_model) <= 1
    assert (mixer.value_head_dim == 64) == (shape.d_model >= 2048)


def test_a_published_width_is_twice_that_of_the_model() -> None:
    mixer = model_of("125m", inner_dim="published").mixer
    assert isinstance(mixer, Mamba2)
    assert (mixer.inner_dim, mixer.num_heads, mixer.state_size) == (1536, 24, 128)


@pytest.mark.parametrize(
    ("fields", "message"), [({"num_groups": 3}, "num_groups is 3"), ({"inner_dim": 130}, "inner_dim 130")]
)
def test_widths_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(**fields)


def mixer_of(config: ModelConfig) -> Mamba2:
    assert isinstance(config.mixer, Mamba2)
    return config.mixer


def elementwise(config: ModelConfig, tokens: int) -> int:
    """Operations of the convolutions, which torch does not count."""
    mixer = mixer_of(config)
    return tokens * config.num_layers * 2 * mixer.conv_width * mixer.conv_channels


@pytest.mark.parametrize("num_groups", [1, 2])
def test_decode_flops_exceed_the_products_by_the_update_and_the_convolution(num_groups: int) -> None:
    config = model_of(num_groups=num_groups)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise")
    state, mixer = model.init_state(2, 0), mixer_of(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 1, dtype=torch.int64), state)
    values = 2 * config.num_layers * mixer.inner_dim * mixer.state_size
    expected = counter.get_total_flops() + 3 * values + elementwise(config, 2)
    assert costs.decode_flops(config, 2, 0) == expected


@pytest.mark.parametrize("num_groups", [1, 2])
def test_prefill_flops_equal_what_torch_counts(num_groups: int) -> None:
    """Less one read of a zero state in all blocks but the last: the first chunk has none."""
    config = model_of(num_groups=num_groups)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise", chunk_size=64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 256, dtype=torch.int64), last_only=True)
    mixer = mixer_of(config)
    unread = 2 * 2 * (config.num_layers - 1) * 64 * mixer.inner_dim * mixer.state_size
    expected = counter.get_total_flops() + unread + elementwise(config, 2 * 256)
    assert costs.prefill_flops(config, 2, 256, "chunkwise", 64) == expected


@pytest.mark.parametrize("length", [40, 150])
def test_training_flops_equal_what_torch_counts(length: int) -> None:
    """Less the update of a state that nothing reads."""
    config = model_of(num_groups=2)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise", chunk_size=64)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, length, dtype=torch.int64)).sum().backward()
    mixer, last = mixer_of(config), length % 64
    unread = 2 * config.num_layers * 2 * last * mixer.inner_dim * mixer.state_size
    expected = counter.get_total_flops() - unread + 3 * elementwise(config, 2 * length)
    assert costs.training_flops(config, 2, length, "chunkwise", 64) == expected


def test_weights_are_drawn_as_published() -> None:
    """A_log is the logarithm of 1 .. 16, softplus(dt_bias) is 0.001 .. 0.1, D is one; the convolution as nn.Conv1d."""
    model = build_model(model_of("25m"), dtype=torch.float32, device="cpu", seed=0, backend="chunkwise")
    mixers = [mixer for mixer in model.mixers if isinstance(mixer, Mamba2Module)]
    rates = torch.stack([mixer.log_rate for mixer in mixers]).exp()
    steps = torch.nn.functional.softplus(torch.stack([mixer.dt_bias for mixer in mixers]))
    assert rates.min() >= 1
    assert rates.max() <= 16
    assert rates.mean().item() == pytest.approx(8.5, abs=1)
    assert steps.min() >= 0.99e-3
    assert steps.max() <= 0.101
    assert steps.log().mean().item() == pytest.approx((math.log(1e-3) + math.log(0.1)) / 2, abs=0.3)
    assert all(bool((mixer.skip == 1).all()) for mixer in mixers)
    for weight in (mixers[0].conv_weight, mixers[0].conv_bias):
        assert weight.abs().max() <= 0.5
        assert weight.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.05)
    assert mixers[0].in_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)


def install(monkeypatch: pytest.MonkeyPatch, path: str, **functions: Any) -> None:
    """Put a module with these functions, and its packages, in the place of one that is not installed."""
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    for name, function in functions.items():
        setattr(sys.modules[path], name, function)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803 - the name of the argument
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    chunk_size: int,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
) -> tuple[Tensor, Tensor]:
    """Follow mamba-ssm's documentation of the arguments and shapes, token by token."""
    (batch, length, heads, width), (groups, size) = x.shape, B.shape[2:]
    assert B.shape == C.shape == (batch, length, groups, size)
    assert dt.shape == (batch, length, heads)
    assert A.shape == (heads,)
    assert chunk_size == 256
    assert return_final_states
    shape = (batch, heads, width, size)
    state = x.new_zeros(shape) if initial_states is None else initial_states
    assert state.shape == shape
    assert state.is_contiguous()
    outs = []
    for t in range(length):
        keys, queries = (one[:, t].repeat_interleave(heads // groups, dim=1) for one in (B, C))
        added = torch.einsum("bhp,bhn->bhpn", x[:, t] * dt[:, t, :, None], keys)
        state = (dt[:, t] * A).exp()[..., None, None] * state + added
        outs.append(torch.einsum("bhpn,bhn->bhp", state, queries))
    return torch.stack(outs, dim=1), state


def chunk_simple_gla(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Follow flash-linear-attention's documentation by the other function, with a decay instead of a time step."""
    state = options["initial_state"]
    assert q.shape[2] == v.shape[2]
    assert options["scale"] == 1
    outs, last = [], v.new_zeros(*v.shape[:1], v.shape[2], q.shape[3], v.shape[3]) if state is None else state
    for t in range(q.shape[1]):
        last = options["g"][:, t].exp()[..., None, None] * last + k[:, t, :, :, None] * v[:, t, :, None]
        outs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], last))
    return torch.stack(outs, dim=1), last


@pytest.mark.parametrize("form", ["mamba_ssm", "fla"])
@pytest.mark.parametrize("num_groups", [1, 2])
def test_a_kernel_gets_what_its_documentation_asks_for(
    form: str, num_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = {"mamba_chunk_scan_combined": mamba_chunk_scan_combined}
    install(monkeypatch, "mamba_ssm.ops.triton.ssd_combined", **scan)
    install(monkeypatch, "fla.ops.simple_gla", chunk_simple_gla=chunk_simple_gla)
    x, outs = text_of(11, batch=2).float(), []
    for name in (form, "recurrent"):
        module = make_mixer(name, num_groups, torch.float32)
        state = allocate_state(module.config.state, 2, 11, x, torch.float32)
        with torch.no_grad():
            parts = [module(x[:, a:b], state, Positions(a, b - a)) for a, b in ((0, 6), (6, 10), (10, 11))]
        assert module.executed == {"prefill": name, "decode": "recurrent"}
        outs.append((torch.cat(parts, dim=1), state["values"]))
    for found, expected in zip(*outs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_kernel_that_cannot_run_here_says_why() -> None:
    model = build_model(model_of(), dtype=torch.float32, device="cpu", seed=0, backend="chunkwise")
    reasons = model.backends()
    assert "CUDA devices only" in str(reasons["mamba_ssm"])
    assert "CUDA devices only" in str(reasons["fla"])
    module = make_mixer("chunkwise", 1)
    cuda = torch.device("cuda")
    assert "float32" in str(module.missing_reason("mamba_ssm", cuda, torch.float32))
    assert "not installed" in str(module.missing_reason("mamba_ssm", cuda, torch.bfloat16))
