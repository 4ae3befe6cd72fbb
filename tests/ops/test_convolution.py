"""Short convolutions and the token shift against torch's convolution, at any cut, in every gradient."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from retbench.models.equivalence import relative_error
from retbench.ops.convolution import (
    short_convolution,
    short_convolution_step_,
    token_difference_step_,
    token_shift,
)


def make_inputs(length, width, *, dtype=torch.float64, seed=0):
    """x (2, T, 5), weight (5, W), bias (5,) and state (2, W - 1, 5)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, length, 5), (5, width), (5,), (2, width - 1, 5)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def convolve(x, weight, bias, state, activation):
    """torch's convolution, (B, D, T), of the state and the inputs."""
    inputs = torch.cat([state, x], dim=1).mT
    out = F.conv1d(inputs, weight[:, None], bias, groups=weight.shape[0]).mT
    return out if activation is None else activation(out)


@given(
    length=st.integers(1, 12),
    width=st.integers(1, 5),
    activation=st.sampled_from([None, F.silu]),
    has_bias=st.booleans(),
    has_state=st.booleans(),
)
def test_it_is_the_convolution_of_torch_with_its_gradients(length, width, activation, has_bias, has_state):
    results = []
    for ours in (True, False):
        x, weight, bias, state = (one.requires_grad_() for one in make_inputs(length, width))
        bias, given = bias if has_bias else None, state if has_state else None
        if ours:
            out, after = short_convolution(x, weight, bias, given, activation=activation)
        else:
            before = torch.zeros_like(state) if given is None else given
            out = convolve(x, weight, bias, before, activation)
            after = torch.cat([before, x], dim=1)[:, length:]
        (out.sin().sum() + after.cos().sum()).backward()
        leaves = [leaf for leaf in (x, weight, bias, given) if leaf is not None and leaf.numel()]
        results.append([out, after, *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [64, 65, 130, 200])
@pytest.mark.parametrize(("width", "has_bias"), [(1, True), (4, True), (4, False)])
@pytest.mark.parametrize("activation", [None, F.silu, partial(F.silu, inplace=True)])
@torch.no_grad()
def test_what_is_convolved_in_parts_without_gradients_is_the_same(length, width, has_bias, activation):
    x, weight, bias, state = make_inputs(length, width)
    wide = x.transpose(0, 1).contiguous().transpose(0, 1)  # as a slice of a projection, not contiguous
    out, after = short_convolution(wide, weight, bias if has_bias else None, state, activation=activation)
    expected = convolve(x, weight, bias if has_bias else None, state, activation)
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    assert torch.equal(after, torch.cat([state, x], dim=1)[:, length:])
    for dtype in (torch.float64, torch.bfloat16):
        given = [one.to(dtype) for one in (x, weight, state)]
        arguments = given[0], given[1], bias.to(dtype) if has_bias else None, given[2]
        in_parts, _ = short_convolution(*arguments, activation=activation)
        with torch.enable_grad():
            whole, _ = short_convolution(*arguments, activation=activation)
        assert in_parts.dtype == dtype
        torch.testing.assert_close(in_parts, whole, rtol=torch.finfo(dtype).eps, atol=1e-14)


@given(length=st.integers(2, 12), width=st.integers(2, 5), data=st.data())
def test_a_sequence_cut_anywhere_gives_the_same_outputs_and_state(length, width, data):
    cut = data.draw(st.integers(1, length - 1))
    x, weight, bias, _ = make_inputs(length, width)
    whole, end = short_convolution(x, weight, bias, activation=F.silu)
    head, carried = short_convolution(x[:, :cut], weight, bias, activation=F.silu)
    tail, carried = short_convolution(x[:, cut:], weight, bias, carried, activation=F.silu)
    assert relative_error(torch.cat([head, tail], dim=1), whole) < 1e-12
    assert torch.equal(carried, end)
    shifted, last = token_shift(x)
    first, carried = token_shift(x[:, :cut])
    second, carried = token_shift(x[:, cut:], carried)
    assert torch.equal(torch.cat([first, second], dim=1), shifted)
    assert torch.equal(carried, last)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("activation", [None, F.silu])
def test_steps_in_place_are_the_whole(width, has_bias, activation):
    x, weight, bias, state = make_inputs(7, width)
    bias = bias if has_bias else None
    expected, end = short_convolution(x, weight, bias, state, activation=activation)
    held, place = state.clone(), state.data_ptr()
    outs = [
        short_convolution_step_(x[:, t : t + 1], weight, bias, held, activation=activation) for t in range(7)
    ]
    assert state.data_ptr() == place
    assert relative_error(torch.cat(outs, dim=1), expected) < 1e-12
    assert torch.equal(held, end)


def test_the_shift_is_the_convolution_whose_weight_is_the_token_before():
    x, _, _, state = make_inputs(7, 2)
    delayed = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(5, 2)
    expected, end = short_convolution(x, delayed, None, state)
    previous, after = token_shift(x, state)
    assert torch.equal(previous, expected)
    assert torch.equal(after, end)
    held = state.clone()
    steps = [token_difference_step_(x[:, t : t + 1], held) for t in range(7)]
    assert torch.equal(torch.cat(steps, dim=1), expected - x)
    assert torch.equal(held, end)


def test_gradients_of_the_shift_reach_the_inputs_and_the_state():
    x, _, _, state = (one.requires_grad_() for one in make_inputs(3, 2))
    previous, after = token_shift(x, state)
    (previous.sum() + 2 * after.sum()).backward()
    assert torch.equal(
        x.grad, torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)[None, :, None].expand(2, 3, 5)
    )
    assert torch.equal(state.grad, torch.ones_like(state))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_16_bit_inputs_are_rounded_once(dtype):
    x, weight, bias, state = make_inputs(20, 4, dtype=dtype)
    exact = convolve(*(one.double() for one in (x, weight, bias, state)), F.silu)
    out, after = short_convolution(x, weight, bias, state, activation=F.silu)
    assert out.dtype == after.dtype == dtype
    # Half a unit in the last place, and a little for the sum in float32, which decides ties.
    assert ((out.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()
    steps = [
        short_convolution_step_(x[:, t : t + 1], weight, bias, state, activation=F.silu) for t in range(20)
    ]
    assert (
        (torch.cat(steps, dim=1).double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 1e-6
    ).all()


def test_a_state_that_is_given_stays_and_one_that_is_returned_is_its_own():
    x, weight, bias, state = make_inputs(7, 4)
    before = state.clone()
    _, after = short_convolution(x, weight, bias, state)
    _, last = token_shift(x, state[:, :1])
    after.zero_(), last.zero_()
    assert torch.equal(state, before)
    assert x.count_nonzero() == x.numel()


@pytest.mark.parametrize("wrong", ["weight", "bias", "state"])
def test_a_shape_that_does_not_fit_is_named(wrong):
    inputs = dict(zip(("x", "weight", "bias", "state"), make_inputs(7, 4), strict=True))
    inputs[wrong] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=wrong):
        short_convolution(*inputs.values())
    with pytest.raises(ValueError, match="state"):
        token_shift(inputs["x"], torch.zeros(2, 5))
