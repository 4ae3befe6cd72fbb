"""The operator against an obvious float64 double loop, and its forms against each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retbench.models.equivalence import relative_error
from retbench.ops.decay import decay_schedule
from retbench.ops.linear_operator import (
    linear_chunkwise,
    linear_last,
    linear_parallel,
    linear_recurrent,
    linear_step_,
)

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-4}


def make_inputs(
    length, *, dtype=torch.float64, heads=2, key_dim=4, value_dim=6, batch=2, kind="fixed", seed=0
):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = normal(batch, length, heads, key_dim), normal(batch, length, heads, key_dim)
    v, state = normal(batch, length, heads, value_dim), normal(batch, heads, key_dim, value_dim)
    if kind == "fixed":
        log_decay = decay_schedule("eq8", heads)
    else:
        log_decay = (
            torch.nn.functional.logsigmoid(normal(batch, length, heads)) / 16
        )  # as in YOCO's gated retention
    return [x.to(dtype) for x in (q, k, v, log_decay, state)]


def double_loop(q, k, v, log_decay, state):
    """out_t = q_t (prod of all decays) S_0 + sum over m <= t of (prod of decays after m) (q_t . k_m) v_m."""
    q, k, v, log_decay, state = (x.double().numpy() for x in (q, k, v, log_decay, state))
    batch, length, heads, _ = q.shape
    decay = np.broadcast_to(np.exp(log_decay), (batch, length, heads))
    out = np.zeros_like(v)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                out[b, t, h] = q[b, t, h] @ (np.prod(decay[b, : t + 1, h]) * state[b, h])
                for m in range(t + 1):
                    out[b, t, h] += (
                        np.prod(decay[b, m + 1 : t + 1, h]) * (q[b, t, h] @ k[b, m, h]) * v[b, m, h]
                    )
    return torch.from_numpy(out)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("form", [linear_recurrent, linear_parallel, linear_chunkwise, linear_last])
def test_autocast_rounds_nothing_within_a_form(form, with_state):
    q, k, v, log_decay, state = make_inputs(9, dtype=torch.float32)
    q, k, v = (x.bfloat16() for x in (q[:, -1:] if form is linear_last else q, k, v))
    expected = form(q, k, v, log_decay, state if with_state else None)
    with torch.autocast("cpu", torch.bfloat16):
        found = form(q, k, v, log_decay, state if with_state else None)
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float32]
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def forms(chunk_size):
    return {
        "recurrent": linear_recurrent,
        "parallel": linear_parallel,
        "chunkwise": lambda *inputs: linear_chunkwise(*inputs, chunk_size=chunk_size),
    }


@settings(deadline=None, max_examples=30)
@given(
    length=st.integers(1, 23),
    chunk_size=st.integers(1, 25),
    heads=st.integers(1, 3),
    kind=st.sampled_from(["fixed", "data"]),
    seed=st.integers(0, 2**16),
)
def test_every_form_equals_the_double_loop(length, chunk_size, heads, kind, seed):
    inputs = make_inputs(length, heads=heads, kind=kind, seed=seed)
    expected = double_loop(*inputs)
    for name, form in forms(chunk_size).items():
        assert relative_error(form(*inputs)[0], expected) < 1e-12, name


@settings(deadline=None, max_examples=30)
@given(length=st.integers(2, 60), data=st.data(), kind=st.sampled_from(["fixed", "data"]))
def test_a_sequence_cut_anywhere_gives_the_same_outputs_and_state(length, data, kind):
    cut = data.draw(st.integers(1, length - 1))
    q, k, v, log_decay, state = make_inputs(length, kind=kind)
    head, tail = slice(None, cut), slice(cut, None)
    for name, form in forms(data.draw(st.integers(1, 20))).items():
        whole, end = form(q, k, v, log_decay, state)
        parts = []
        carried = state
        for part in (head, tail):
            decay = log_decay if kind == "fixed" else log_decay[:, part]
            out, carried = form(q[:, part], k[:, part], v[:, part], decay, carried)
            parts.append(out)
        assert relative_error(torch.cat(parts, dim=1), whole) < 1e-12, name
        assert relative_error(carried, end) < 1e-12, name


@pytest.mark.parametrize("kind", ["fixed", "data"])
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(
    ("length", "chunk_size"),
    [(1, 128), (127, 128), (1001, 64), pytest.param(4096, 96, marks=pytest.mark.slow)],
)
def test_forms_agree_in_outputs_and_states(length, chunk_size, dtype, kind):
    inputs = make_inputs(length, dtype=dtype, key_dim=16, value_dim=32, batch=1, kind=kind)
    expected, end = linear_recurrent(*inputs)
    for name, form in forms(chunk_size).items():
        out, state = form(*inputs)
        assert out.dtype == dtype
        assert relative_error(out, expected) < LIMITS[dtype], name
        assert relative_error(state, end) < LIMITS[dtype], name


@pytest.mark.parametrize("chunk_size", [37, 48])
@pytest.mark.parametrize("kind", ["fixed", "data"])
@pytest.mark.parametrize("dtype", LIMITS)
def test_forms_agree_in_every_gradient(dtype, kind, chunk_size):
    def gradients(form):
        inputs = [x.requires_grad_() for x in make_inputs(301, dtype=dtype, batch=1, kind=kind)]
        out, state = form(*inputs)
        (out.sin().sum() + state.cos().sum()).backward()
        return [x.grad for x in inputs]

    names = ("q", "k", "v", "log_decay", "state")
    expected = gradients(linear_recurrent)
    for name, form in forms(chunk_size).items():
        for which, found, reference in zip(names, gradients(form), expected, strict=True):
            assert relative_error(found, reference) < LIMITS[dtype], f"{name}: {which}"


def test_decay_of_zero_is_linear_attention():
    q, k, v, _, _ = make_inputs(50)
    none = torch.zeros(2, dtype=torch.float64)
    scores = (torch.einsum("bthk,bshk->bhts", q, k)).tril()
    expected = torch.einsum("bhts,bshv->bthv", scores, v)
    assert relative_error(linear_chunkwise(q, k, v, none, chunk_size=16)[0], expected) < 1e-12


def test_step_in_place_equals_the_recurrent_form():
    q, k, v, log_decay, state = make_inputs(9, dtype=torch.float32)
    expected, end = linear_recurrent(q, k, v, log_decay, state)
    held = state.clone()
    outs = [
        linear_step_(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], log_decay, held) for t in range(9)
    ]
    assert relative_error(torch.cat(outs, dim=1), expected) < 1e-5
    assert relative_error(held, end) < 1e-5


def test_forms_leave_the_state_they_are_given_alone():
    q, k, v, log_decay, state = make_inputs(20)
    before = state.clone()
    for form in forms(7).values():
        form(q, k, v, log_decay, state)
        assert torch.equal(state, before)


@pytest.mark.parametrize("strength", [-1e-7, -5.0, -80.0, -3000.0])
def test_no_decay_overflows_or_turns_denormal(strength):
    q, k, v, log_decay, state = make_inputs(700, dtype=torch.float32, kind="data")
    log_decay = torch.full_like(log_decay, strength)
    log_decay[:, ::97] = 0.0
    expected, end = linear_recurrent(q, k, v, log_decay, state)
    tiny = torch.finfo(torch.float32).tiny
    for name, form in forms(128).items():
        out, after = form(q, k, v, log_decay, state)
        assert relative_error(out, expected) < 1e-4, name
        assert relative_error(after, end) < 1e-4, name
        for x in (out, after):
            assert not ((x != 0) & (x.abs() < tiny)).any(), name


def test_forty_thousand_tokens_stay_exact():
    """Sixteen heads of Eq. 8: the slowest forgets over 2^20 tokens, so that any drift of its decay shows."""
    q, k, v, _, _ = make_inputs(40_000, dtype=torch.float32, heads=16, key_dim=2, value_dim=2, batch=1)
    log_decay = decay_schedule("eq8", 16)
    out, state = linear_chunkwise(q, k, v, log_decay)
    wide_out, wide_state = linear_chunkwise(q.double(), k.double(), v.double(), log_decay)
    assert relative_error(out, wide_out) < 1e-4
    assert relative_error(state, wide_state) < 1e-4


def decode_and_chunkwise_errors(depth: int, *, wide_products: bool) -> tuple[float, float]:
    """Errors against float64 of bfloat16 decoding from a chunkwise prefill, and of bfloat16 chunkwise throughout."""
    q, k, v, _, _ = make_inputs(depth + 32, dtype=torch.bfloat16, heads=8, key_dim=8, value_dim=8, batch=1)
    log_decay = decay_schedule("eq8", 8)

    def form(end):
        return linear_chunkwise(q[:, :end], k[:, :end], v[:, :end], log_decay, wide_products=wide_products)

    expected = linear_chunkwise(q.double(), k.double(), v.double(), log_decay)[0][:, depth:]
    chunkwise, state = form(depth + 32)[0][:, depth:], form(depth)[1]
    tokens: list[Tensor] = [
        linear_step_(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], log_decay, state)
        for t in range(depth, depth + 32)
    ]
    return relative_error(torch.cat(tokens, dim=1), expected), relative_error(chunkwise, expected)


@pytest.mark.parametrize(("wide_products", "limit"), [(True, 0.02), (False, 0.05)])
def test_bfloat16_decode_at_32k_errs_at_most_twice_the_chunkwise_form(wide_products, limit):
    decode, chunkwise = decode_and_chunkwise_errors(32_768, wide_products=wide_products)
    assert decode <= 2 * chunkwise
    assert chunkwise < limit


@pytest.mark.parametrize("wrong", ["k", "v", "log_decay", "state"])
def test_a_shape_that_does_not_fit_is_named(wrong):
    inputs = dict(zip(("q", "k", "v", "log_decay", "state"), make_inputs(5), strict=True))
    inputs[wrong] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=wrong):
        linear_chunkwise(*inputs.values())


def row_errors(found, expected):
    """Distance of each output row from what it should be, relative to its norm."""
    return (found.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("kind", ["fixed", "gated"])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 300])
def test_narrow_products_of_the_chunkwise_form_cost_little_precision(dtype, rounding, kind, chunk_size):
    """Factors are rounded once or twice, and the sum once; the state between chunks is not."""
    q, k, v, log_decay, state = make_inputs(257, dtype=dtype, heads=3, key_dim=24, value_dim=40, kind=kind)
    log_decay, state = log_decay.double(), state.float()
    expected, after = linear_recurrent(q.double(), k.double(), v.double(), log_decay, state.double())
    narrow, narrow_state = linear_chunkwise(q, k, v, log_decay, state, chunk_size=chunk_size)
    wide, wide_state = linear_chunkwise(q, k, v, log_decay, state, chunk_size=chunk_size, wide_products=True)
    assert (narrow.dtype, narrow_state.dtype) == (dtype, torch.float32)
    # Errors of single factors average out over a row.
    assert row_errors(narrow, expected).max() < 2.5 * rounding
    assert row_errors(wide, expected).max() < rounding
    assert relative_error(narrow_state, after) < 10 * rounding
    assert relative_error(wide_state, after) < 1e-4


def test_narrow_products_do_not_lose_terms_that_nearly_cancel():
    """The read-out of the state is minus that of the chunk, up to a small rest: the rest must not be rounding error."""
    value = torch.full((1, 2, 1, 1), 1000.0).bfloat16()
    one = torch.ones(1, 2, 1, 1).bfloat16()
    state = torch.full((1, 1, 1, 1), -2001.0)
    out, _ = linear_chunkwise(one, one, value, torch.zeros(1), state, chunk_size=2)
    # bfloat16 holds 1000 and 2000 exactly, and rounds 2001 to 2000.
    assert out.flatten().tolist() == [-1000.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_wide_dtypes_are_the_same_by_either_name(dtype):
    q, k, v, log_decay, state = make_inputs(50, dtype=dtype)
    both = [
        linear_chunkwise(q, k, v, log_decay, state, chunk_size=16, wide_products=w) for w in (False, True)
    ]
    assert torch.equal(both[0][0], both[1][0])
    assert torch.equal(both[0][1], both[1][1])


def test_narrow_products_have_the_gradients_of_wide_ones():
    inputs = make_inputs(100, dtype=torch.bfloat16, heads=2, key_dim=16, value_dim=24)
    log_decay, state = inputs[3].double(), inputs[4].float()
    found = []
    for wide_products in (False, True):
        leaves = [x.detach().clone().requires_grad_() for x in inputs[:3]]
        out, _ = linear_chunkwise(*leaves, log_decay, state, chunk_size=32, wide_products=wide_products)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out.float() * weights).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for narrow, wide in zip(*found, strict=True):
        assert (narrow - wide).double().norm() / wide.double().norm() < 2**-6
