"""The linear recurrence with every decay and read-out: against float64 loops, between forms, in every gradient."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from retbench.models.equivalence import relative_error
from retbench.ops.linear_chunk import vector_terms
from retbench.ops.linear_operator import (
    Readout,
    linear_chunkwise,
    linear_decayed_step_,
    linear_last,
    linear_parallel,
    linear_recurrent,
    linear_step_,
)

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-4}
DECAYS = ("none", "fixed", "head", "channel")
READOUTS = ("inclusive", "head bonus", "channel bonus", "normalised", "bonus, normalised")


def make_inputs(
    length, *, decay, readout="inclusive", strength=1.0, shape=(2, 4, 2), dtype=torch.float64, seed=0
):
    """Inputs of (batch, heads, groups), 5 key and 3 value channels; decays from none to exp(-strength) per token."""
    generator = torch.Generator().manual_seed(seed)
    (batch, heads, groups), key_dim, value_dim = shape, 5, 3

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = normal(batch, length, groups, key_dim), normal(batch, length, groups, key_dim)
    v = normal(batch, length, heads, value_dim)
    eps = 1e-6 if "normalised" in readout else None
    if eps is not None:
        q, k = q.exp(), k.exp()  # a sum of weights of both signs may be near zero
    state = normal(batch, heads, key_dim, value_dim + (eps is not None)).exp()
    by_channel = (batch, length, heads, key_dim)
    shape = {"none": None, "fixed": (heads,), "head": by_channel[:3], "channel": by_channel}[decay]
    # Many weak decays and some strong ones, so that sums are long and their differences small.
    log_decay = (
        None
        if shape is None
        else -strength * torch.rand(shape, generator=generator, dtype=torch.float64) ** 4
    )
    bonus = {"head bonus": normal(heads), "channel bonus": normal(heads, key_dim)}.get(readout)
    if readout == "bonus, normalised":
        bonus = normal(heads, key_dim).exp()
    cast = [None if x is None else x.to(dtype) for x in (q, k, v, log_decay, state, bonus)]
    cast[3] = None if decay == "none" else cast[3]
    return cast[:5], Readout(cast[5], eps)


def loop(q, k, v, log_decay, state, readout):
    """The definition in numpy, one sequence, head and token at a time."""
    q, k, v, log_decay, state, bonus = (
        None if x is None else x.double().numpy() for x in (q, k, v, log_decay, state, readout.bonus)
    )
    batch, length, heads, _ = v.shape
    shared = heads // q.shape[2]
    out = np.zeros_like(v)
    end = np.zeros_like(state)
    for b in range(batch):
        for h in range(heads):
            values = state[b, h]
            for t in range(length):
                row = v[b, t, h] if readout.eps is None else np.append(v[b, t, h], 1.0)
                added = np.outer(k[b, t, h // shared], row)
                g = 0.0 if log_decay is None else log_decay[h] if log_decay.ndim == 1 else log_decay[b, t, h]
                before, values = values, np.exp(np.reshape(g, (-1, 1))) * values + added
                seen = values if bonus is None else before + np.reshape(bonus[h], (-1, 1)) * added
                read = q[b, t, h // shared] @ seen
                out[b, t, h] = read if readout.eps is None else read[:-1] / (read[-1] + readout.eps)
            end[b, h] = values
    return torch.from_numpy(out), torch.from_numpy(end)


def forms(chunk_size):
    return {
        "recurrent": linear_recurrent,
        "parallel": linear_parallel,
        "chunkwise": partial(linear_chunkwise, chunk_size=chunk_size),
    }


@settings(max_examples=60)
@given(
    length=st.integers(1, 23),
    chunk_size=st.integers(1, 25),
    decay=st.sampled_from(DECAYS),
    readout=st.sampled_from(READOUTS),
    groups=st.sampled_from([1, 2, 4]),
    strength=st.sampled_from([0.01, 1.0, 20.0]),
    seed=st.integers(0, 2**16),
)
def test_every_form_is_its_definition(length, chunk_size, decay, readout, groups, strength, seed):
    inputs, how = make_inputs(
        length, decay=decay, readout=readout, shape=(2, 4, groups), strength=strength, seed=seed
    )
    expected, end = loop(*inputs, how)
    for name, form in forms(chunk_size).items():
        out, state = form(*inputs, readout=how)
        assert relative_error(out, expected) < 1e-12, name
        assert relative_error(state, end) < 1e-12, name
    q, *rest = inputs
    out, state = linear_last(q[:, -1:], *rest, readout=how)
    assert relative_error(out, expected[:, -1:]) < 1e-12
    assert relative_error(state, end) < 1e-12


@settings(max_examples=40)
@given(
    length=st.integers(2, 60),
    chunk_size=st.integers(1, 20),
    decay=st.sampled_from(DECAYS),
    readout=st.sampled_from(READOUTS),
    data=st.data(),
)
def test_a_sequence_cut_anywhere_gives_the_same_outputs_and_state(length, chunk_size, decay, readout, data):
    cut = data.draw(st.integers(1, length - 1))
    (q, k, v, log_decay, _), how = make_inputs(length, decay=decay, readout=readout, strength=20.0)
    for name, form in forms(chunk_size).items():
        whole, end = form(q, k, v, log_decay, None, readout=how)
        parts, carried = [], None
        for part in (slice(None, cut), slice(cut, None)):
            by_token = log_decay is not None and log_decay.dim() > 1
            decays = log_decay[:, part] if by_token else log_decay
            out, carried = form(q[:, part], k[:, part], v[:, part], decays, carried, readout=how)
            parts.append(out)
        assert relative_error(torch.cat(parts, dim=1), whole) < 1e-12, name
        assert relative_error(carried, end) < 1e-12, name


@pytest.mark.parametrize(
    ("length", "chunk_size", "strength"),
    [
        (1001, 64, 0.0),
        (1001, 96, 1e-3),
        pytest.param(1001, 128, 20.0, marks=pytest.mark.slow),
        pytest.param(4096, 64, 0.3, marks=pytest.mark.slow),
        (4095, 128, 20.0),
    ],
)
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(
    ("decay", "readout"), [("channel", "inclusive"), ("channel", "channel bonus"), ("head", "inclusive")]
)
def test_forms_agree_over_long_sequences(length, chunk_size, dtype, strength, decay, readout):
    inputs, how = make_inputs(
        length, decay=decay, readout=readout, strength=strength, shape=(1, 1, 1), dtype=dtype
    )
    expected, end = linear_recurrent(*inputs, readout=how)
    for name, form in forms(chunk_size).items():
        out, state = form(*inputs, readout=how)
        assert out.dtype == dtype
        assert relative_error(out, expected) < LIMITS[dtype], name
        assert relative_error(state, end) < LIMITS[dtype], name


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("dtype", LIMITS)
def test_forms_agree_in_every_gradient(dtype, readout, decay):
    def gradients(form):
        inputs, how = make_inputs(101, decay=decay, readout=readout, strength=20.0, dtype=dtype)
        leaves = [x.requires_grad_() for x in (*inputs, how.bonus) if x is not None]
        out, state = form(*inputs, readout=how)
        sum((x * torch.arange(x.numel()).view(x.shape).sin()).sum() for x in (out, state)).backward()
        return [x.grad for x in leaves]

    expected = gradients(linear_recurrent)
    assert len(expected) == 5 - (decay == "none") + ("bonus" in readout)
    for name, form in {**forms(37), "chunkwise, in blocks": forms(32)["chunkwise"]}.items():
        for found, reference in zip(gradients(form), expected, strict=True):
            assert relative_error(found, reference) < LIMITS[dtype], name


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("readout", READOUTS)
def test_a_step_in_place_is_the_recurrent_form(decay, readout):
    (q, k, v, log_decay, state), how = make_inputs(9, decay=decay, readout=readout)
    expected, end = linear_recurrent(q, k, v, log_decay, state, readout=how)
    by_token = log_decay is not None and log_decay.dim() > 1
    for step in (linear_step_, linear_decayed_step_):
        held, outs = state.clone(), []
        place = held.data_ptr()
        for t in range(9):
            one = slice(t, t + 1)
            decay_t = log_decay[:, one] if by_token else log_decay
            if step is linear_decayed_step_ and decay_t is not None:
                decay_t = decay_t.exp()
            outs.append(step(q[:, one], k[:, one], v[:, one], decay_t, held, readout=how))
        assert held.data_ptr() == place
        assert relative_error(torch.cat(outs, dim=1), expected) < 1e-12
        assert relative_error(held, end) < 1e-12


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0, 10.0, 20.0, 21.0, 22.0, 44.0, 60.0])
@pytest.mark.parametrize("readout", ["inclusive", "channel bonus"])
def test_no_factor_of_a_product_turns_denormal(strength, readout):
    inputs, how = make_inputs(128, decay="channel", readout=readout, shape=(2, 2, 2), dtype=torch.float32)
    q, k, _, log_decay, _ = inputs
    q, k, log_decay = (
        x.transpose(1, 2) for x in (q.abs() + 1, k.abs() + 1, torch.full_like(log_decay, -strength))
    )
    with torch.no_grad():
        terms = vector_terms(q, k, log_decay, how.bonus, torch.float32)
    for factor in terms:
        assert not ((factor != 0) & (factor.abs() < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.parametrize("strength", [1e-7, 1.0, 5.0, 20.0, 80.0, 3000.0])
@pytest.mark.parametrize("readout", ["inclusive", "channel bonus"])
def test_no_decay_overflows_or_turns_denormal(strength, readout):
    (q, k, v, log_decay, state), how = make_inputs(700, decay="channel", readout=readout, dtype=torch.float32)
    log_decay = torch.full_like(log_decay, -strength)
    log_decay[:, ::97] = 0.0
    expected, end = linear_recurrent(q, k, v, log_decay, state, readout=how)
    tiny = torch.finfo(torch.float32).tiny
    for name, form in forms(128).items():
        out, after = form(q, k, v, log_decay, state, readout=how)
        assert relative_error(out, expected) < 1e-4, name
        assert relative_error(after, end) < 1e-4, name
        for x in (out, after):
            assert not ((x != 0) & (x.abs() < tiny)).any(), name


class Exponents(TorchDispatchMode):
    """Keeps the smallest exponent of every exponential."""

    def __init__(self):
        super().__init__()
        self.smallest = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.exp, torch.ops.aten.exp_):
            self.smallest.append(args[0].min().item())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_no_exponential_underflows(decay, with_gradients):
    """A CPU takes 10 to 200 times as long for those that are denormal or zero: a model that forgets would be slow."""
    (q, k, v, log_decay, state), _ = make_inputs(100, decay=decay, dtype=torch.float32, strength=3000.0)
    log_decay.requires_grad_(with_gradients)
    one = (x[:, :1] for x in (q, k, v, log_decay.detach()))
    with Exponents() as exponents:
        for form in forms(32).values():
            form(q, k, v, log_decay, state)
        linear_last(q[:, -1:], k, v, log_decay, state)
        linear_step_(*one, state)
    assert len(exponents.smallest) > 5
    assert min(exponents.smallest) > math.log(torch.finfo(torch.float32).tiny)


def test_gradients_are_finite_where_decays_vanish():
    (q, k, v, log_decay, state), how = make_inputs(100, decay="channel", dtype=torch.float32)
    leaves = [x.requires_grad_() for x in (q, k, v, torch.full_like(log_decay, -3000.0), state)]
    out, after = linear_chunkwise(*leaves, chunk_size=32, readout=how)
    (out.square().sum() + after.square().sum()).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_slow_decays_per_channel_do_not_drift():
    """Over 40,000 tokens a decay of 1 - 64.5 2^-24, between two floats, leaves 0.86 of a value: rounding would show."""
    (q, k, v, log_decay, _), _ = make_inputs(40_000, decay="channel", shape=(1, 1, 1), dtype=torch.float32)
    log_decay = torch.full_like(log_decay, -64.5 * 2.0**-24)
    out, state = linear_chunkwise(q, k, v, log_decay)
    exact_out, exact_state = linear_chunkwise(q.double(), k.double(), v.double(), log_decay.double())
    assert relative_error(out, exact_out) < 1e-4
    assert relative_error(state, exact_state) < 1e-4


@pytest.mark.parametrize("readout", ["inclusive", "channel bonus"])
def test_equal_decays_of_all_channels_are_one_decay_of_the_head(readout):
    (q, k, v, log_decay, state), how = make_inputs(77, decay="head", readout=readout)
    by_channel = log_decay[..., None].expand(*log_decay.shape, q.shape[-1])
    expected = linear_chunkwise(q, k, v, log_decay, state, chunk_size=32, readout=how)
    found = linear_chunkwise(q, k, v, by_channel, state, chunk_size=32, readout=how)
    for mine, theirs in zip(found, expected, strict=True):
        assert relative_error(mine, theirs) < 1e-12


def gla_as_in_fla(q, k, v, gk):
    """h = h exp(gk_t) + k_t v_t, o_t = (K^-0.5 q_t) h, as `naive_recurrent_gla` of fla/ops/gla/naive.py states it."""
    h, outs = 0.0, []
    for t in range(q.shape[1]):
        h = h * gk[:, t].exp()[..., None] + k[:, t][..., None] * v[:, t][..., None, :]
        outs.append((q[:, t][..., None] * q.shape[-1] ** -0.5 * h).sum(-2))
    return torch.stack(outs, dim=1), h


def simple_gla_as_in_fla(q, k, v, g):
    """The same with one decay per head, as in fla/ops/simple_gla/naive.py."""
    return gla_as_in_fla(q, k, v, g[..., None].expand_as(q))


def rwkv6_as_in_fla(r, k, v, w, u):
    """o_t = r_t (h + u k_t v_t), then h = h exp(w_t) + k_t v_t: fla/ops/rwkv6/recurrent_naive.py."""
    h, outs = torch.zeros(1), []
    for t in range(r.shape[1]):
        kv = k[:, t][..., None] * v[:, t][..., None, :]
        outs.append((r[:, t][..., None] * (h + u[None, :, :, None] * kv)).sum(-2))
        h = h * w[:, t].exp()[..., None] + kv
    return torch.stack(outs, dim=1), h


@pytest.mark.parametrize(
    "form", [linear_recurrent, linear_parallel, partial(linear_chunkwise, chunk_size=16)]
)
@pytest.mark.parametrize("operator", ["gla", "simple gla", "rwkv6"])
def test_it_is_the_operator_of_flash_linear_attention(form, operator):
    decay, readout = {"gla": ("channel", "inclusive"), "simple gla": ("head", "inclusive")}.get(
        operator, ("channel", "channel bonus")
    )
    (q, k, v, log_decay, _), how = make_inputs(
        67, decay=decay, readout=readout, shape=(2, 4, 4), strength=8.0
    )
    if operator == "rwkv6":
        expected = rwkv6_as_in_fla(q, k, v, log_decay, how.bonus)
        found = form(q, k, v, log_decay, readout=how)
    else:
        naive = gla_as_in_fla if operator == "gla" else simple_gla_as_in_fla
        expected = naive(q, k, v, log_decay)
        found = form(q * q.shape[-1] ** -0.5, k, v, log_decay)
    for mine, theirs in zip(found, expected, strict=True):
        assert relative_error(mine, theirs) < 1e-12


def distance(found, expected):
    """Norm of the difference, relative to the norm of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("readout", ["inclusive", "channel bonus", "normalised"])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 300])
def test_narrow_products_cost_little_precision(dtype, rounding, readout, chunk_size):
    (q, k, v, log_decay, state), how = make_inputs(257, decay="channel", readout=readout, dtype=dtype)
    log_decay, state = log_decay.float(), state.float()
    exact_how = how._replace(bonus=None if how.bonus is None else how.bonus.double())
    expected, after = linear_recurrent(*(x.double() for x in (q, k, v, log_decay, state)), readout=exact_how)
    form = partial(linear_chunkwise, q, k, v, log_decay, state, chunk_size=chunk_size, readout=how)
    (narrow, narrow_state), (wide, wide_state) = form(), form(wide_products=True)
    assert narrow.dtype == wide.dtype == dtype
    assert narrow_state.dtype == wide_state.dtype == torch.float32
    print(
        distance(narrow, expected) / rounding,
        distance(wide, expected) / rounding,
        distance(narrow_state, after) / rounding,
    )
    assert distance(narrow, expected) < rounding
    assert distance(wide, expected) < rounding / 2
    assert distance(narrow_state, after) < rounding
    assert distance(wide_state, after) < 1e-5


@pytest.mark.parametrize("readout", ["channel bonus", "normalised"])
def test_bfloat16_decode_at_32k_errs_at_most_twice_the_chunkwise_form(readout):
    depth = 32_768
    inputs, how = make_inputs(
        depth + 32, decay="channel", readout=readout, strength=0.1, dtype=torch.bfloat16
    )
    q, k, v, log_decay = (x[:1] for x in inputs[:4])
    exact_how = how._replace(bonus=None if how.bonus is None else how.bonus.double())
    expected = linear_chunkwise(*(x.double() for x in (q, k, v, log_decay)), readout=exact_how)[0][:, depth:]
    chunkwise = linear_chunkwise(q, k, v, log_decay, readout=how)[0][:, depth:]
    state = linear_chunkwise(*(x[:, :depth] for x in (q, k, v, log_decay)), readout=how)[1]
    decode = torch.cat(
        [
            linear_step_(*(x[:, t : t + 1] for x in (q, k, v, log_decay)), state, readout=how)
            for t in range(depth, depth + 32)
        ],
        dim=1,
    )
    assert distance(decode, expected) <= 2 * distance(chunkwise, expected)
    assert distance(chunkwise, expected) < 2**-7


@pytest.mark.parametrize("form", [linear_recurrent, linear_parallel, linear_chunkwise, linear_last])
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_autocast_rounds_nothing_within_a_form(form, decay):
    (q, *rest), how = make_inputs(9, decay=decay, readout="bonus, normalised", dtype=torch.float32)
    q = q[:, -1:] if form is linear_last else q
    expected = form(q, *rest, readout=how)
    with torch.autocast("cpu", torch.bfloat16):
        found = form(q, *rest, readout=how)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)


def test_forms_leave_what_they_are_given_alone():
    (q, k, v, log_decay, state), how = make_inputs(20, decay="channel", readout="channel bonus")
    before = [x.clone() for x in (q, k, v, log_decay, state)]
    for form in (*forms(7).values(), lambda q, *rest, **options: linear_last(q[:, -1:], *rest, **options)):
        form(q, k, v, log_decay, state, readout=how)
        for now, then in zip((q, k, v, log_decay, state), before, strict=True):
            assert torch.equal(now, then)


@pytest.mark.parametrize("wrong", ["q and k", "v", "log_decay", "state", "bonus"])
def test_a_shape_that_does_not_fit_is_named(wrong):
    (q, k, v, log_decay, state), how = make_inputs(5, decay="channel", readout="normalised")
    if wrong == "q and k":  # six heads do not divide four
        q, k = q.repeat(1, 1, 3, 1), k.repeat(1, 1, 3, 1)
    elif wrong == "v":
        v = v[:, :-1]
    elif wrong == "log_decay":
        log_decay = log_decay[..., :-1]
    elif wrong == "state":  # without the column of the normaliser
        state = state[..., :-1]
    else:
        how = how._replace(bonus=torch.zeros(4, 2))
    with pytest.raises(ValueError, match=rf"{wrong} .*must be|and {wrong} \("):
        linear_chunkwise(q, k, v, log_decay, state, readout=how)
