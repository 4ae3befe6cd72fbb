"""RWKV-6 and RWKV-5 against an independent model, their forms against each other, and their costs."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig, parse_model_config
from retbench.architectures.matching import resolve_model
from retbench.architectures.rwkv6 import RwkvSpec, Variant, published_ffn, rwkv_config
from retbench.architectures.sizes import find_size
from retbench.errors import UnsupportedError
from retbench.mixers.rwkv import module as rwkv_module
from retbench.mixers.rwkv.config import RwkvTimeMix
from retbench.mixers.rwkv.kernels import KERNELS
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.models.equivalence import check_equivalence, relative_error
from retbench.ops import kernels
from retbench.ops.linear_operator import Readout, linear_recurrent
from tests.mixers import plain_rwkv

VARIANTS: list[Variant] = ["v6", "v5"]
FORMS = ["parallel", "chunkwise", "recurrent"]
D_MODEL, HEADS, LAYERS = 24, 3, 2
TEXT = torch.randint(0, 53, (2, 61), generator=torch.Generator().manual_seed(0))


def small(variant: Variant, ffn_dim: int = 40) -> ModelConfig:
    ranks = {"mix_rank": 4, "decay_rank": 5} if variant == "v6" else {"mix_rank": 0, "decay_rank": 0}
    mixer = RwkvTimeMix(d_model=D_MODEL, num_heads=HEADS, **ranks)
    return rwkv_config(mixer, num_layers=LAYERS, vocab_size=53, ffn_dim=ffn_dim)


def model_of(variant: Variant, size: str = "1m") -> ModelConfig:
    return resolve_model(RwkvSpec(architecture="rwkv6", variant=variant), size)


@torch.no_grad()
def weighty(variant: Variant, form: str = "chunkwise", dtype: torch.dtype = torch.float64) -> Decoder:
    """A model whose weights are so large and uneven that every part shows; decays from none to e^-20 per token."""
    model = build_model(small(variant), dtype=torch.float64, device="cpu", seed=3, backend=form, chunk_size=8)
    generator = torch.Generator().manual_seed(5)
    for weight in model.parameters():
        scale = weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.5
        weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype), alpha=scale)
    for mixer in model.mixers:
        assert isinstance(mixer, rwkv_module.RwkvTimeMixModule)
        mixer.log_rate[:6] = torch.tensor([-40.0, -8.0, -4.0, 1.0, 2.0, 3.0])
    return model.to(dtype)


def plain_logits(model: Decoder, tokens: Tensor) -> Tensor:
    weights = {name: weight.double().numpy() for name, weight in model.state_dict().items()}
    return torch.from_numpy(plain_rwkv.logits(weights, tokens.tolist(), HEADS, LAYERS))


@settings(max_examples=25, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    form=st.sampled_from(FORMS),
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=5),
)
@torch.no_grad()
def test_every_cut_of_a_text_equals_the_formulas(variant: Variant, form: str, cuts: list[int]) -> None:
    model, tokens = weighty(variant, form), TEXT[:1].repeat(1, 2)[:, : sum(cuts)]
    state = model.init_state(1, 0)
    logits = [model(part, state) for part in tokens.split(cuts, dim=1)]
    assert relative_error(torch.cat(logits, dim=1)[0], plain_logits(model, tokens[0])) < 1e-10


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_forms_agree_in_outputs_and_states_to_rounding(variant: Variant) -> None:
    tokens = torch.randint(0, 53, (1, 1023), generator=torch.Generator().manual_seed(1))
    for dtype, limit in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        found = []
        for form in FORMS:
            model = weighty(variant, form, dtype)
            state = model.init_state(1, 0)
            logits = torch.cat([model(part, state) for part in tokens.split([401, 622], dim=1)], dim=1)
            found.append({"logits": logits, **state.tensors()})
        for other in found[:2]:
            for name, tensor in other.items():
                assert relative_error(tensor, found[2][name]) < limit, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_forms_agree_in_gradients(variant: Variant) -> None:
    found = []
    for form in FORMS:
        model = weighty(variant, form)
        model(TEXT).logsumexp(-1).sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in found[2].items():
        assert gradient is not None
        assert gradient.abs().sum() > 0, name
        for other in found[:2]:
            assert relative_error(other[name], gradient) < 1e-9, name


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_last_token_alone_is_the_last_of_all(variant: Variant) -> None:
    model = weighty(variant)
    states = [model.init_state(2, 0) for _ in range(2)]
    for part in TEXT.split([60, 1], dim=1):
        last = model(part, states[0], last_only=True)
        assert relative_error(last, model(part, states[1])[:, -1:]) < 1e-12
    for name, tensor in states[0].tensors().items():
        torch.testing.assert_close(tensor, states[1].tensors()[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_step_of_a_batch_is_made_in_place_and_is_that_of_each_sequence(variant: Variant) -> None:
    model = weighty(variant)
    tokens = torch.randint(0, 53, (4, 9), generator=torch.Generator().manual_seed(2))
    state = model.init_state(4, 0)
    places = [tensor.data_ptr() for layer in state.layers for tensor in layer.tensors.values()]
    together = torch.cat([model(tokens[:, t : t + 1], state) for t in range(9)], dim=1)
    assert [tensor.data_ptr() for layer in state.layers for tensor in layer.tensors.values()] == places
    for row in range(4):
        assert relative_error(together[row], plain_logits(model, tokens[row])) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["time_shift", "channel_shift"])
def test_a_shift_that_forgets_the_segment_before_is_stopped(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    honest = rwkv_module._difference

    def forget(x, state, tensor):
        if tensor == name and state is not None:
            state[name].zero_()
        return honest(x, state, tensor)

    monkeypatch.setattr(rwkv_module, "_difference", forget)
    model = build_model(model_of("v6"), dtype=dtype, device="cpu", seed=0, backend="chunkwise")
    text = torch.randint(0, 256, (1, 301), generator=torch.Generator().manual_seed(0))
    gate = check_equivalence(model, text, depth=301, lengths=(1, 17, 127))
    assert "decode = chunkwise" in {check.name for check in gate.checks if not check.passed}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decay_that_ignores_the_data_in_a_decode_step_is_stopped(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """New weights must show it: with the published ones, whose low ranks start at zero, nothing would differ."""
    honest = rwkv_module.RwkvTimeMixModule._log_decay

    def fixed(self, x_decay):
        return honest(self, torch.zeros_like(x_decay) if x_decay.shape[1] == 1 else x_decay)

    monkeypatch.setattr(rwkv_module.RwkvTimeMixModule, "_log_decay", fixed)
    model = build_model(model_of("v6"), dtype=dtype, device="cpu", seed=0, backend="chunkwise")
    text = torch.randint(0, 256, (1, 301), generator=torch.Generator().manual_seed(0))
    gate = check_equivalence(model, text, depth=301, lengths=(1, 17, 127))
    assert "decode = chunkwise" in {check.name for check in gate.checks if not check.passed}


def test_parameters_of_the_published_model() -> None:
    """RWKV-6 World 1.6B: 24 layers of width 2048, a channel mix of 7168, and 65,536 words."""
    shape = find_size("1.3b")
    mixer = RwkvTimeMix.at_size(shape)
    assert (mixer.num_heads, mixer.head_dim, mixer.mix_rank, mixer.decay_rank) == (32, 64, 32, 64)
    assert published_ffn(2048) == 7168
    config = rwkv_config(mixer, num_layers=24, vocab_size=65536, ffn_dim=7168)
    assert costs.num_params(config) == 1_599_873_024


@pytest.mark.parametrize(("d_model", "layers", "printed"), [(1024, 24, 1_622_016), (4096, 32, 8_650_752)])
def test_values_of_the_state_are_those_that_the_paper_prints(d_model: int, layers: int, printed: int) -> None:
    """arXiv:2404.05892, App. E; in float32 every value has four bytes."""
    mixer = RwkvTimeMix(d_model=d_model, num_heads=d_model // 64)
    config = rwkv_config(mixer, num_layers=layers, vocab_size=8, ffn_dim=8)
    assert costs.state_bytes(config, "float32", 1, 999) == 4 * printed


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_reads_and_writes_its_state_at_any_depth(variant: Variant) -> None:
    config = model_of(variant)
    moved = [costs.decode_traffic(config, "bfloat16", 1, depth).states for depth in (1, 32768)]
    assert moved == [2 * costs.state_bytes(config, "bfloat16", 1, 1)] * 2


def count(model: Decoder, tokens: Tensor, **options: bool) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens, **options)
    return counter.get_total_flops()


@pytest.mark.parametrize("variant", VARIANTS)
def test_decode_flops_exceed_the_products_by_the_update_and_the_bonus(variant: Variant) -> None:
    """Torch counts products only: the update is 3 operations a state value, and the bonus 5 a channel."""
    config = model_of(variant)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise")
    state = model.init_state(2, 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 1, dtype=torch.int64), state)
    mixer, values = config.mixer, 2 * config.num_layers * config.d_model * config.mixer.head_dim
    beside = 3 * values + 5 * 2 * config.num_layers * config.d_model
    assert isinstance(mixer, RwkvTimeMix)
    assert costs.decode_flops(config, 2, 0) == counter.get_total_flops() + beside


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_flops_equal_what_torch_counts(variant: Variant) -> None:
    """Less the read-out of a zero state, and what is multiplied without a product: a token with itself and its pair."""
    config, length, chunk = model_of(variant), 256, 64
    model = build_model(
        config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise", chunk_size=chunk
    )
    counted = count(model, torch.zeros(2, length, dtype=torch.int64), last_only=True)
    width, layers = config.mixer.head_dim, config.num_layers
    unread = 2 * layers * 2 * chunk * config.d_model * width
    pairs = 2 * layers * (length + length // 2) * 2 * config.d_model
    assert costs.prefill_flops(config, 2, length, "chunkwise", chunk) == counted + unread + pairs


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_flops_are_near_what_torch_counts(variant: Variant, checkpointing: bool) -> None:
    """Torch counts neither pairs of neighbours, nor leaves out the update of the last state."""
    config = model_of(variant)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise", chunk_size=64)
    model.activation_checkpointing = checkpointing
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 256, dtype=torch.int64)).sum().backward()
    expected = costs.training_flops(config, 2, 256, "chunkwise", 64, recomputed=checkpointing)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_configuration_is_read_as_it_was_dumped() -> None:
    for variant in VARIANTS:
        config = model_of(variant)
        assert parse_model_config(config.model_dump()) == config
        assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    assert len({model_of(variant).fingerprint for variant in VARIANTS}) == 2


def test_vectors_start_as_the_published_code_sets_them() -> None:
    config = small("v6")
    model = build_model(config, dtype=torch.float64, device="cpu", seed=0, backend="chunkwise")
    first, last = (mixer.state_dict() for mixer in model.mixers)
    channels = np.arange(D_MODEL)
    np.testing.assert_allclose(first["mix"][:D_MODEL], 1 - channels / D_MODEL)
    np.testing.assert_allclose(last["mix"][-D_MODEL:], 1 - (channels / D_MODEL) ** 0.25)
    np.testing.assert_allclose(first["log_rate"], -6 + 5 * (channels / 23) ** 0.7)
    np.testing.assert_allclose(last["log_rate"], -6 + 5 * (channels / 23) ** 2)
    np.testing.assert_allclose(first["bonus"], 0.1 * ((channels + 1) % 3 - 1))
    np.testing.assert_allclose(last["bonus"], 1 - channels / 23 + 0.1 * ((channels + 1) % 3 - 1))
    assert set(first["head_norm.weight"].tolist()) == {0.5**0.7}
    assert set(last["head_norm.weight"].tolist()) == {1.0}


def written_out(r, k, v, w, u, scale=None, initial_state=None, output_final_state=False):
    """Compute what fla's `naive_recurrent_rwkv6` does, with the arguments and the layout of its kernels."""
    assert scale == 1.0
    assert output_final_state
    assert w.dtype == torch.float32
    assert w.shape == r.shape == k.shape
    assert u.shape == r.shape[2:]
    batch, length, heads, width = r.shape
    h = torch.zeros(batch, heads, width, v.shape[-1]) if initial_state is None else initial_state.clone()
    outs = []
    for t in range(length):
        kv = k[:, t, :, :, None].float() * v[:, t, :, None, :].float()
        outs.append(((h + u[..., None] * kv) * r[:, t, :, :, None].float()).sum(-2))
        h = h * w[:, t].exp()[..., None] + kv
    return torch.stack(outs, dim=1).to(v.dtype), h


@pytest.mark.parametrize("form", KERNELS)
def test_kernels_get_what_they_take(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    fake = ModuleType("fla.ops.rwkv6")
    fake.chunk_rwkv6 = fake.fused_recurrent_rwkv6 = written_out  # type: ignore[attr-defined]
    fake.__spec__ = ModuleSpec("fla.ops.rwkv6", None)
    monkeypatch.setitem(sys.modules, "fla.ops.rwkv6", fake)
    generator = torch.Generator().manual_seed(0)
    r, k, v, decay = torch.randn(4, 2, 11, 3, 4, generator=generator).unbind()
    state = torch.randn(2, 3, 4, 4, generator=generator)
    readout = Readout(torch.randn(3, 4, generator=generator))
    for before in (None, state):
        found = KERNELS[form](r, k, v, -decay.exp(), before, readout=readout)
        for one, other in zip(
            found, linear_recurrent(r, k, v, -decay.exp(), before, readout=readout), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", KERNELS)
def test_kernels_are_refused_without_a_gpu(form: str) -> None:
    with pytest.raises(UnsupportedError, match="run on CUDA devices only; use backend 'chunkwise'"):
        build_model(model_of("v6"), dtype=torch.bfloat16, device="cpu", seed=0, backend=form)


def test_only_the_recurrent_kernel_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(model_of("v6"), dtype=torch.float32, device="cpu", seed=0, backend="chunkwise")
    monkeypatch.setattr("retbench.mixers.rwkv.kernels._launch_problem", lambda *_: None)
    monkeypatch.setattr(kernels, "_import_problem", lambda: None)
    monkeypatch.setattr(kernels, "_launch_problem", lambda *_: None)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: name)
    reasons = [model.mixers[0].missing_reason(form, torch.device("cuda"), torch.float32) for form in KERNELS]
    assert reasons[1] is None
    assert reasons[0] is not None
    assert "TensorFloat-32" in reasons[0]
