"""RMSNorm with gradients: equal to torch's, and differentiated right."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from retbench.ops.rms_norm import rms_norm

EPS = 1e-6


def inputs(shape: tuple[int, ...], dtype: torch.dtype, *, weighted: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(shape[-1], generator=generator).to(dtype).requires_grad_()
    return [x, weight] if weighted else [x]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
@settings(deadline=None, max_examples=20)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple),
    width=st.integers(1, 70),
    scale=st.sampled_from([1e-5, 1.0, 1e3]),
)
def test_it_is_torchs_norm_with_torchs_gradients(
    weighted: bool, dtype: torch.dtype, limit: float, shape: tuple[int, ...], width: int, scale: float
) -> None:
    leaves = inputs((*shape, width), dtype, weighted=weighted)
    x, weight = leaves[0] * scale, leaves[1] if weighted else None
    found, expected = rms_norm(x, weight, EPS), F.rms_norm(x, (width,), weight, EPS)
    torch.testing.assert_close(found, expected, atol=limit, rtol=limit)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = [torch.autograd.grad(out, leaves, grad, retain_graph=True) for out in (found, expected)]
    # Terms cancel: in a row of one value nearly all of its gradient. So errors are relative to the terms.
    factor = float((leaves[0].detach() * scale).square().mean(-1).add(EPS).rsqrt().max())
    terms = float((grad if weight is None else grad * weight.detach()).abs().max()) * factor * scale
    sizes = [terms, float(grad.abs().sum()) * width**0.5]
    for ours, theirs, size in zip(*gradients, sizes, strict=False):
        torch.testing.assert_close(ours / (size + 1e-30), theirs / (size + 1e-30), atol=limit, rtol=0)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0)]
)
@given(
    ones=st.integers(0, 3),
    width=st.integers(1, 3000),
    scale=st.sampled_from([1e-5, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_a_single_row_without_gradients_is_torchs_norm(
    weighted: bool, dtype: torch.dtype, limit: float, ones: int, width: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(2, width, generator=generator, dtype=torch.float64).mul_(scale).to(dtype)
    x = x.view(*[1] * ones, width)
    kept, weight = x.clone(), weight if weighted else None
    with torch.inference_mode():
        found, expected = rms_norm(x, weight, EPS), F.rms_norm(x, (width,), weight, EPS)
    torch.testing.assert_close(found, expected, atol=0, rtol=limit)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("value", [0.0, 1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("eps", [0.0, EPS])
def test_a_single_row_without_a_finite_norm_is_torchs(value: float, eps: float) -> None:
    x, weight = torch.tensor([[value, 0.0, 1.0 if value else 0.0]]), torch.ones(3)
    with torch.no_grad():
        for one in (weight, None):
            expected = F.rms_norm(x, (3,), one, eps)
            torch.testing.assert_close(rms_norm(x, one, eps), expected, equal_nan=True)


def test_a_single_row_may_be_a_fake_tensor_or_a_part_of_another() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).t()[:1]
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, None, EPS), F.rms_norm(x, (5,), None, EPS))
        with FakeTensorMode(), torch.device("cpu"):
            assert rms_norm(torch.empty(1, 1, 5), None, EPS).shape == (1, 1, 5)


@pytest.mark.parametrize("weighted", [True, False])
def test_its_gradients_are_those_of_differences(weighted: bool) -> None:
    leaves = inputs((2, 3, 7), torch.float64, weighted=weighted)
    assert torch.autograd.gradcheck(lambda x, weight=None: rms_norm(x, weight, EPS), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_computes_the_same_with_and_without_gradients(dtype: torch.dtype) -> None:
    x, weight = inputs((3, 64), dtype, weighted=True)
    with torch.no_grad():
        expected = rms_norm(x, weight, EPS)
    torch.testing.assert_close(rms_norm(x, weight, EPS), expected, atol=1e-6, rtol=1e-6)


def test_autocast_does_not_round_within_it() -> None:
    x, weight = inputs((3, 64), torch.float32, weighted=True)
    expected = rms_norm(x, weight, EPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(rms_norm(x, weight, EPS), expected, atol=0, rtol=0)


def test_autocast_leaves_a_single_row_without_gradients_to_torch() -> None:
    x, weight = inputs((1, 64), torch.float32, weighted=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.rms_norm(x, (64,), weight, EPS)
        torch.testing.assert_close(rms_norm(x, weight, EPS), expected, atol=0, rtol=0)
