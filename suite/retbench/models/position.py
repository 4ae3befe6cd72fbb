"""Rotary positions in the two conventions that the models use, exact at any depth.

Angles are formed in float64 and only their cosine and sine are rounded: in float32 an angle at position 32,768 is off
by up to 2e-3, and in bfloat16 positions above 256 are not even distinct.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from retbench.models.retention import wide_dtype

Layout = Literal["half", "interleaved"]


class Positions(NamedTuple):
    """Where the tokens of one call stand."""

    start: int
    """Position of the first token."""
    cos: Tensor
    """(T, 1, K/2) in the wide dtype."""
    sin: Tensor
    """(T, 1, K/2) in the wide dtype."""


class Rotary(nn.Module):
    """Angles of the rotary embedding.

    half: pairs (x_i, x_{i+K/2}), frequencies base^(-2i/K); Llama, fla.
    interleaved: pairs (x_2i, x_2i+1), frequencies base^(-linspace(0, 1, K/2)), both ends included; torchscale, YOCO.

    Args:
        head_dim: K, the width of a rotated head.
        layout: The convention.
        base: 10,000 in every source.
    """

    frequency: Tensor

    def __init__(self, head_dim: int, layout: Layout, base: float = 10_000.0) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.layout = layout
        self.base = base
        self.register_buffer("frequency", self._frequencies(), persistent=False)

    def _frequencies(self) -> Tensor:
        """(K/2,) float64."""
        pairs = self.head_dim // 2
        if self.layout == "half":
            exponent = torch.arange(pairs, dtype=torch.float64) / pairs
        else:
            exponent = torch.linspace(0, 1, pairs, dtype=torch.float64)
        return self.base**-exponent

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the module to its device, but keep float64 whatever dtype the module is cast to."""
        super()._apply(fn, recurse)
        self.frequency = self._frequencies().to(self.frequency.device)
        return self

    def forward(self, start: int, length: int, dtype: torch.dtype) -> Positions:
        """Cosines and sines of positions start .. start + length - 1, for a model of `dtype`."""
        steps = torch.arange(start, start + length, dtype=torch.float64, device=self.frequency.device)
        angle = steps[:, None, None] * self.frequency  # (T, 1, K/2)
        wide = wide_dtype(dtype)
        return Positions(start, angle.cos().to(wide), angle.sin().to(wide))


def rotate(x: Tensor, positions: Positions, layout: Layout) -> Tensor:
    """Rotate heads x (B, T, H, K) by their positions; the dtype stays that of x."""
    if layout == "half":
        first, second = x.chunk(2, dim=-1)
    else:
        first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = positions.cos, positions.sin
    turned = (first * cos - second * sin, second * cos + first * sin)
    if layout == "half":
        return torch.cat(turned, dim=-1).to(x.dtype)
    return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
