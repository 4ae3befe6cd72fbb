"""Linear attention against its formula with every sum written out, and the linear Transformer as a model."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.linear import LinearSpec
from retbench.architectures.matching import resolve_model
from retbench.errors import ConfigError
from retbench.mixers.linear_attention.config import FeatureMap, LinearAttention
from retbench.mixers.linear_attention.features import Elu, Performer, Taylor, draw_orthogonal_rows
from retbench.mixers.linear_attention.module import LinearAttentionModule
from retbench.mixers.state import allocate_state
from retbench.models.build import build_model
from retbench.ops import kernels
from retbench.ops.linear_operator import linear_recurrent
from retbench.ops.position import Positions
from tests.mixers.conftest import read_in_parts

D_MODEL, HEADS = 24, 3
VARIANTS: list[FeatureMap] = ["elu", "identity", "performer", "taylor"]
FORMS = ["parallel", "chunkwise", "recurrent"]


def model_of(variant: FeatureMap, size: str = "1m") -> ModelConfig:
    return resolve_model(LinearSpec(architecture="linear", variant=variant), size)


def make_mixer(variant: FeatureMap, form: str) -> LinearAttentionModule:
    config = LinearAttention(d_model=D_MODEL, num_heads=HEADS, feature_map=variant)
    torch.manual_seed(0)
    module = LinearAttentionModule(config, form, 4).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return module


def score(module: LinearAttentionModule, query: Tensor, keys: Tensor) -> Tensor:
    """Weights of keys (T, W) for one query (W,)."""
    width = len(query)
    match module.config.feature_map:
        case "elu":
            return (F.elu(keys) + 1) @ (F.elu(query) + 1)
        case "identity":
            return keys @ query * width**-0.5
        case "taylor":  # arXiv:2402.18668: exp(s) to the second order
            s = keys @ query * width**-0.5
            return 1 + s + s**2 / 2
        case "performer":  # arXiv:2009.14794, Lemma 1; the query's maximum cancels but for the epsilon
            rows = draw_orthogonal_rows(module.config.head_dim, width)
            query, keys = query / width**0.25, keys / width**0.25
            of_query = rows @ query - query.dot(query) / 2
            of_keys = keys @ rows.T - (keys**2).sum(-1, keepdim=True) / 2
            return of_keys.exp() @ ((of_query - of_query.max()).exp() + 1e-4)


def plain(module: LinearAttentionModule, x: Tensor) -> Tensor:
    """Equation 7 of arXiv:2006.16236 with every sum written out, or its form without division."""
    config = module.config
    q, k, v = (
        part.view(x.shape[1], HEADS, -1).transpose(0, 1)
        for part in F.linear(x[0], module.qkv_proj.weight).chunk(3, dim=-1)
    )
    rows = []
    for i in range(x.shape[1]):
        heads = []
        for head in range(HEADS):
            weights = score(module, q[head, i], k[head, : i + 1])
            out = weights @ v[head, : i + 1]
            if config.feature_map == "identity":
                (weight,) = module.head_norm.parameters()
                out = F.rms_norm(out, (config.value_head_dim,), weight, config.norm_eps)
            else:
                out = out / (weights.sum() + (0 if config.feature_map == "performer" else config.norm_eps))
            heads.append(out)
        rows.append(torch.cat(heads))
    return F.linear(torch.stack(rows)[None], module.out_proj.weight)


@settings(max_examples=30, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    form=st.sampled_from(FORMS),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_every_cut_of_a_text_equals_the_formula(variant: FeatureMap, form: str, cuts: list[int]) -> None:
    module = make_mixer(variant, form)
    x = torch.randn(1, sum(cuts), D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, _ = read_in_parts(module, x, cuts)
    torch.testing.assert_close(found, plain(module, x), rtol=1e-8, atol=1e-10)


def test_weights_of_the_normalised_form_sum_to_one() -> None:
    """Equal values come out as they went in, whatever queries and keys are."""
    module = make_mixer("elu", "chunkwise")
    module.qkv_proj.weight.data[2 * D_MODEL :] = 0
    module.qkv_proj.weight.data[2 * D_MODEL :, 0] = 1
    x = torch.randn(1, 50, D_MODEL, dtype=torch.float64)
    x[..., 0] = 3
    with torch.no_grad():
        out = module(x, None, Positions(0, x.shape[1]))
    expected = F.linear(torch.full((D_MODEL,), 3.0, dtype=torch.float64), module.out_proj.weight)
    torch.testing.assert_close(out, expected.expand_as(out), rtol=1e-5, atol=1e-5)


def estimated(performer: Performer, keys: Tensor) -> Tensor:
    """Features (T, K) of keys (T, W) from which no maximum is subtracted."""
    features, log_decay, state = performer.of_keys(keys[None, :, None])
    later = log_decay.sum(1, keepdim=True) - log_decay.cumsum(1)  # the decays behind each token
    return (features * (later + state[:, :1]).exp()[..., None])[0, :, 0]


def test_random_features_estimate_the_weights_of_softmax() -> None:
    x = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x / x.norm(dim=-1, keepdim=True)  # the estimate of a long vector takes many more features
    features = estimated(Performer(8, 4096).double(), x)
    torch.testing.assert_close(features @ features.T / 4096, (x @ x.T / 8**0.5).exp(), rtol=0.15, atol=0)


def test_long_keys_keep_their_random_features_apart() -> None:
    """With keys of a root mean square of 3, weights in float32 are those of exact features; see `Performer`."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(256, 64, dtype=torch.float64, generator=generator) for _ in range(2))
    keys *= 3
    features = Performer(64, 266)
    found = features.of_queries(queries.float()[None, :, None])[0, :, 0] @ estimated(features, keys.float()).T
    rows = draw_orthogonal_rows(266, 64)
    exponents = [x @ rows.T * 64**-0.25 - (x**2).sum(-1, keepdim=True) / 16 for x in (queries, keys)]
    exact = (exponents[0][:, None] + exponents[1][None]).logsumexp(-1).softmax(-1)
    error = (found.double() / found.double().sum(-1, keepdim=True) - exact).norm() / exact.norm()
    assert error < 0.2  # with 1e-4 added to the features of keys, 0.9


def test_random_rows_are_orthogonal_and_the_same_everywhere() -> None:
    rows = draw_orthogonal_rows(5, 3)
    first, second = rows[:3] @ rows[:3].T, rows[3:] @ rows[3:].T
    for products in (first, second):
        torch.testing.assert_close(products, products.diag().diag())
    assert rows[0, 0].item() == pytest.approx(1.5904607554924992, rel=1e-12)


def test_performers_weights_of_long_keys_sum_to_one_too() -> None:
    """They are exp of minus half the square of a key: of the first token alone the output is its value."""
    module = make_mixer("performer", "parallel")
    x = 2 * torch.randn(1, 1, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    keys, value = module.qkv_proj(x).split([2 * module.config.key_dim, D_MODEL], dim=-1)
    assert 2 < keys.std() < 5
    torch.testing.assert_close(module(x, None, Positions(0, 1)), module.out_proj(value), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
@settings(max_examples=15, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_performers_keys_of_any_length_give_the_weights_of_their_exact_features(
    scale: float, form: str, cuts: list[int], seed: int
) -> None:
    """A feature of the longest keys is exp of minus many thousands, which is 0 in any dtype."""
    module = make_mixer("performer", form)
    module.qkv_proj.weight.data[D_MODEL : 2 * D_MODEL] *= scale
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, sum(cuts), D_MODEL, dtype=torch.float64, generator=generator)
    found, _ = read_in_parts(module, x, cuts)

    q, k, v = (one.view(1, -1, HEADS, D_MODEL // HEADS) for one in module.qkv_proj(x).chunk(3, dim=-1))
    rows = draw_orthogonal_rows(module.config.head_dim, q.shape[-1])
    keys = k / k.shape[-1] ** 0.25
    exponents = keys @ rows.T - keys.square().sum(-1, keepdim=True) / 2
    of_queries = module.feature_map.of_queries(q).log()
    pairs = (of_queries[:, :, None] + exponents[:, None]).logsumexp(-1)  # (1, T, T, H)
    seen = torch.ones(pairs.shape[1:3], dtype=torch.bool).tril()[None, :, :, None]
    weights = pairs.masked_fill(~seen, -torch.inf).softmax(2)
    expected = module.out_proj(torch.einsum("btsh,bshv->bthv", weights, v).flatten(2))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_performers_state_has_the_largest_exponent_of_its_keys() -> None:
    """Its features then are at most 1, also of heads so wide that exp of a key's exponent is no number in float32."""
    performer = Performer(256, 300)
    aligned = performer.rows.value[:1] * 256**0.5  # of all keys that with the largest exponent, half of |w|^2
    keys = torch.cat([torch.zeros(1, 256), aligned, torch.zeros(1, 256)])[None, :, None]
    features, log_decay, state = performer.of_keys(keys)
    assert features.max() == 1
    assert state[0, 0, 0] > 88  # exp of it is inf
    assert log_decay[0, :, 0].tolist() == [0, -state[0, 0, 0].item(), 0]


class Written(TorchDispatchMode):
    """Counts the operators that write tensors of a shape in place, by name."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape = shape
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.endswith("_") and args[0].shape == self.shape:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("variant", "decays"), [("elu", 0), ("identity", 0), ("taylor", 0), ("performer", 1)]
)
def test_a_step_writes_the_state_once_and_once_more_where_it_decays(variant: FeatureMap, decays: int) -> None:
    module, x = make_mixer(variant, "recurrent"), torch.randn(1, 1, D_MODEL, dtype=torch.float64)
    state = allocate_state(module.config.state, 1, 0, x, x.dtype)
    with torch.no_grad(), Written(state["values"].shape) as written:
        module(x, state, Positions(0, 1))
    assert written.counts == Counter(addcmul_=1, mul_=decays)


def test_the_kernel_gets_a_decay_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of no effect: it takes no other call."""

    def kernel(*tensors: Any) -> tuple[Tensor, Tensor]:
        assert tensors[3].shape == (HEADS,)
        return linear_recurrent(*tensors)

    monkeypatch.setattr(kernels, "retention_fla", kernel)
    x = torch.randn(2, 7, D_MODEL, dtype=torch.float64)
    outs = [make_mixer("identity", form)(x, None, Positions(0, 7)) for form in ("fla", "recurrent")]
    torch.testing.assert_close(*outs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_flops_leave_out_gradients_of_random_rows(checkpointing: bool) -> None:
    """They are those that torch counts, less the update of a state that nothing reads."""
    config, length = model_of("performer", "100k"), 64
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise", chunk_size=64)
    model.activation_checkpointing = checkpointing
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, length, dtype=torch.int64)).sum().backward()
    mixer = config.mixer
    assert isinstance(mixer, LinearAttention)
    heads = 2 * config.num_layers * mixer.num_heads
    unread = (2 if checkpointing else 1) * heads * 2 * length * mixer.head_dim * mixer.value_head_dim
    expected = costs.training_flops(config, 2, length, "chunkwise", 64, recomputed=checkpointing)
    assert counter.get_total_flops() - unread == expected


def test_the_taylor_map_has_the_width_that_is_published() -> None:
    """273 features of keys 16 wide (arXiv:2402.18668), whatever the width of the model."""
    config = model_of("taylor", "1.3b").mixer
    assert isinstance(config, LinearAttention)
    assert (config.head_dim, config.key_dim) == (273, 16 * config.num_heads)
    assert Taylor().of_keys(torch.zeros(2, 16)).shape == (2, 273)


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


def test_a_published_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="published"):
        resolve_model(LinearSpec(architecture="linear", ffn_dim="published"), "1m")


def test_the_features_of_elu_and_their_gradients_are_those_of_elu_plus_one() -> None:
    found = torch.linspace(-40, 40, 81, dtype=torch.float64, requires_grad=True)  # with zero
    expected = found.detach().clone().requires_grad_()
    features, published = Elu().of_queries(found), F.elu(expected) + 1
    features.sum().backward()
    published.sum().backward()
    torch.testing.assert_close(features, published, rtol=0, atol=1e-15)
    torch.testing.assert_close(found.grad, expected.grad)
    assert features.min() > 0
