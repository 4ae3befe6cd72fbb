"""Multi-head latent attention: its forms, its cache and its costs, and the MLA Transformer as a model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.hybrid import HybridSpec
from retbench.architectures.matching import resolve_model
from retbench.architectures.mla import MlaSpec, Variant
from retbench.architectures.sizes import find_size
from retbench.errors import ConfigError
from retbench.measure.memory import measure_memory
from retbench.mixers.latent_attention.config import LatentAttention
from retbench.mixers.latent_attention.module import LatentAttentionModule
from retbench.mixers.state import allocate_state
from retbench.models.build import build_model
from retbench.models.equivalence import check_equivalence, relative_error
from tests.mixers.conftest import read_in_parts

VARIANTS: list[Variant] = ["direct", "compressed"]
FORMS = ["sdpa", "reference", "absorbed"]
D_MODEL = 32
# Every width is another one, so that no two can be mistaken for each other.
WIDTHS = {"num_heads": 3, "kv_rank": 20, "nope_head_dim": 10, "rope_head_dim": 6, "value_head_dim": 7}


def model_of(variant: Variant = "direct", size: str = "1m", kv_rank: int | None = None) -> ModelConfig:
    return resolve_model(MlaSpec(architecture="mla", variant=variant, kv_rank=kv_rank), size)


def make_mixer(form: str, dtype: torch.dtype = torch.float64, **fields: int) -> LatentAttentionModule:
    config = LatentAttention.model_validate({"d_model": D_MODEL, **WIDTHS, **fields})
    torch.manual_seed(0)
    module = LatentAttentionModule(config, form, None)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    return module.to(dtype)


def inputs(length: int, batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, D_MODEL, dtype=torch.float64, generator=generator).to(dtype)


@settings(max_examples=30, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    query_rank=st.sampled_from([None, 11]),
    value_head_dim=st.sampled_from([7, 16, 21]),  # less than a key's width, equal, and more
    batch=st.integers(1, 4),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_every_cut_of_a_text_equals_the_reference_in_one_pass(
    form: str, query_rank: int | None, value_head_dim: int, batch: int, cuts: list[int]
) -> None:
    fields = {"query_rank": query_rank, "value_head_dim": value_head_dim}
    x = inputs(sum(cuts), batch)
    expected, cache = read_in_parts(make_mixer("reference", **fields), x, [sum(cuts)])
    found, streamed = read_in_parts(make_mixer(form, **fields), x, cuts)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(streamed["latents"], cache["latents"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-12), pytest.param(torch.float32, 1e-4, marks=pytest.mark.slow)]
)
def test_the_forms_agree_over_4096_tokens(dtype: torch.dtype, limit: float) -> None:
    """Resumed at odd tokens, with a decode step between two prompts and one at the end."""
    x = inputs(4096, dtype=dtype)
    expected, cache = read_in_parts(make_mixer("reference", dtype), x, [4096])
    for form in ("sdpa", "absorbed"):
        found, streamed = read_in_parts(make_mixer(form, dtype), x, [1023, 1, 3071, 1])
        assert relative_error(found, expected) < limit
        assert relative_error(streamed["latents"], cache["latents"]) < limit


@torch.no_grad()
def test_bfloat16_steps_err_at_most_twice_as_much_as_a_bfloat16_prompt() -> None:
    """Queries of latents are rounded once more; both are compared with the same weights and cache in float64."""
    depth, length = 8192, 8
    config = LatentAttention.at_size(find_size("25m"))
    generator = torch.Generator().manual_seed(0)
    cache = torch.randn(1, 1, depth, config.entry_width, generator=generator).bfloat16()
    x = torch.randn(1, length, config.d_model, generator=generator).bfloat16()
    module = config.build("sdpa", None)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.05, generator=generator)
    module.bfloat16()

    def output(dtype: torch.dtype, cut: int) -> Tensor:
        module.to(dtype)
        state = allocate_state(config.state, 1, depth + length, x.to(dtype), dtype)
        state.append("latents", cache.to(dtype), 0)
        parts = x.to(dtype).split(cut, dim=1)
        outs = [
            module(part, state, module.encoding()(depth + i * cut, cut, dtype))
            for i, part in enumerate(parts)
        ]
        return torch.cat(outs, dim=1).double()

    prompt, steps, exact = output(torch.bfloat16, length), output(torch.bfloat16, 1), output(torch.float64, 1)
    assert 0 < (steps - exact).norm() < 2 * (prompt - exact).norm()


def gradients(form: str, dtype: torch.dtype, length: int) -> list[Tensor]:
    """Those of the input and of every weight."""
    module, x = make_mixer(form, dtype, query_rank=11), inputs(length, 2, dtype).requires_grad_()
    module(x, None, module.encoding()(0, length, dtype)).square().sum().backward()
    return [one.grad for one in (x, *module.parameters()) if one.grad is not None]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("length", [2, 129])
@pytest.mark.parametrize("form", ["sdpa", "absorbed"])
def test_gradients_are_those_of_the_reference(
    form: str, length: int, dtype: torch.dtype, limit: float
) -> None:
    found, expected = (gradients(one, dtype, length) for one in (form, "reference"))
    assert len(found) == len(expected) == 1 + 7
    for mine, theirs in zip(found, expected, strict=True):
        assert relative_error(mine, theirs) < limit


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_decode_step_neither_copies_nor_expands_the_cache(form: str) -> None:
    """Its scores have 2 * 3 values per token, the cache has 26, and expanded keys and values have 69."""
    depth, module = 5000, make_mixer(form)
    x, encoding = inputs(1, batch=2), module.encoding()(5000, 1, torch.float64)
    state = allocate_state(module.config.state, 2, depth + 1, x, x.dtype)
    use = measure_memory(lambda: module(x, state, encoding), torch.device("cpu"))
    assert use.workspace_bytes < 0.3 * state.num_bytes


def deepseek(**fields: int) -> LatentAttention:
    """Latent attention in the sizes of DeepSeek-V2 (arXiv:2405.04434, Sec. 3.1.2)."""
    sizes = {"d_model": 5120, "num_heads": 128, "kv_rank": 512, "query_rank": 1536}
    return LatentAttention.model_validate(
        {**sizes, "nope_head_dim": 128, "rope_head_dim": 64, "value_head_dim": 128, **fields}
    )


def test_costs_of_deepseek_v2_are_those_of_its_paper() -> None:
    """A token has 576 cached values, "equal to GQA with only 2.25 groups" (Table 1)."""
    mixer = deepseek()
    products = mixer.streamed_params + mixer.local_params
    up_and_out = 512 * 128 * 256 + 128 * 128 * 5120
    assert products == 5120 * 1536 + 1536 * 128 * 192 + 5120 * 576 + up_and_out
    assert sum(one.num_bytes("bfloat16") for one in mixer.state) == 2 * 576 == 2.25 * 2 * 2 * 128
    assert mixer.decode_flops(9) == 2 * 10 * 128 * (576 + 512)


def test_a_size_has_the_proportions_of_deepseek_v2_lite() -> None:
    """Its width, heads and depth but for three layers are those of 1.3b."""
    usual = LatentAttention.at_size(find_size("1.3b"))
    assert usual == deepseek(d_model=2048, num_heads=16).model_copy(update={"query_rank": None})


@pytest.mark.parametrize("size", ["300k", "1m", "6m", "25m", "6.7b"])
def test_the_cache_is_smaller_than_that_of_multi_head_attention(size: str) -> None:
    shape = find_size(size)
    cached = sum(one.num_bytes("float32") for one in LatentAttention.at_size(shape).state)
    assert cached <= 0.75 * 2 * shape.d_model * 4 / 2


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [2, 3])
def test_decode_flops_are_those_that_torch_counts(variant: Variant, batch: int) -> None:
    """Less the sum of the rotated keys, which the product with whole entries computes and nothing reads."""
    config, mixer = model_of(variant), model_of(variant).mixer
    assert isinstance(mixer, LatentAttention)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="sdpa")
    state = model.init_state(batch, 65)
    state.start_at(64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(batch, 1, dtype=torch.int64), state)
    unread = batch * config.num_layers * 2 * mixer.num_heads * mixer.rope_head_dim * 65
    assert costs.decode_flops(config, batch, 64) == counter.get_total_flops() - unread


@pytest.mark.parametrize("form", ["reference", "absorbed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_and_training_flops_count_the_causal_half(form: str, variant: Variant) -> None:
    config, mixer, length = model_of(variant), model_of(variant).mixer, 96
    assert isinstance(mixer, LatentAttention)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=form)
    text = torch.zeros(2, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as prefill, torch.no_grad():
        model(text, last_only=True)
    with FlopCounterMode(display=False) as training:
        model(text).sum().backward()
    widths = (
        mixer.head_dim + mixer.value_head_dim if form == "reference" else mixer.kv_rank + mixer.entry_width
    )
    # The last layer of a prompt is a step, absorbed.
    half = mixer.num_heads * widths * length * (length - 1)
    unread = 2 * mixer.num_heads * mixer.rope_head_dim * length
    whole = unread * length if form == "absorbed" else 0
    counted = prefill.get_total_flops() - 2 * ((config.num_layers - 1) * (half + whole) + unread)
    assert costs.prefill_flops(config, 2, length, form, None) == counted
    counted = training.get_total_flops() - 2 * config.num_layers * 3 * (half + whole)
    assert costs.training_flops(config, 2, length, form, None) == counted


@pytest.mark.parametrize("length", [1024, 1500, 2060])
def test_latents_of_earlier_segments_are_expanded_again_and_counted(length: int) -> None:
    config, mixer = model_of("direct"), model_of("direct").mixer
    assert isinstance(mixer, LatentAttention)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="sdpa")
    expanded: list[int] = []
    product = model.mixers[0].key_up_proj
    product.register_forward_hook(lambda _module, inputs, _output: expanded.append(inputs[0].shape[1]))
    with torch.no_grad():
        model.prefill(torch.zeros(1, length, dtype=torch.int64), model.init_state(1, length))
    again = sum(expanded) - length
    assert again == {1024: 0, 1500: 1024, 2060: 1024 + 2048}[length]
    counted = mixer.prefill_flops(length, "sdpa", None, last_only=False)
    assert counted - mixer.training_flops(length, "sdpa", None) == 2 * mixer.up_params * again


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
@pytest.mark.usefixtures("narrow_products")
def test_the_workspace_of_a_decode_step_is_what_torch_holds(variant: Variant, dtype: str) -> None:
    """The tokens are few, and feed-forward and vocabulary are so small that the mixer counts."""
    for size in ("1m", "25m"):
        config = model_of(variant, size)
        ffn = config.blocks[0].ffn
        assert ffn is not None
        block = config.blocks[0].model_copy(update={"count": 1, "ffn": ffn.model_copy(update={"ffn_dim": 8})})
        config = config.model_copy(update={"blocks": (block,), "vocab_size": 256})
        model = build_model(config, dtype=getattr(torch, dtype), device="cpu", seed=0, backend="sdpa")
        state, tokens = model.init_state(24, 2), torch.zeros(24, 1, dtype=torch.int64)
        model(tokens, state)
        use = measure_memory(lambda: model(tokens, state), torch.device("cpu"))  # noqa: B023 (called at once)
        assert costs.decode_workspace_bytes(config, dtype, 24) == pytest.approx(use.workspace_bytes, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("query_rank", [None, 768])
def test_values_kept_for_gradients_are_those_that_torch_keeps(form: str, query_rank: int | None) -> None:
    config, length = LatentAttention.at_size(find_size("25m"), query_rank=query_rank), 256
    module, kept = config.build(form, None), {}
    weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(1, length, config.d_model, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x, None, module.encoding()(0, length, torch.float32))
        found = sum(kept.values()) / length / 4
    assert out.requires_grad
    values = config.kept_for_gradients(form)
    assert values.narrow + values.scores * config.num_heads * length == pytest.approx(found, rel=0.02)


def test_a_narrower_latent_makes_a_smaller_cache_and_a_wider_feed_forward() -> None:
    usual, narrow = model_of(), model_of(kv_rank=16)
    assert [one.num_bytes("float32") for one in narrow.mixer.state] == [4 * (16 + 32)]
    assert usual.ffn is not None
    assert narrow.ffn is not None
    assert narrow.ffn.ffn_dim > usual.ffn.ffn_dim


def test_a_hybrid_takes_it_with_its_own_fields() -> None:
    pattern = ("retention", {"mixer": "latent_attention", "kv_rank": 24})
    config = resolve_model(HybridSpec(pattern=pattern), "1m")
    model = build_model(config, dtype=torch.float64, device="cpu", seed=0, backend="chunkwise+sdpa")
    text = torch.randint(0, 256, (1, 131), generator=torch.Generator().manual_seed(0))
    assert check_equivalence(model, text, depth=131, lengths=(17, 61)).passed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 0}, "'num_heads' is 0"),
        ({"num_heads": "many"}, "'num_heads' is 'many'"),
        ({"rope_head_dim": 7}, "'rope_head_dim' is 7"),
        ({"kv_rank": 0}, "'kv_rank' is 0"),
        ({"latent": 3}, "'latent' is 3"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_model(HybridSpec(pattern=({"mixer": "latent_attention", **fields},)), "1m")


def test_a_published_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="published"):
        resolve_model(MlaSpec(architecture="mla", ffn_dim="published"), "1m")
