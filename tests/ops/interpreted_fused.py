"""Fused operators against their eager counterparts, under Triton's interpreter.

`test_fused` runs this file in a process of its own, since Triton reads TRITON_INTERPRET when it is imported.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench.ops import fused
from retbench.ops.layers import make_head_norm, make_norm
from retbench.ops.linear_operator import linear_decayed_step_, linear_recurrent
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
    heads=st.sampled_from([1, 3, 4]),
    key_dim=st.sampled_from([2, 16, 24, 130]),
    value_dim=st.sampled_from([1, 32, 40, 129]),
    layout=st.sampled_from(["half", "interleaved", None]),
    decays=st.sampled_from(["fixed", "heads", "channels"]),
    scaled=st.booleans(),
    dtype=DTYPES,
)
@few
def test_a_retention_step_is_one_token_of_the_recurrent_form(
    batch, heads, key_dim, value_dim, layout, decays, scaled, dtype
):
    """The inputs are views of one product, as the mixers have them."""
    joined = normal(batch, heads * (2 * key_dim + value_dim), dtype=dtype)
    widths = [heads * key_dim, heads * key_dim, heads * value_dim]
    q, k, v = (x.unflatten(1, (heads, -1)) for x in joined.split(widths, dim=1))
    shapes = {"fixed": (heads,), "heads": (batch, 1, heads), "channels": (batch, 1, heads, key_dim)}
    log_decay = -torch.rand(shapes[decays])
    state = normal(batch, heads, key_dim, value_dim, seed=1)
    before, address = state.clone(), state.data_ptr()

    positions = positions_of(key_dim, layout, 1000, dtype) if layout else Positions(0, 1)
    wide = [x[:, None].float().clone() for x in (q, k, v)]
    turned = [rotate(x, positions, layout) if layout else x for x in wide[:2]]
    expected, after = linear_recurrent(turned[0], turned[1] * 0.5, wide[2], log_decay, before)

    decay = log_decay.exp() if decays == "fixed" else log_decay.exp().squeeze(1)
    row_norm = torch.rand(1, heads, 1).to(dtype) if scaled else None
    if row_norm is not None:
        expected = expected * row_norm.float()
    rotary = positions.cos, positions.sin, row_norm, layout or "half"
    out = fused.retention_step(q, k, v, decay, state, *rotary, 0.5)
    assert state.data_ptr() == address
    # The kernel rounds none of its inputs, so the limit is that of float32 for every dtype.
    close(out, expected[:, 0], torch.float32)
    close(state, after, torch.float32)


def test_a_step_of_the_largest_head_takes_several_blocks():
    state = normal(1, 1, 512, 1024)
    before = state.clone()
    q, k, v = normal(1, 1, 512), normal(1, 1, 512, seed=1), normal(1, 1, 1024, seed=2)
    decay = torch.tensor([0.97])
    assert fused.value_block(1, 1024) < 1024
    found = fused.retention_step(q, k, v, decay, state, None, None, None, "half", 1.0)
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
    found = fused.norm_gate(x, weight, gate if gated else None, kind.removesuffix("_affine"), 1e-5, dtype)
    close(found, expected.to(dtype), dtype)


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


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("width", [1, 40, 1030])
def test_silu_multiply(width, dtype):
    joined = normal(3, 2 * width, dtype=dtype)
    gate, up = joined.chunk(2, dim=1)
    close(fused.silu_multiply(joined), F.silu(gate) * up, dtype)
