"""Fused operators against their eager counterparts, under Triton's interpreter.

`test_fused` runs this file in a process of its own, since Triton reads TRITON_INTERPRET when it is imported.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench.mixers.linear_attention.features import Elu, Taylor
from retbench.mixers.mamba2.module import GatedNorm
from retbench.ops import fused, fused_linear
from retbench.ops.convolution import empty_weight, short_convolution_step_
from retbench.ops.decay import gated_log_decay
from retbench.ops.layers import RMSNorm, make_head_norm, make_norm
from retbench.ops.linear_operator import Readout, linear_decayed_step_, linear_recurrent
from retbench.ops.position import Positions, Rotary, rotate

LIMITS = {torch.float32: (0.0, 1e-4), torch.bfloat16: (2**-6, 1e-5)}
"""Relative and absolute bound by dtype. The interpreter truncates to bfloat16, by up to 2^-7, where a GPU rounds; the
eager operators round twice, by up to 2^-8 each."""

LAYOUTS = st.sampled_from(["half", "interleaved"])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
few = settings(max_examples=12)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def positions_of(head_dim, layout, position, dtype):
    return Rotary(head_dim, layout)(position, 1, dtype)


def close(found, expected, dtype):
    rtol, atol = LIMITS[dtype]
    if dtype == torch.float32:
        atol *= max(1.0, float(expected.square().mean().sqrt()))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@given(
    batch=st.integers(1, 4),
    heads=st.sampled_from([(1, 1), (3, 3), (4, 1), (6, 2)]),
    key_dim=st.sampled_from([2, 16, 24, 130]),
    value_dim=st.sampled_from([1, 32, 40, 129]),
    layout=st.sampled_from(["half", "interleaved", None]),
    decays=st.sampled_from(["none", "fixed", "heads", "channels"]),
    scaled=st.booleans(),
    summed=st.booleans(),
    weighs_own=st.booleans(),
    dtype=DTYPES,
)
@few
def test_a_linear_step_is_one_token_of_the_recurrent_form(
    batch, heads, key_dim, value_dim, layout, decays, scaled, summed, weighs_own, dtype
):
    """The inputs are views of one product, as the mixers have them."""
    heads, shared = heads
    joined = normal(batch, 2 * shared * key_dim + heads * value_dim, dtype=dtype)
    widths = [shared * key_dim, shared * key_dim, heads * value_dim]
    q, k, v = (
        x.unflatten(1, (count, -1))
        for x, count in zip(joined.split(widths, dim=1), (shared, shared, heads), strict=True)
    )
    shapes = {"fixed": (heads,), "heads": (batch, 1, heads), "channels": (batch, 1, heads, key_dim)}
    log_decay = -torch.rand(shapes[decays]) if decays in shapes else None
    state = normal(batch, heads, key_dim, value_dim + summed, seed=1)
    before, address = state.clone(), state.data_ptr()

    positions = positions_of(key_dim, layout, 1000, dtype) if layout else Positions(0, 1)
    wide = [x[:, None].float().clone() for x in (q, k, v)]
    turned = [rotate(x, positions, layout) if layout else x for x in wide[:2]]
    values = torch.cat([wide[2], torch.ones(batch, 1, heads, 1)], dim=-1) if summed else wide[2]
    bonus = normal(heads, key_dim, seed=2) if weighs_own else None
    readout = Readout(bonus)
    expected, after = linear_recurrent(
        turned[0] * 0.25, turned[1] * 0.5, values, log_decay, before, readout=readout
    )

    gates = None if log_decay is None else log_decay.exp()
    if gates is not None and gates.dim() > 1:
        gates = gates.squeeze(1)
    row_norm = torch.rand(1, heads, 1).to(dtype) if scaled else None
    if row_norm is not None:
        expected = expected * row_norm.float()
    out = fused_linear.linear_step(
        q,
        k,
        v,
        gates,
        state,
        bonus=bonus,
        cos=positions.cos,
        sin=positions.sin,
        layout=layout or "half",
        query_scale=0.25,
        key_scale=0.5,
        row_norm=row_norm,
    )
    assert state.data_ptr() == address
    # The kernel rounds none of its inputs, so the limit is that of float32 for every dtype.
    close(out, expected[:, 0], torch.float32)
    close(state, after, torch.float32)


@given(
    gate=st.sampled_from(["sigmoid", "exponential", "time_step"]),
    is_fixed=st.booleans(),
    is_biased=st.booleans(),
    offset=st.sampled_from([-12.0, 0.0, 12.0, 60.0]),
    dtype=DTYPES,
)
@few
def test_the_decays_follow_from_the_gates(gate, is_fixed, is_biased, offset, dtype):
    """Also where softplus is hardly more than zero, or its exponential would overflow."""
    batch, heads, key_dim = 2, 3, 24
    per_channel = gate == "exponential"
    shape = (batch, heads, key_dim) if per_channel else (batch, heads)
    gates = (normal(*shape, seed=3) + min(offset, 1.0 if per_channel else offset)).to(dtype)
    if is_fixed and per_channel:
        gates = gates[:1].expand(batch, -1, -1)
    bias = normal(*shape[1:], dtype=dtype, seed=4) if is_biased else None
    x = gates.float() + (0.0 if bias is None else bias.float())
    q, k, v = (normal(batch, heads, key_dim, dtype=dtype, seed=seed) for seed in range(3))
    rate, values = None, v.double()
    match gate:
        case "sigmoid":
            log_decay = gated_log_decay(x, torch.float32)
        case "exponential":
            log_decay = -x.exp()
        case "time_step":
            rate = normal(heads, dtype=dtype, seed=5)
            time_step = torch.where(x > 40, x.double(), x.double().exp().log1p())
            log_decay, values = -time_step * rate.double().exp(), values * time_step[..., None]
    state = normal(batch, heads, key_dim, key_dim, seed=6)
    tokens = (one[:, None].double() for one in (q, k, values))
    expected, after = linear_recurrent(*tokens, log_decay[:, None].double(), state.double())
    found = fused_linear.linear_step(q, k, v, gates, state, gate=gate, gate_bias=bias, gate_rate=rate)
    close(found, expected[:, 0].float(), torch.float32)
    close(state, after.float(), torch.float32)


def test_a_small_time_step_keeps_its_digits():
    gates, ones = torch.full((1, 1), -12.0), torch.ones(1, 1, 1)
    state, rate = torch.zeros(1, 1, 1, 1), torch.zeros(1)
    found = fused_linear.linear_step(ones, ones, ones, gates, state, gate="time_step", gate_rate=rate)
    exact = gates.double().exp().log1p()
    assert abs(found.double() / exact - 1).item() < 1e-6


@pytest.mark.parametrize(("feature_map", "make"), [("elu", Elu), ("taylor", Taylor)])
@pytest.mark.parametrize("width", [3, 16])
@pytest.mark.parametrize("dtype", list(LIMITS))
def test_features_of_queries_and_keys(feature_map, make, width, dtype):
    batch, heads = 2, 3
    q, k, v = (normal(batch, heads, width, dtype=dtype, seed=seed) for seed in range(3))
    q, k = q * 3, k * 3
    wide_q, wide_k, wide_v = (one[:, None].float() for one in (q, k, v))
    wide_q, wide_k = make().of_queries(wide_q), make().of_keys(wide_k)
    state = normal(batch, heads, wide_k.shape[-1], width, seed=3)
    expected, after = linear_recurrent(wide_q, wide_k, wide_v, None, state)
    found = fused_linear.linear_step(q, k, v, None, state, feature_map=feature_map)
    close(found, expected[:, 0], torch.float32)
    close(state, after, torch.float32)


def test_a_step_of_the_largest_head_takes_several_blocks():
    state = normal(1, 1, 512, 1024)
    before = state.clone()
    q, k, v = normal(1, 1, 512), normal(1, 1, 512, seed=1), normal(1, 1, 1024, seed=2)
    decay = torch.tensor([0.97])
    assert fused_linear.value_block(1, 1024) < 1024
    found = fused_linear.linear_step(q, k, v, decay, state)
    close(found, linear_decayed_step_(q[None], k[None], v[None], decay, before)[0], torch.float32)
    close(state, before, torch.float32)


@given(
    batch=st.integers(1, 4),
    heads=st.sampled_from([1, 3]),
    width=st.sampled_from([1, 16, 40, 130]),
    kind=st.sampled_from(["none", "rms", "rms_affine", "layer"]),
    gated=st.booleans(),
    dtype=DTYPES,
)
@few
def test_norm_and_gate_of_heads(batch, heads, width, kind, gated, dtype):
    x = normal(batch, heads, width)
    gate = normal(batch, heads * width + 5, dtype=dtype)[:, 5:]
    eager = make_head_norm(kind, width, 1e-5)
    weight = getattr(eager, "weight", None)
    if weight is not None:
        torch.nn.init.normal_(weight)
    with torch.no_grad():
        expected = eager(x).flatten(1)
        expected = F.silu(gate.float()) * expected if gated else expected
    found = fused_linear.norm_gate(
        x, weight, gate if gated else None, kind.removesuffix("_affine"), 1e-5, dtype
    )
    close(found, expected.to(dtype), dtype)


@pytest.mark.parametrize("dtype", list(LIMITS))
def test_the_norm_of_heads_with_weights_of_their_own(dtype):
    x, gate = normal(2, 3, 40), normal(2, 120, dtype=dtype, seed=1)
    weight, bias = normal(120, dtype=dtype, seed=2), normal(120, dtype=dtype, seed=3)
    normed = F.group_norm(x.flatten(1), 3, weight.float(), bias.float(), 1e-5)
    found = fused_linear.norm_gate(x, weight, gate, "layer", 1e-5, dtype, bias)
    close(found, (normed * F.silu(gate.float())).to(dtype), dtype)


@pytest.mark.parametrize("dtype", list(LIMITS))
def test_the_division_by_the_sum_of_the_weights(dtype):
    x = normal(2, 3, 41).abs()
    found = fused_linear.norm_gate(x, None, None, "sum", 1e-5, dtype)
    close(found, (x[..., :-1] / (x[..., -1:] + 1e-5)).flatten(1).to(dtype), dtype)


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("groups", [1, 3])
def test_the_gated_norm_of_groups(groups, dtype):
    batch, heads, width = 2, 6, 20
    x, skip = normal(batch, heads, width), normal(heads, dtype=dtype, seed=1)
    joined = normal(batch, 2 * heads * width + 7, dtype=dtype, seed=2)[:, 7:]
    values, gate = joined.chunk(2, dim=1)
    eager = GatedNorm(heads * width, groups, 1e-5)
    torch.nn.init.normal_(eager.weight)
    eager.to(dtype)
    skipped = x + skip.float()[:, None] * values.unflatten(1, (heads, width)).float()
    with torch.no_grad():
        expected = eager(skipped.flatten(1)[:, None], gate[:, None].float())[:, 0]
        found = fused_linear.gated_norm(x, values, skip, gate, eager.weight, groups, 1e-5)
    close(found, expected, dtype)


@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 40, 513]),
    width=st.sampled_from([2, 3, 4]),
    is_biased=st.booleans(),
    dtype=DTYPES,
)
@few
def test_a_step_of_a_convolution(batch, channels, width, is_biased, dtype):
    weight = empty_weight(channels, width).to(dtype)
    weight.copy_(normal(channels, width))
    bias = normal(channels, dtype=dtype, seed=1) if is_biased else None
    state = normal(batch, width - 1, channels, dtype=dtype, seed=2)
    expected_state = state.clone()
    for seed in range(3, 6):
        x = normal(batch, channels + 3, dtype=dtype, seed=seed)[:, 3:]
        expected = short_convolution_step_(x[:, None], weight, bias, expected_state, activation=F.silu)
        close(fused_linear.convolution_step(x, weight, bias, state), expected[:, 0], dtype)
        assert torch.equal(state, expected_state)


@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 40, 513]),
    weights=st.integers(1, 5),
    by_row=st.booleans(),
    keeps=st.booleans(),
    dtype=DTYPES,
)
@few
def test_the_interpolation_of_a_token_with_the_one_before(batch, channels, weights, by_row, keeps, dtype):
    x, state = normal(batch, channels, dtype=dtype), normal(batch, 1, channels, dtype=dtype, seed=1)
    before = state.clone()
    mixes = normal(weights, batch if by_row else 1, channels, dtype=dtype, seed=2)
    wide = x.float()
    expected = wide + (before.squeeze(1).float() - wide) * mixes.float()
    close(fused_linear.shift(x, state, mixes, keeps=keeps), expected.to(dtype), dtype)
    assert torch.equal(state, x[:, None] if keeps else before)


@given(
    batch=st.integers(1, 4),
    heads=st.sampled_from([(1, 1), (3, 3), (6, 2)]),
    width=st.sampled_from([2, 24, 64]),
    layout=LAYOUTS,
    ring=st.sampled_from([(0, 0), (0, 4), (2, 5)]),
    position=st.integers(0, 6),
    dtype=DTYPES,
)
@few
def test_rotation_and_cache(batch, heads, width, layout, ring, position, dtype):
    """The cache is written at the token's slot alone, with and without a ring buffer."""
    heads, kv_heads = heads
    sinks, window = ring
    joined = normal(batch, 3 + (heads + 2 * kv_heads) * width, dtype=dtype)[:, 3:]
    keys, values = (normal(batch, kv_heads, 7, width, dtype=dtype, seed=seed) for seed in (1, 2))
    expected_keys, expected_values = keys.clone(), values.clone()
    addresses = keys.data_ptr(), values.data_ptr()

    positions = positions_of(width, layout, position, dtype)
    q, k, v = joined.clone().unflatten(1, (-1, width)).split([heads, kv_heads, kv_heads], dim=1)
    slot = position if position < sinks or not window else sinks + (position - sinks) % window
    expected_keys[:, :, slot] = rotate(k[:, None], positions, layout)[:, 0]
    expected_values[:, :, slot] = v

    where = torch.tensor([position])
    found = fused.rotate_and_cache(
        joined, positions.cos, positions.sin, layout, where, keys, values, sinks, window
    )
    assert (keys.data_ptr(), values.data_ptr()) == addresses
    close(found, rotate(q[:, None], positions, layout)[:, 0], dtype)
    close(keys, expected_keys, dtype)
    assert torch.equal(values, expected_values)
    untouched = torch.arange(7) != slot
    assert torch.equal(keys[:, :, untouched], expected_keys[:, :, untouched])


def test_a_head_of_the_cache_may_begin_beyond_what_int32_counts(tmp_path):
    """In a sparse file, with as much of it before the cache: a place that overflows is in the file too."""
    stride, width = 2**30, 16
    file = tmp_path / "cache"
    held = torch.from_file(str(file), shared=True, size=4 * stride + 64 * width, dtype=torch.float16)
    file.unlink()
    keys, values = (
        held.as_strided((1, 3, 4, width), (3 * stride, stride, width, 1), 2 * stride + start)
        for start in (0, 4 * width)
    )
    joined = normal(1, 9 * width, dtype=torch.float16)
    unturned = torch.ones(width), torch.zeros(width)
    fused.rotate_and_cache(joined, *unturned, "half", torch.tensor([1]), keys, values, 0, 0)
    _, k, v = joined.view(3, 3, width)
    assert torch.equal(keys[0, :, 1], k)
    assert torch.equal(values[0, :, 1], v)


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(("heads", "content", "turned", "latent"), [(1, 2, 2, 1), (3, 20, 12, 40)])
def test_a_latent_and_its_key_are_cached(heads, content, turned, latent, dtype):
    batch, width, slot = 2, content + turned, 4
    joined = normal(batch, 5 + heads * width + latent + turned, dtype=dtype)[:, 5:]
    q, entry = joined.split([heads * width, latent + turned], dim=1)
    latents = normal(batch, 1, 7, latent + turned, dtype=dtype, seed=1)
    expected = latents.clone()
    norm = RMSNorm(latent, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    norm.to(dtype)
    positions = positions_of(turned, "half", 1000, dtype)

    heads_of_q = q.unflatten(1, (heads, width)).float()
    rotated = rotate(heads_of_q[:, None, :, content:], positions, "half")[:, 0]
    expected_q = torch.cat([heads_of_q[..., :content], rotated], dim=-1) * 0.25
    key = rotate(entry[:, None, None, latent:].float(), positions, "half")[:, 0, 0]
    with torch.no_grad():
        normed = norm.float()(entry[:, :latent].float())
    expected[:, 0, slot] = torch.cat([normed, key], dim=-1).to(dtype)

    where = positions.cos, positions.sin, torch.tensor([slot])
    found = fused.cache_latent(q, entry, *where, norm.weight.to(dtype), latents, width, 0.25, 1e-5)
    close(found, expected_q.to(dtype), dtype)
    close(latents, expected, dtype)
    untouched = torch.arange(7) != slot
    assert torch.equal(latents[:, :, untouched], expected[:, :, untouched])


@given(
    rows=st.integers(1, 4),
    width=st.sampled_from([1, 40, 64, 130]),
    kind=st.sampled_from(["rms", "layer"]),
    dtype=DTYPES,
)
@few
def test_add_and_norm(rows, width, kind, dtype):
    eager = make_norm(kind, width, 1e-5).to(dtype)
    for parameter in eager.parameters():
        torch.nn.init.normal_(parameter)
    bias = getattr(eager, "bias", None)
    x, added = normal(rows, width, dtype=dtype), normal(rows, width, dtype=dtype, seed=1)
    with torch.no_grad():
        total, out = fused.add_norm(x, added, eager.weight, bias, kind, 1e-5)
        close(total, x + added, dtype)
        close(out, eager(total), dtype)
        close(fused.norm(x, eager.weight, bias, kind, 1e-5), eager(x), dtype)
        part = normal(rows, width + 3, dtype=dtype, seed=2)[:, 3:]
        close(fused.norm(part, eager.weight, bias, kind, 1e-5), eager(part.contiguous()), dtype)


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("width", [1, 40, 1030])
def test_activations(width, dtype):
    gate, up = normal(3, 2 * width, dtype=dtype).chunk(2, dim=1)
    close(fused.activate(gate, up, "silu"), F.silu(gate) * up, dtype)
    close(fused.activate(gate, up, "sigmoid"), torch.sigmoid(gate) * up, dtype)
    close(fused.activate(gate, None, "relu_squared"), F.relu(gate).square(), dtype)
