"""Short causal depthwise convolutions and the token shift, with their state: the last inputs.

    out_t = activation(bias + sum over j < W of weight_j * x_{t-W+1+j})        x (B, T, D), weight (D, W)

The state is the last W - 1 inputs, (B, W - 1, D), oldest first, in the dtype of the input: values that are only copied
need no wider one. Sums and the activation are in the wider of float32 and the input's dtype, and rounded once. The
token shift is the input delayed by one token, so its state is (B, 1, D).

Sources: Gu and Dao, arXiv:2312.00752, Sec. 3.4, with W = 4 (convolution); Peng et al., arXiv:2305.13048, Sec. 3.1
(token shift). `causal_conv1d_fn` of Dao-AILab/causal-conv1d computes the same on (B, D, T).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from retbench.ops.precision import cast, wide_dtype

Activation = Callable[[Tensor], Tensor]

_TOKENS_IN_CACHE = 64
"""Tokens that a CPU convolves at once, so that each pass over them finds them in its cache."""


def empty_weight(channels: int, width: int) -> Tensor:
    """Return a weight (D, W) without values, whose channels are adjacent in memory, as those of the inputs are."""
    return torch.empty(width, channels).t()


def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    activation: Activation | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with the tokens before and including the own one.

    Args:
        x: Inputs, (B, T, D).
        weight: (D, W), the weight of the own token last.
        bias: (D,), or None.
        state: The W - 1 inputs before x, (B, W - 1, D), oldest first; None is zeros. Not changed.
        activation: Applied to the sum, for example `torch.nn.functional.silu`; None returns the sum.

    Returns:
        out: (B, T, D) in the dtype of x.
        state: The last W - 1 inputs, (B, W - 1, D) in the dtype of x.

    Raises:
        ValueError: shapes disagree.
    """
    check_convolution(x, weight, bias, state)
    before = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2]) if state is None else state.to(x.dtype)
    wide, length = wide_dtype(x.dtype), x.shape[1]
    weights = weight.to(wide).t().contiguous().unbind(0), None if bias is None else bias.to(wide)
    in_parts = length > _TOKENS_IN_CACHE and x.device.type == "cpu" and not torch.is_grad_enabled()
    if not in_parts:
        out, after = _convolve(x, before, *weights, activation)
        return out, after.clone()  # a copy: a view would keep all inputs, and a caller may update it in place
    out = x.new_empty(x.shape)
    for part, place in zip(x.split(_TOKENS_IN_CACHE, dim=1), out.split(_TOKENS_IN_CACHE, dim=1), strict=True):
        done, before = _convolve(part, before, *weights, activation, place if x.dtype == wide else None)
        place.copy_(done)  # nothing where it is the place itself
    return out, before.clone()


def short_convolution_step_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    *,
    activation: Activation | None = None,
) -> Tensor:
    """Compute one token of `short_convolution` for decoding, and update the state in place. No gradients.

    Args:
        x: Input, (B, 1, D).
        weight: (D, W).
        bias: (D,), or None.
        state: (B, W - 1, D), oldest input first; holds the new state afterwards.
        activation: As of `short_convolution`.

    Returns:
        (B, 1, D) in the dtype of x.
    """
    wide = wide_dtype(x.dtype)
    inputs = torch.cat([state, x], dim=1)  # (B, W, D)
    out = (cast(inputs, wide) * cast(weight, wide).t()).sum(1, keepdim=True)
    state.copy_(inputs[:, 1:])
    return _activate(out if bias is None else out + cast(bias, wide), activation, x.dtype)


def _convolve(
    x: Tensor,
    before: Tensor,
    columns: Sequence[Tensor],
    bias: Tensor | None,
    activation: Activation | None,
    place: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve x (B, T, D) after the W - 1 inputs before it, with W columns (D,) of the weight in the wide dtype.

    The sum is computed in `place` where it is given, which the activation may replace.

    Returns:
        out: (B, T, D) in the dtype of x.
        last: View of the last W - 1 inputs, (B, W - 1, D).
    """
    length, wide = x.shape[1], columns[0].dtype
    inputs = torch.cat([before, x], dim=1)  # (B, W - 1 + T, D)
    *windows, own = (inputs[:, start : start + length].to(wide) for start in range(len(columns)))
    first = own, columns[-1]
    out = torch.mul(*first, out=place) if bias is None else torch.addcmul(bias, *first, out=place)
    for window, column in zip(windows, columns[:-1], strict=True):
        out.addcmul_(window, column)  # in place: an output is as large as the input
    return _activate(out, activation, x.dtype), inputs[:, length:]


def _activate(out: Tensor, activation: Activation | None, dtype: torch.dtype) -> Tensor:
    """Apply the activation, where there is one, and round."""
    return cast(out if activation is None else activation(out), dtype)


def token_shift(x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return for each token the input of the token before it.

    Args:
        x: Inputs, (B, T, D).
        state: The input before x, (B, 1, D); None is zeros. Not changed.

    Returns:
        previous: (B, T, D) in the dtype of x.
        state: The last input, (B, 1, D).

    Raises:
        ValueError: shapes disagree.
    """
    if x.dim() != 3 or (state is not None and tuple(state.shape) != (x.shape[0], 1, x.shape[2])):
        found = None if state is None else tuple(state.shape)
        raise ValueError(f"x must be (B, T, D) and state None or (B, 1, D), got {tuple(x.shape)} and {found}")
    before = x.new_zeros(x.shape[0], 1, x.shape[2]) if state is None else state.to(x.dtype)
    inputs = torch.cat([before, x], dim=1)  # (B, 1 + T, D)
    return inputs[:, :-1], inputs[:, -1:].clone()


def token_difference_step_(x: Tensor, state: Tensor) -> Tensor:
    """Return the input before x, which is the state, less x, (B, 1, D) each, and put x into the state. No gradients."""
    difference = state - x
    state.copy_(x)
    return difference


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> None:
    """Raise ValueError if the shapes disagree."""
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2]:
        raise ValueError(
            f"x must be (B, T, D) and weight (D, W), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    channels, width = weight.shape
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(f"bias must be None or {(channels,)}, got {tuple(bias.shape)}")
    if state is not None and tuple(state.shape) != (x.shape[0], width - 1, channels):
        raise ValueError(f"state must be {(x.shape[0], width - 1, channels)}, got {tuple(state.shape)}")
