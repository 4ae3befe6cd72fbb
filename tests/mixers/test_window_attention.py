"""Window attention against scores under a plain mask, and the sliding-window Transformer as a model."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import resolve_model
from retbench.architectures.sliding_window import SlidingWindowSpec
from retbench.errors import ConfigError
from retbench.mixers.state import allocate_state
from retbench.mixers.window_attention.config import WindowAttention
from retbench.mixers.window_attention.module import WindowAttentionModule
from retbench.models.equivalence import relative_error
from retbench.ops.position import Positions, Rotary, rotate
from tests.mixers.conftest import read_in_parts

D_MODEL, HEADS = 32, 4


def model_of(window: int, sinks: int, size: str = "1m", num_kv_heads: int | None = None) -> ModelConfig:
    spec = SlidingWindowSpec(
        architecture="sliding_window", window=window, sinks=sinks, num_kv_heads=num_kv_heads
    )
    return resolve_model(spec, size)


def make_mixer(window: int, sinks: int, form: str = "blocks", kv_heads: int = 2) -> WindowAttentionModule:
    config = WindowAttention(
        d_model=D_MODEL, num_heads=HEADS, num_kv_heads=kv_heads, window=window, sinks=sinks
    )
    torch.manual_seed(0)
    module = WindowAttentionModule(config, form, None).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return module


def positions_of(module: WindowAttentionModule, start: int, length: int) -> Positions:
    return module.encoding()(start, length, torch.float64)


def plain(module: WindowAttentionModule, x: Tensor) -> Tensor:
    """One query at a time over a list of the keys that it may see, written out from the definition."""
    config = module.config
    length, kv = x.shape[1], config.kv_width
    q, k, v = F.linear(x, module.qkv_proj.weight).split([config.d_model, kv, kv], dim=-1)
    q, k, v = (part.view(1, length, -1, config.head_dim) for part in (q, k, v))
    where = positions_of(module, 0, length)
    q, k = rotate(q, where, "half"), rotate(k, where, "half")
    rows = []
    for i in range(length):
        seen = [j for j in range(i + 1) if i - j < config.window or j < config.sinks]
        heads = []
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.num_kv_heads)
            scores = k[0, seen, shared] @ q[0, i, head] / config.head_dim**0.5
            heads.append(scores.softmax(0) @ v[0, seen, shared])
        rows.append(torch.cat(heads))
    return F.linear(torch.stack(rows)[None], module.out_proj.weight)


@settings(max_examples=30, deadline=None)
@given(
    window=st.integers(1, 12),
    sinks=st.integers(0, 5),
    form=st.sampled_from(["blocks", "products", "reference"]),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_every_cut_of_a_text_equals_the_plain_mask(
    window: int, sinks: int, form: str, cuts: list[int]
) -> None:
    """A cut of one token is a decode step on the ring buffer; a longer one meets a cache that may have wrapped."""
    module = make_mixer(window, sinks, form)
    x = torch.randn(1, sum(cuts), D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, _ = read_in_parts(module, x, cuts)
    torch.testing.assert_close(found, plain(module, x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", ["blocks", "reference"])
def test_a_query_sees_its_window_and_not_one_key_more(form: str) -> None:
    """The key that leaves the window changes nothing; the last one inside it does."""
    window, sinks, last = 5, 2, 20
    module = make_mixer(window, sinks, form)
    x = torch.randn(1, last + 1, D_MODEL, dtype=torch.float64)
    where = positions_of(module, 0, last + 1)
    with torch.no_grad():
        before = module(x, None, where)[:, last]
        changed = []
        for j in range(last + 1):
            other = x.clone()
            other[:, j] += 1
            if not torch.equal(module(other, None, where)[:, last], before):
                changed.append(j)
    assert changed == [0, 1, *range(last - window + 1, last + 1)]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("window", "sinks"), [(300, 4), (1025, 0)])
@torch.no_grad()
def test_the_forms_agree_over_4096_tokens(window: int, sinks: int, dtype: torch.dtype, limit: float) -> None:
    """Resumed at odd tokens, where the ring has wrapped and where it has not, with decode steps between."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4096, D_MODEL, dtype=torch.float64, generator=generator).to(dtype)
    expected = make_mixer(window, sinks, "reference").to(dtype)(x, None, Rotary(8, "half")(0, 4096, dtype))
    found, _ = read_in_parts(make_mixer(window, sinks).to(dtype), x, [201, 1, 1821, 1, 2071, 1])
    assert relative_error(found, expected) < limit


@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (7, 2), (300, 4)])
def test_gradients_are_those_of_the_reference(window: int, sinks: int) -> None:
    found = []
    for form in ("blocks", "reference"):
        module = make_mixer(window, sinks, form)
        x = torch.randn(2, 301, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        module(x.requires_grad_(), None, positions_of(module, 0, 301)).square().sum().backward()
        found.append([x.grad, *(weight.grad for weight in module.parameters())])
    for mine, theirs in zip(*found, strict=True):
        assert relative_error(mine, theirs) < 1e-12


def test_a_window_as_long_as_the_text_is_full_attention() -> None:
    module = make_mixer(64, 0)
    x = torch.randn(1, 64, D_MODEL, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(x, None, positions_of(module, 0, 64)), plain(module, x))
    assert model_of(4096, 0).mixer.training_flops(64, "blocks", None) == 4 * 128 * 64 * 65 // 2


def test_the_state_grows_until_window_and_sinks_are_full() -> None:
    full, later = (costs.state_bytes(model_of(16, 4), "bfloat16", 1, depth) for depth in (20, 32768))
    assert costs.state_bytes(model_of(16, 4), "bfloat16", 1, 19) < full == later


@pytest.mark.parametrize("sinks", [3, 20])
def test_a_slot_at_any_position_is_an_index_that_a_compiler_for_a_gpu_takes(sinks: int) -> None:
    """Inductor sets every symbol of an index to 0, to see how large its constant is."""
    shapes, source = ShapeEnv(), ConstantSource("position")
    symbol = shapes.create_symbol(45, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    slot: Any = make_mixer(16, sinks)._slot(shapes.create_symintnode(symbol, hint=45, source=source))
    index = slot.node.expr
    assert index.free_symbols == {symbol}
    assert [index.subs({symbol: position}) for position in (0, 45)] == [
        sinks + -sinks % 16,
        sinks + (45 - sinks) % 16,
    ]


@given(window=st.integers(1, 20), sinks=st.integers(0, 6), length=st.integers(1, 60))
def test_operations_count_the_keys_that_are_seen(window: int, sinks: int, length: int) -> None:
    config = WindowAttention(d_model=D_MODEL, num_heads=HEADS, num_kv_heads=2, window=window, sinks=sinks)
    seen = [sum(i - j < window or j < sinks for j in range(i + 1)) for i in range(length)]
    assert [config.num_visible(i) for i in range(length)] == seen
    assert config.training_flops(length, "blocks", None) == 4 * D_MODEL * sum(seen)
    assert config.prefill_flops(length, "blocks", None, last_only=True) == 4 * D_MODEL * seen[-1]


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_kv_heads"):
        model_of(16, 4, num_kv_heads=3)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_it_records_the_kernels_that_ran(kv_heads: int) -> None:
    module = make_mixer(5, 2, kv_heads=kv_heads)
    x = torch.randn(1, 20, D_MODEL, dtype=torch.float64)
    state = allocate_state(module.config.state, 1, 22, x, torch.float64)
    with torch.no_grad():
        module(x, state, positions_of(module, 0, 20))
        module(x[:, :1], state, positions_of(module, 20, 1))
    assert {phase: name.split(":")[0] for phase, name in module.executed.items()} == {
        "prefill": "blocks",
        "decode": "ring",
    }
    assert {name.split(":")[1] for name in module.executed.values()} <= {"flash", "math"}
    module.set_backend("products")
    with torch.no_grad():
        module(x[:, :1], state, positions_of(module, 21, 1))
    assert module.executed == {"decode": "ring:products"}
    module.set_backend("reference")
    module(x, None, positions_of(module, 0, 20))
    assert module.executed == {"prefill": "reference"}


@pytest.mark.parametrize("takes_repeated", [True, False])
def test_shared_keys_are_repeated_where_torch_would_hold_every_score(
    monkeypatch: pytest.MonkeyPatch, takes_repeated: bool
) -> None:
    """On CUDA the kernel that takes a mask takes no shared keys."""

    def choose(q: Tensor, k: Tensor, v: Tensor, *_: object, enable_gqa: bool) -> int:
        assert enable_gqa == (k.shape[1] < q.shape[1])
        return 0 if enable_gqa or not takes_repeated else 2

    seen = []
    scaled_dot_product_attention = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        seen.append((k.shape[1], options["enable_gqa"]))
        return scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "_fused_sdp_choice", choose)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    module = make_mixer(300, 2, kv_heads=2)
    x = torch.randn(1, 600, D_MODEL, dtype=torch.float64)
    with torch.no_grad():
        out = module(x, None, positions_of(module, 0, 600))
        assert module.executed == {"prefill": "blocks:efficient" if takes_repeated else "blocks:math"}
        assert set(seen) == {(4, False) if takes_repeated else (2, True)}
        torch.testing.assert_close(out, plain(module, x), rtol=1e-9, atol=1e-11)
