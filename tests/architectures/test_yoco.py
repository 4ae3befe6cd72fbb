"""YOCO: one key-value cache for the upper half, prompts that leave early, and its costs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from architectures.recorded_models import info_of
from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig, parse_model_config, reading_backend
from retbench.architectures.hybrid import HybridSpec
from retbench.architectures.matching import resolve_model
from retbench.architectures.recorded import unusual_settings
from retbench.architectures.sizes import find_size
from retbench.architectures.transformer import TransformerSpec
from retbench.architectures.yoco import YocoSpec
from retbench.config.experiment_files import load_experiment
from retbench.errors import ConfigError
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.models.equivalence import check_equivalence, relative_error
from retbench.ops.linear import RowProducts
from retbench.workloads.states import fill_caches

VARIANTS = ("gated", "sw")
BACKENDS = {"gated": "chunkwise+sdpa", "sw": "blocks+sdpa"}
KINDS = {"gated": "retention", "sw": "window_attention"}
TEXT = torch.randint(0, 256, (4, 301), generator=torch.Generator().manual_seed(0))


def config_of(variant: str, size: str = "3m", **fields: object) -> ModelConfig:
    """Return a model of three lower layers, the layer that writes the cache, and two that read it."""
    window = {"window": 16} if variant == "sw" else {}
    spec = YocoSpec.model_validate({"architecture": "yoco", "variant": variant, **window, **fields})
    return resolve_model(spec, size)


def build(variant: str, dtype: torch.dtype = torch.float32, backend: str | None = None) -> Decoder:
    return build_model(
        config_of(variant, num_kv_heads=2),
        dtype=dtype,
        device="cpu",
        seed=0,
        backend=backend or BACKENDS[variant],
    )


@pytest.mark.parametrize(("size", "lower"), [("3m", 3), ("1m", 2), ("300k", 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_upper_half_shares_the_cache_of_its_first_layer(variant: str, size: str, lower: int) -> None:
    config, num_layers = config_of(variant, size), find_size(size).num_layers
    kinds = [layer.mixer.mixer for layer in config.layers]
    assert kinds == [KINDS[variant]] * lower + ["attention"] + ["shared_attention"] * (num_layers - lower - 1)
    assert config.state_layers == (*range(lower + 1), *[lower] * (num_layers - lower - 1))
    assert config.last_stateful == lower
    assert parse_model_config(config.model_dump()) == config


def test_the_3b_model_has_the_parameters_that_are_printed() -> None:
    """2.83B without embeddings (arXiv:2405.05254, Table 7)."""
    config = config_of("gated", "yoco-3b", ffn_dim=8192, num_kv_heads=8)
    assert costs.num_params_nonembedding(config) / 1e9 == pytest.approx(2.83, abs=0.005)
    assert config_of("gated", "yoco-160m", ffn_dim="published").ffn.ffn_dim == 3 * 768  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reader_that_misses_a_key_is_found_by_the_equivalence_check(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retbench.mixers.shared_attention import module

    honest = module.attend

    def short(mixer, q, k, v, phase, *, fused):  # type: ignore[no-untyped-def]
        cut = k.shape[2] - 1 if phase == "decode" else k.shape[2]
        return honest(mixer, q, k[:, :, :cut], v[:, :, :cut], phase, fused=fused)

    monkeypatch.setattr(module, "attend", short)
    gate = check_equivalence(build("gated", dtype), TEXT[:1], depth=150, lengths=(17, 127))
    assert {check.name for check in gate.checks if not check.passed} == {"decode = chunkwise+sdpa"}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_an_early_exit_from_any_segments_is_the_whole_pass(
    variant: str, batch: int, dtype: torch.dtype, limit: float
) -> None:
    model, text = build(variant, dtype), TEXT[:batch, :143]
    expected = model(text)
    assert relative_error(model(text, last_only=True), expected[:, -1:]) < limit
    for segment_len in (7, 61, 1024):
        state = model.init_state(batch, 143)
        logits = [model.prefill(text[:, :131], state, segment_len=segment_len)]
        logits += [model(text[:, t : t + 1], state) for t in range(131, 137)]
        logits += [model(text[:, 137:], state)]
        assert relative_error(torch.cat(logits, dim=1), expected[:, 130:]) < limit


@torch.no_grad()
def test_a_prompt_leaves_before_the_layers_that_read_the_cache() -> None:
    """They see the last token only, once, and the cache holds what a pass over all tokens leaves."""
    model, seen = build("gated", torch.float64), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append((args[0].shape[1], out.shape[1])))
    state = model.init_state(1, 100)
    model.prefill(TEXT[:1, :100], state, segment_len=40)
    lower, reader = (40, 40), (1, 1)
    assert seen == [lower, lower, lower, (40, 1)] * 2 + [(20, 20)] * 3 + [(20, 1), reader, reader]
    whole = model.init_state(1, 100)
    model(TEXT[:1, :100], whole)
    for name, tensor in whole.tensors().items():
        assert relative_error(state.tensors()[name], tensor) < 1e-12, name


@torch.no_grad()
def test_reordered_and_gathered_sequences_go_on_as_their_own() -> None:
    model, order = build("gated", torch.float64), torch.tensor([2, 0, 0])
    alone = model(TEXT[[2, 0, 0], :41])
    state = model.init_state(3, 60)
    model.prefill(TEXT[:3, :40], state)
    gathered = state.gather(torch.tensor([2, 0, 0, 1]), 50)
    state.reorder(order)
    new = TEXT[[2, 0, 0], 40:41]
    assert relative_error(model(new, state), alone[:, -1:]) < 1e-12
    assert relative_error(model(TEXT[[2, 0, 0, 1], 40:41], gathered)[:3], alone[:, -1:]) < 1e-12


def test_gradients_of_all_readers_meet_in_the_shared_keys_and_values() -> None:
    """A pass with a state of its own and one without give the same gradients of the layer that writes the cache."""
    found = []
    for with_state in (True, False):
        model = build("gated", torch.float64)
        state = model.init_state(2, 50) if with_state else None
        model(TEXT[:2, :50], state).logsumexp(-1).sum().backward()
        weight = model.mixers[3].get_parameter("qkv_proj.weight").grad
        assert weight is not None
        found.append(weight)
    assert relative_error(*found) < 1e-12


def test_training_under_autocast_keeps_one_dtype_for_queries_and_shared_keys() -> None:
    model = build("gated")
    with torch.autocast("cpu", torch.bfloat16):
        model(TEXT[:1, :33]).float().logsumexp(-1).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_state_grows_by_the_keys_and_values_of_one_layer(variant: str) -> None:
    config = config_of(variant, num_kv_heads=2)
    grown = [costs.state_bytes(config, "bfloat16", 3, capacity) for capacity in (8192, 8193)]
    assert grown[1] - grown[0] == 3 * 2 * 2 * config.mixers[1].head_dim * 2


def test_a_step_reads_the_shared_cache_in_every_upper_layer_and_holds_it_once() -> None:
    """Its growth with the context is three layers' keys and values read, and one layer's held."""
    config = config_of("gated")
    entry = 2 * config.d_model * 4
    near, far = (costs.decode_traffic(config, "float32", 2, depth) for depth in (1000, 1001))
    assert far.caches - near.caches == 2 * entry
    assert far.shared - near.shared == 2 * 2 * entry
    assert far.footprint - near.footprint == 2 * entry
    assert costs.decode_bytes(config, "float32", 2, 1001) - sum(near) == 2 * 3 * entry


def count_flops(model: Decoder, length: int, **options: bool) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, length, dtype=torch.int64), **options)
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [128, 512])
def test_prefill_flops_equal_what_torch_counts(length: int) -> None:
    """Less one read of a zero state in the lower layers, whose first chunk has none."""
    model = build_model(
        config_of("gated"),
        dtype=torch.float32,
        device="cpu",
        seed=0,
        backend="chunkwise+reference",
        chunk_size=64,
    )
    model.set_row_products(RowProducts())  # torch counts its own products only, and which is faster is chance
    mixer = model.config.mixer
    unread = 2 * 2 * 3 * mixer.num_heads * 64 * mixer.head_dim**2
    expected = costs.prefill_flops(model.config, 2, length, model.backend, 64)
    assert expected == count_flops(model, length, last_only=True) + unread


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prompt_costs_the_lower_half_and_one_token_of_the_upper_half(variant: str) -> None:
    """Each token more costs the lower layers' work, keys and values, and one score per upper layer."""
    config = config_of(variant)
    first, second, third = (
        costs.prefill_flops(config, 1, length, BACKENDS[variant], None) for length in (4096, 8192, 12288)
    )
    assert third - second == second - first  # no square of the length
    lower = next(config.layers)
    products = (
        lower.mixer.streamed_params + lower.mixer.local_params + (lower.ffn.num_params if lower.ffn else 0)
    )
    keys = 2 * config.d_model**2
    assert (second - first) / 4096 < 1.6 * 2 * (3 * products + keys)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_flops_equal_what_torch_counts(variant: str) -> None:
    """Less the half of the square that a causal mask leaves out, and the update of a state that nothing reads.

    The fused attention of the windows is left out of torch's count, which some versions of it know.
    """
    backend = {"gated": "chunkwise+reference", "sw": "reference"}[variant]
    model = build_model(
        config_of(variant), dtype=torch.float32, device="cpu", seed=0, backend=backend, chunk_size=64
    )
    config, length = model.config, 96
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, length, dtype=torch.int64)).sum().backward()
    fused = {op: num for op, num in counter.get_flop_counts()["Global"].items() if "dot_product" in str(op)}
    counted, square = counter.get_total_flops() - sum(fused.values()), 3 * 2 * 2 * config.d_model
    counted -= 3 * square * length * (length - 1)  # upper layers
    if variant == "gated":
        counted -= 2 * 3 * config.mixer.num_heads * 2 * 32 * config.mixer.head_dim**2
    else:
        pairs = sum(min(16, row + 1) for row in range(length))
        counted += 3 * square * 2 * pairs
    assert costs.training_flops(config, 2, length, backend, 64) == counted


def test_a_filled_state_is_one_cache_and_real_states() -> None:
    model = build("gated")
    state = model.init_state(2, 40)
    fill_caches(model, state, 30, seed=0)
    filled = [sorted(layer.tensors) for layer in state.layers]
    assert filled == [["values"]] * 3 + [["keys", "values"], [], []]
    assert state.layers[3]["keys"][:, :, :30].std() > 0
    assert not state.layers[3]["keys"][:, :, 30:].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 8}, "window has no effect on variant 'gated'"),
        ({"variant": "sw", "chunk_size": 64}, "chunk_size has no effect on variant 'sw'"),
        ({"variant": "swa"}, "'gated' or 'sw'"),
        ({"num_kv_heads": 3}, "num_kv_heads is 3, which does not divide"),
    ],
)
def test_a_field_without_effect_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        resolve_model(YocoSpec.model_validate({"architecture": "yoco", **fields}), "1m")


@pytest.mark.parametrize(
    ("variant", "backend", "chunk_size", "unusual"),
    [
        ("gated", "chunkwise+sdpa", 128, []),
        ("gated", "recurrent+sdpa", 64, ["backend recurrent+sdpa", "chunk size 64"]),
        ("sw", "blocks+sdpa", None, ["sliding-window lower half"]),
        ("gated", 7, 128, []),  # of a damaged record
    ],
)
def test_a_label_states_what_differs_from_the_default(
    variant: str, backend: str | int, chunk_size: int | None, unusual: list[str]
) -> None:
    settings = {"backend": backend, "chunk_size": chunk_size}
    assert unusual_settings(info_of(config_of(variant)), settings) == unusual


def test_a_pattern_may_share_the_cache_of_the_nearest_earlier_layer() -> None:
    """Each layer of attention writes a cache, and the layer above it reads that one."""
    spec = HybridSpec(pattern=("attention", "shared_attention"))
    config = resolve_model(spec, "3m")
    assert config.state_layers == (0, 0, 2, 2, 4, 4)
    model = build_model(config, dtype=torch.float64, device="cpu", seed=0, backend=spec.backend)
    gate = check_equivalence(model, TEXT[:1], depth=301, lengths=(1, 17, 127))
    assert gate.passed
    transformer = resolve_model(TransformerSpec(architecture="transformer"), "3m")
    assert model.init_state(1, 64).num_bytes == costs.state_bytes(transformer, "float64", 1, 64) // 2


@pytest.mark.parametrize(
    "pattern",
    [
        ("shared_attention", "attention"),
        ("attention", {"mixer": "shared_attention", "num_kv_heads": 1}),
        ({"mixer": "attention", "cache": "concat"}, "shared_attention"),
    ],
)
def test_a_layer_that_finds_no_cache_of_its_sizes_is_refused(pattern: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError, match=r"layer \d, shared attention, reads the state of an earlier layer"):
        resolve_model(HybridSpec.model_validate({"pattern": pattern}), "3m")


def test_an_experiment_names_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "kin.toml"
    path.write_text(
        'title = "t"\nsource = "none"\nexpect = "It runs."\n[models.yoco]\narchitecture = "yoco"\nvariant = "sw"\n'
        '[profiles.smoke]\nsize = "1m"\n[profiles.smoke.workloads.decode]\ncontext_len = [64]\n',
        encoding="utf-8",
    )
    spec = load_experiment(str(path)).models["yoco"]
    assert spec.backend == "auto"
    assert reading_backend(resolve_model(spec, "1m"), spec.backend) == "blocks+sdpa"
