"""Rotary positions against complex multiplication, and their exactness at depth."""

import pytest
import torch

from retbench.ops.position import Rotary, rotary_frequencies, rotate, scale_frequencies


def complex_rotation(x, position, layout):
    """The pairs of a head as complex numbers, times e^(i position frequency)."""
    pairs = x.shape[-1] // 2
    first, second = (x[..., :pairs], x[..., pairs:]) if layout == "half" else (x[..., 0::2], x[..., 1::2])
    turned = torch.complex(first, second) * torch.exp(
        1j * position * rotary_frequencies(2 * pairs, layout, 10_000.0)
    )
    if layout == "half":
        return torch.cat([turned.real, turned.imag], dim=-1)
    return torch.stack([turned.real, turned.imag], dim=-1).flatten(-2)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotation_is_complex_multiplication(layout):
    x = torch.randn(1, 3, 2, 8, dtype=torch.float64)
    found = rotate(x, Rotary(8, layout)(40_000, 3, torch.float64), layout)
    for t in range(3):
        assert torch.allclose(found[:, t], complex_rotation(x[:, t], 40_000 + t, layout), atol=1e-9)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_products_depend_on_the_distance_alone(layout):
    rotary = Rotary(16, layout)
    q, k = torch.randn(1, 1, 1, 16, dtype=torch.float64), torch.randn(1, 1, 1, 16, dtype=torch.float64)

    def product(i, j):
        return (rotate(q, rotary(i, 1, q.dtype), layout) * rotate(k, rotary(j, 1, q.dtype), layout)).sum()

    assert torch.allclose(product(7, 3), product(32_004, 32_000), atol=1e-9)


def test_frequencies_of_the_two_conventions():
    assert rotary_frequencies(4, "half", 10_000.0).tolist() == [1.0, pytest.approx(0.01)]
    assert rotary_frequencies(4, "interleaved", 10_000.0).tolist() == [1.0, pytest.approx(1e-4)]


def test_angles_stay_exact_when_the_model_is_cast_down():
    rotary = Rotary(8, "half").to(torch.bfloat16)
    cast = rotary(32_767, 1, torch.bfloat16)
    exact = Rotary(8, "half")(32_767, 1, torch.float64)
    assert cast.cos.dtype == torch.float32
    assert torch.allclose(cast.cos.double(), exact.cos, atol=1e-7)


def test_frequencies_are_scaled_by_their_turns_within_the_original_length() -> None:
    turns = torch.tensor([0.5, 1.0, 2.5, 4.0, 100.0]).double()
    frequency = 2 * torch.pi * turns / 8192
    found = scale_frequencies(
        frequency, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_len=8192
    )
    expected = torch.tensor([1 / 8, 1 / 8, (1 + 1 / 8) / 2, 1.0, 1.0]).double()
    torch.testing.assert_close(found / frequency, expected)
    linear = scale_frequencies(
        frequency, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_len=None
    )
    torch.testing.assert_close(linear, frequency / 8)
