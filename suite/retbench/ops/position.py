"""Rotary positions in both conventions of the models, and other values that depend on the position, at any depth.

Angles are computed in float64, and only their cosine and sine are rounded. In float32 an angle at position 32,768 has
an error of up to 2e-3, and in bfloat16 positions above 256 are not distinct.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retbench.ops import ROTARY_BASE, Layout
from retbench.ops.precision import Float64Constant, cast, wide_dtype


class Positions(NamedTuple):
    """Positions of the tokens of one call."""

    start: int
    """Position of the first token."""
    length: int
    """T."""
    cos: Tensor | None = None
    """Cosine for each value of a head, (T, 1, K) in the wide dtype; with a key scale (T, 2, 1, K), the first of the two
    for queries, the second for keys and scaled. None without rotary positions."""
    sin: Tensor | None = None
    """Sine for the partner of each value, with its sign, likewise."""
    row_norm: Tensor | None = None
    """(T, H, 1) in the model's dtype: one over the square root of the row sum of D, if a variant divides by it."""
    on_device: Tensor | None = None
    """(1,) int64: the position of a single token for the fused operators; None for the eager ones."""

    @property
    def last(self) -> "Positions":
        """The position of the last token."""
        values = (None if one is None else one[-1:] for one in (self.cos, self.sin, self.row_norm))
        return Positions(self.start + self.length - 1, 1, *values)

    def part(self, index: int) -> "Positions":
        """Return the positions of queries, 0, or of keys, 1, where their tables differ."""
        assert self.cos is not None
        assert self.sin is not None
        return self._replace(cos=self.cos[:, index], sin=self.sin[:, index])


class NoEncoding(nn.Module):
    """Encoding for mixers that need position numbers only."""

    def forward(self, start: int, length: int, dtype: torch.dtype) -> Positions:
        """Return positions start .. start + length - 1."""
        return Positions(start, length)


def rotary_frequencies(head_dim: int, layout: Layout, base: float) -> Tensor:
    """Return the frequency of each pair of a head, (K/2,) float64.

    half: pairs (x_i, x_{i+K/2}), frequencies base^(-2i/K); Llama, fla.
    interleaved: pairs (x_2i, x_2i+1), frequencies base^(-linspace(0, 1, K/2)), both ends included; torchscale, YOCO.
    """
    pairs = head_dim // 2
    if layout == "half":
        exponent = torch.arange(pairs, dtype=torch.float64) / pairs
    else:
        exponent = torch.linspace(0, 1, pairs, dtype=torch.float64)
    return base**-exponent


def scale_frequencies(
    frequency: Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_len: int | None,
) -> Tensor:
    """Divide rotary frequencies by a factor, for contexts longer than the original one.

    linear (arXiv:2306.15595), without an original length: all of them. llama3 (transformers, modeling_rope_utils.py):
    those that turn at most `low_freq_factor` times within the original length; those that turn `high_freq_factor` times
    or more are kept, and those between are interpolated.
    """
    if original_len is None:
        return frequency / factor
    turns = original_len * frequency / (2 * math.pi)
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return torch.lerp(frequency / factor, frequency, kept)


def signed_frequencies(frequency: Tensor, layout: Layout) -> Tensor:
    """Return the frequency of each value of a head, (K,) float64, negative for the first of a pair.

    The first of a pair becomes first cos - second sin, the second becomes second cos + first sin. So the cosine and the
    sine of these frequencies are the factors of a value and of its partner.

    Args:
        frequency: That of each pair, (K/2,).
        layout: Order of the values.
    """
    if layout == "half":
        return torch.cat([-frequency, frequency])
    return torch.stack([-frequency, frequency], dim=-1).flatten()


class Rotary(nn.Module):
    """Cosines and sines of the rotary embedding, and other values that depend on the position only.

    Args:
        head_dim: K, the width of a rotated head.
        layout: Determines the frequencies here, and the pairs in `rotate`.
        base: The slowest pair turns by about 1 / base per token.
        normed_decay: Returns the logarithm of the decay of each head, (H,), if retention is divided by the square
            root of the row sum of D.
        key_scale: Factor of rotated keys; with it keys have other tables than queries.
        rescale: Changes the frequencies of the pairs, (K/2,) float64.
    """

    def __init__(
        self,
        head_dim: int,
        layout: Layout,
        base: float = ROTARY_BASE,
        normed_decay: Callable[[], Tensor] | None = None,
        key_scale: float | None = None,
        rescale: Callable[[Tensor], Tensor] = lambda frequency: frequency,
    ) -> None:
        super().__init__()
        self.frequency = Float64Constant(
            lambda: signed_frequencies(rescale(rotary_frequencies(head_dim, layout, base)), layout)
        )
        self.normed_decay = None if normed_decay is None else Float64Constant(normed_decay)
        self.scale = None
        if key_scale is not None:
            self.scale = Float64Constant(
                lambda: torch.tensor([1.0, key_scale], dtype=torch.float64).view(2, 1, 1)
            )

    def forward(self, start: int, length: int, dtype: torch.dtype) -> Positions:
        """Return positions start .. start + length - 1 for a model of `dtype`."""
        frequency = self.frequency.value
        steps = torch.arange(start, start + length, dtype=torch.float64, device=frequency.device)
        angle = steps[:, None, None] * frequency  # (T, 1, K)
        # Joined, so that compiled code keeps them in memory instead of computing them anew in every block.
        tables = torch.stack([angle.cos(), angle.sin()])
        if self.scale is not None:
            tables = tables.unsqueeze(2) * self.scale.value  # (2, T, 2, 1, K)
        cos, sin = tables.to(wide_dtype(dtype)).unbind()
        row_norm = None
        if self.normed_decay is not None:
            row_norm = inverse_row_norm(self.normed_decay.value, start, length).to(dtype)
        return Positions(start, length, cos, sin, row_norm)


def inverse_row_norm(log_decay: Tensor, start: int, length: int) -> Tensor:
    """Return the inverse square root of the row sums of D at positions start .. start + length - 1, (T, H, 1) float64.

    Args:
        log_decay: Logarithm of the decay of each head, (H,) float64.
        start: The first position.
        length: T.
    """
    tokens = torch.arange(start + 1, start + length + 1, dtype=torch.float64, device=log_decay.device)
    row_sum = torch.expm1(tokens[:, None] * log_decay) / torch.expm1(log_decay)
    row_sum = torch.where(log_decay == 0, tokens[:, None], row_sum)  # without decay: 0 / 0
    return row_sum.rsqrt().unsqueeze(-1)


def rotate(x: Tensor, positions: Positions, layout: Layout) -> Tensor:
    """Rotate heads x (B, T, H, K), or (B, T, 2, H, K) of queries and keys, by their positions; the dtype stays."""
    cos, sin = positions.cos, positions.sin
    assert cos is not None
    assert sin is not None
    if torch.compiler.is_compiling():
        # Compiled code keeps what is concatenated in memory, where it would compute a sum anew for each of its readers:
        # a rotated key for every column of a state.
        return _concatenated(x, cos, sin, layout).to(x.dtype)
    return cast(torch.addcmul(x * cos, _partners(x, layout), sin), x.dtype)


def _concatenated(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Return the rotated heads put together from the first and the second values of their pairs."""
    if layout == "half":
        first, second = x.chunk(2, dim=-1)
        turn, cross = cos.chunk(2, dim=-1)[1], sin.chunk(2, dim=-1)[1]
        return torch.cat([first * turn - second * cross, second * turn + first * cross], dim=-1)
    first, second = x[..., 0::2], x[..., 1::2]
    turn, cross = cos[..., 1::2], sin[..., 1::2]
    return torch.stack([first * turn - second * cross, second * turn + first * cross], dim=-1).flatten(-2)


def _partners(x: Tensor, layout: Layout) -> Tensor:
    """Return for each value of a head (..., K) the other one of its pair."""
    if layout == "half":
        return x.roll(x.shape[-1] // 2, dims=-1)
    flipped: Tensor = x.unflatten(-1, (-1, 2)).flip(-1)
    return flipped.flatten(-2)
