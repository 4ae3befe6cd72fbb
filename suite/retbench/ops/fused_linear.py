"""Fused operators of a decode step of the linear recurrences, as `fused` has them for all other parts of a model.

Their eager counterparts are in `linear_operator`, `convolution`, `decay` and the mixers, and the tests compare them.

Why a recurrence takes two launches, `linear_step` and a norm: at batch 1 the heads alone are too few programs to fill a
GPU, so each program of the step takes some columns of the state, which are independent. The norm of a head needs all of
its columns. It therefore follows in a second launch, which reads V values per head, not K V.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from retbench.ops.fused import launch, num_blocks, padded, require
from retbench.ops.registration import operator, shapes_of

TILE = 4096
"""Values of the state that one program holds at once: 16 KiB in float32, 32 per thread."""
MIN_BLOCK_V = 32
"""Fewest columns of the state per program: a row of 32 float32 values is one cache line of 128 bytes."""
MIN_BLOCK_K = 4
"""Fewest rows of the state per tile, which with the fewest columns has a value for each thread of four warps."""
MAX_BLOCK_V = 128
MIN_PROGRAMS = 256
"""Programs that fill a GPU: about two for each multiprocessor of an A100 or H100."""
CHANNEL_BLOCK = 512
"""Channels per program of `convolution_step` and `shift`."""

Gate = Literal["decay", "sigmoid", "exponential", "time_step"]
"""Decays of gates x: x itself; sigmoid(x)^(1/tau) (`decay.gated_log_decay`); exp(-exp(x)) (RWKV); and exp(-t exp(rate))
of a time step t = softplus(x), which values are multiplied by (Mamba-2)."""
FeatureMap = Literal["none", "elu", "taylor"]
"""Maps of queries and keys, those of `mixers.linear_attention.features`."""
_GATES, _MAPS = get_args(Gate), get_args(FeatureMap)


@operator("state")
def linear_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor | None,
    state: Tensor,
    *,
    gate: str = "decay",
    gate_bias: Tensor | None = None,
    gate_rate: Tensor | None = None,
    bonus: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    layout: str = "half",
    feature_map: str = "none",
    query_scale: float = 1.0,
    key_scale: float = 1.0,
    row_norm: Tensor | None = None,
) -> Tensor:
    """Encode q and k, advance the state by one token in place and read it out, as `linear_decayed_step_` does.

    Args:
        q: Query, (B, G, W). Heads of q, k, v and gates must be adjacent in memory; sequences may be any stride apart.
        k: Key, (B, G, W). Each of its heads serves H / G neighbouring heads of v.
        v: Value, (B, H, V), or (B, H, V - 1): the last column of the state is then the sum of the weights.
        gates: (H,) float32, (B, H) or, per channel of the keys, (B, H, K); None does not decay.
        state: (B, H, K, V) float32, contiguous; holds the new state afterwards.
        gate: Rule by which the decays follow from the gates, of `Gate`.
        gate_bias: Added to the gates, H values, or H K where they are per channel.
        gate_rate: Logarithm of the rate, (H,), for time steps.
        bonus: (H, K): the output is read from the state before, with the own token by this weight.
        cos: Cosines as in `Positions`, of which the first K are read; None without rotary positions.
        sin: Sines, likewise.
        layout: Pairs that are rotated, half or interleaved.
        feature_map: Map of q and k, of `FeatureMap`; with taylor K is 1 + W + W^2.
        query_scale: Factor of the query.
        key_scale: Factor of the key.
        row_norm: Factor of each head's read-out, H values; None is one.

    Returns:
        (B, H, V) in float32.
    """
    _check_step(q, k, v, gates, state, gate, feature_map)
    batch, heads, key_dim, value_dim = state.shape
    out = state.new_empty(batch, heads, value_dim)
    block_v = value_block(batch * heads, value_dim)
    sizes: dict[str, object] = {
        "H": heads,
        "K": key_dim,
        "V": value_dim,
        "SHARED": heads // q.shape[1],
        "WIDTH": q.shape[2],
        "VALUES": v.shape[2],
        "LAYOUT": "none" if cos is None else layout,
        "MAP": feature_map,
        "GATE": gate,
        "GATES_CHANNELS": gates is not None and gates.dim() == 3,
        # With fewer values than threads two threads would hold the same, and advance it twice.
        "BLOCK_K": max(MIN_BLOCK_K, min(padded(key_dim), TILE // block_v)),
        "BLOCK_V": block_v,
    }
    strides = q.stride(0), k.stride(0), v.stride(0), _stride_of(gates)
    tensors = q, k, v, gates, gate_bias, gate_rate, state, cos, sin, row_norm, bonus, out
    grid = (batch * heads, num_blocks(value_dim, block_v))  # the second axis of a grid ends at 65,535
    launch("linear_step_kernel", grid, (*tensors, query_scale, key_scale, strides), **sizes)
    return out


@shapes_of("linear_step")
def _(q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, state: Tensor, **rest: Any) -> Tensor:
    return state.new_empty(state.shape[0], state.shape[1], state.shape[3])


def _check_step(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, state: Tensor, gate: str, feature_map: str
) -> None:
    """Raise ValueError unless a step's names are known and its tensors are as the kernel reads them."""
    require(gate in _GATES, f"the gate must be one of {_GATES}, got {gate!r}", gates)
    require(feature_map in _MAPS, f"the feature map must be one of {_MAPS}, got {feature_map!r}", q)
    require(state.is_contiguous() and state.dtype == torch.float32, "state must be contiguous float32", state)
    if gates is not None:
        require(gates.stride(-1) == 1, "heads must be adjacent in memory", gates)
    for one in (q, k, v, *([] if gates is None or gates.dim() < 3 else [gates])):
        require(one.stride()[1:] == (one.shape[2], 1), "heads must be adjacent in memory", one)


def _stride_of(gates: Tensor | None) -> int:
    """Return the stride of gates from sequence to sequence, 0 where all have the same."""
    return 0 if gates is None or gates.dim() == 1 else gates.stride(0)


@operator()
def norm_gate(
    x: Tensor,
    weight: Tensor | None,
    gate: Tensor | None,
    kind: str,
    eps: float,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """Norm and gate the read-out of every head: (norm(x) * weight + bias) * silu(gate).

    Args:
        x: Read-out, (B, H, V) float32, contiguous.
        weight: Weight of the norm, (V,), the same for all heads, or (H V,); None is one.
        gate: (B, H V), sequences any stride apart; None leaves it out.
        kind: rms, layer or none, over the V values of a head; or sum, which divides x (B, H, V + 1) by its last value.
        eps: Added to the mean square, the variance or the sum.
        dtype: Dtype of the result.
        bias: As `weight`; None is zero.

    Returns:
        (B, H V) in `dtype`.
    """
    batch, heads, value_dim = x.shape
    value_dim -= kind == "sum"
    require(x.is_contiguous(), "x must be contiguous", x)
    require(gate is None or gate.stride(-1) == 1, "the gate must be contiguous in each row", gate)
    out = x.new_empty((batch, heads * value_dim), dtype=dtype)
    weight_stride = 0 if weight is None or weight.shape[0] == value_dim else value_dim
    strides = 0 if gate is None else gate.stride(0), weight_stride
    sizes = {"H": heads, "V": value_dim, "BLOCK": padded(value_dim)}
    launch(
        "norm_gate_kernel", (batch * heads,), (x, weight, bias, gate, out, *strides, eps), NORM=kind, **sizes
    )
    return out


@shapes_of("norm_gate")
def _(
    x: Tensor,
    weight: Tensor | None,
    gate: Tensor | None,
    kind: str,
    eps: float,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] * (x.shape[2] - (kind == "sum"))), dtype=dtype)


@operator()
def gated_norm(
    x: Tensor,
    values: Tensor,
    skip: Tensor,
    gate: Tensor,
    weight: Tensor,
    num_groups: int,
    eps: float,
) -> Tensor:
    """Add skipped values to a read-out, gate it, and norm groups of channels: RMSNorm((x + skip values) silu(gate)).

    Args:
        x: Read-out, (B, H, P) float32, contiguous.
        values: (B, H P), sequences any stride apart.
        skip: (H,).
        gate: (B, H P), sequences any stride apart.
        weight: (H P,).
        num_groups: Number of groups of neighbouring channels, each of which is normed alone.
        eps: Added to the mean square.

    Returns:
        (B, H P) in the dtype of the weight.
    """
    batch, heads, width = x.shape
    channels = heads * width
    require(x.is_contiguous(), "x must be contiguous", x)
    require(values.stride(-1) == 1, "values must be contiguous in each row", values)
    require(gate.stride(-1) == 1, "the gate must be contiguous in each row", gate)
    out = x.new_empty((batch, channels), dtype=weight.dtype)
    arguments = (x, values, skip, gate, weight, out, values.stride(0), gate.stride(0), eps)
    sizes = {"D": channels, "P": width, "GROUPS": num_groups, "BLOCK": padded(channels // num_groups)}
    launch("gated_norm_kernel", (batch, num_groups), arguments, **sizes)
    return out


@shapes_of("gated_norm")
def _(x: Tensor, values: Tensor, skip: Tensor, gate: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] * x.shape[2]), dtype=weight.dtype)


@operator("state")
def convolution_step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    """Compute one token of a short convolution with silu, and advance its state in place.

    Args:
        x: Input, (B, D), sequences any stride apart.
        weight: (D, W), in any layout.
        bias: (D,) or None.
        state: (B, W - 1, D) in the dtype of x, contiguous; see `convolution.short_convolution_step_`.

    Returns:
        (B, D) in the dtype of x.
    """
    batch, channels = x.shape
    require(x.stride(1) == 1, "x must be contiguous in each row", x)
    require(state.is_contiguous() and state.dtype == x.dtype, f"state must be contiguous {x.dtype}", state)
    out = x.new_empty(batch, channels)
    arguments = (x, weight, bias, state, out, x.stride(0), *weight.stride())
    grid = (batch, num_blocks(channels, CHANNEL_BLOCK))
    sizes = {"D": channels, "W": weight.shape[1], "BLOCK": CHANNEL_BLOCK}
    launch("convolution_step_kernel", grid, arguments, **sizes)
    return out


@shapes_of("convolution_step")
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@operator("state")
def shift(x: Tensor, state: Tensor, weights: Tensor, *, keeps: bool) -> Tensor:
    """Interpolate one token with the token before it: x + (state - x) * weight, for each of J weights.

    Args:
        x: (B, D), contiguous.
        state: The token before, (B, 1, D) in the dtype of x, contiguous.
        weights: (J, 1, D), or (J, B, D), contiguous.
        keeps: Put x into the state.

    Returns:
        (J, B, D) in the dtype of x.
    """
    batch, channels = x.shape
    require(x.is_contiguous(), "x must be contiguous", x)
    require(state.is_contiguous() and state.dtype == x.dtype, f"state must be contiguous {x.dtype}", state)
    require(weights.is_contiguous(), "weights must be contiguous", weights)
    out = x.new_empty(weights.shape[0], batch, channels)
    strides = weights.stride(0), weights.stride(1) if weights.shape[1] > 1 else 0
    sizes = {"B": batch, "D": channels, "J": weights.shape[0], "KEEPS": keeps, "BLOCK": CHANNEL_BLOCK}
    grid = (batch, num_blocks(channels, CHANNEL_BLOCK))
    launch("shift_kernel", grid, (x, state, weights, out, strides), **sizes)
    return out


@shapes_of("shift")
def _(x: Tensor, state: Tensor, weights: Tensor, *, keeps: bool) -> Tensor:
    return x.new_empty(weights.shape[0], *x.shape)


def value_block(num_heads: int, value_dim: int) -> int:
    """Return the columns of a state per program: the most that still give MIN_PROGRAMS programs, in its bounds.

    Args:
        num_heads: Heads of all sequences, B H.
        value_dim: V.
    """
    block = min(MAX_BLOCK_V, max(MIN_BLOCK_V, padded(value_dim)))
    while block > MIN_BLOCK_V and num_heads * num_blocks(value_dim, block) < MIN_PROGRAMS:
        block //= 2
    return block
