"""Triton kernels of one decode token of the linear recurrences; `fused_linear` states their arguments.

What `fused_kernels` says of imports, dtypes, padding and parameters holds here too.
"""

import triton
import triton.language as tl

from retbench.ops.decay import GATE_TEMPERATURE
from retbench.ops.fused_kernels import load_rotated, normed

_TEMPERATURE = tl.constexpr(GATE_TEMPERATURE)


@triton.jit
def _features(
    head, cos, sin, rows, K: tl.constexpr, WIDTH: tl.constexpr, LAYOUT: tl.constexpr, MAP: tl.constexpr
):
    """Return rows of the K features of a head (WIDTH,), as the maps of linear attention; rows from K on are zero."""
    if MAP == "taylor":
        place = rows - 1 - WIDTH
        single, pair = (rows > 0) & (place < 0), (place >= 0) & (rows < K)
        x = tl.load(head + rows - 1, mask=single, other=0.0).to(tl.float32) * WIDTH**-0.25
        first = tl.load(head + place // WIDTH, mask=pair, other=0.0).to(tl.float32)
        second = tl.load(head + place % WIDTH, mask=pair, other=0.0).to(tl.float32)
        x = tl.where(rows == 0, 1.0, x + first * second * (2 * WIDTH) ** -0.5)
    else:
        x = load_rotated(head, cos, sin, rows, K, LAYOUT)
        if MAP == "elu":
            x = tl.where(rows < K, tl.maximum(x, 0.0) + tl.exp(tl.minimum(x, 0.0)), 0.0)
    return x


@triton.jit
def _softplus(x):
    """Return log(1 + exp(x)) without a GPU's logarithm, whose error near 1 is absolute: small results would be wrong.

    log(1 + y) is 2 artanh(s) of s = y / (2 + y), whose series to s^13 errs by at most 2e-8 of it for y up to 1.
    """
    y = tl.exp(-tl.abs(x))
    s = y / (2.0 + y)
    square = s * s
    series = 1 / 11 + square * (1 / 13)
    series = 1 / 7 + square * (1 / 9 + square * series)
    series = 1.0 + square * (1 / 3 + square * (1 / 5 + square * series))
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def _load_decays(gates, bias, places, inside, GATE: tl.constexpr):
    """Load gates, add a bias, and return their decays by a rule of `fused_linear.Gate`; for time_step the sums."""
    x = tl.load(gates + places, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        x += tl.load(bias + places, mask=inside, other=0.0).to(tl.float32)
    if GATE == "sigmoid":
        x = tl.exp(_softplus(-x) * (-1.0 / _TEMPERATURE))
    if GATE == "exponential":
        x = tl.exp(-tl.exp(x))
    return x


@triton.jit
def linear_step_kernel(
    q,
    k,
    v,
    gates,
    gate_bias,
    gate_rate,
    state,
    cos,
    sin,
    row_norm,
    bonus,
    out,
    query_scale,
    key_scale,
    strides,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    LAYOUT: tl.constexpr,
    MAP: tl.constexpr,
    GATE: tl.constexpr,
    GATES_CHANNELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Advance BLOCK_V columns of one head's state and read them out.

    `strides` are those of q, k, v and gates from sequence to sequence. SHARED heads of values have one of q and k,
    WIDTH wide. Behind the VALUES of v is a 1, whose column of the state is the sum of the weights.
    """
    index = tl.program_id(0).to(tl.int64)
    batch, head = index // H, index % H
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    q_head = q + batch * strides[0] + head // SHARED * WIDTH
    k_head = k + batch * strides[1] + head // SHARED * WIDTH
    values = tl.load(v + batch * strides[2] + head * VALUES + columns, mask=columns < VALUES, other=0.0)
    values = tl.where(columns == VALUES, 1.0, values.to(tl.float32))
    decay = 1.0
    if not GATES_CHANNELS:
        if gates is not None:
            decay = _load_decays(gates + batch * strides[3], gate_bias, head, head < H, GATE)
        if GATE == "time_step":
            time_step = _softplus(decay)
            values *= time_step
            decay = tl.exp(-time_step * tl.exp(tl.load(gate_rate + head).to(tl.float32)))
    summed = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    for start in range(0, K, BLOCK_K):
        rows = start + tl.arange(0, BLOCK_K)
        queries = _features(q_head, cos, sin, rows, K, WIDTH, LAYOUT, MAP) * query_scale
        keys = _features(k_head, cos, sin, rows, K, WIDTH, LAYOUT, MAP) * key_scale
        inside = (rows < K)[:, None] & (columns < V)[None, :]
        tile = state + index * K * V + rows[:, None] * V + columns[None, :]
        held, added = tl.load(tile, mask=inside, other=0.0), keys[:, None] * values[None, :]
        if GATES_CHANNELS:
            decays = _load_decays(gates + batch * strides[3], gate_bias, head * K + rows, rows < K, GATE)
            updated = decays[:, None] * held + added
        else:
            updated = decay * held + added
        tl.store(tile, updated, mask=inside)
        if bonus is not None:  # the output is read from the state before
            weights = tl.load(bonus + head * K + rows, mask=rows < K, other=0.0).to(tl.float32)
            updated = held + weights[:, None] * added
        summed += queries[:, None] * updated
    scale = 1.0 if row_norm is None else tl.load(row_norm + head).to(tl.float32)
    tl.store(out + index * V + columns, tl.sum(summed, axis=0) * scale, mask=columns < V)


@triton.jit
def convolution_step_kernel(
    x,
    weight,
    bias,
    state,
    out,
    x_stride,
    channel_stride,
    token_stride,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Convolve BLOCK channels of one sequence, apply silu, and move their inputs on in the state.

    The last two strides are those of the weight.
    """
    batch = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < D
    held, weights = state + batch * (W - 1) * D + channels, weight + channels * channel_stride
    own = tl.load(x + batch * x_stride + channels, mask=inside, other=0.0)
    last = tl.load(weights + (W - 1) * token_stride, mask=inside, other=0.0)
    summed = own.to(tl.float32) * last.to(tl.float32)
    if bias is not None:
        summed += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    for token in tl.static_range(W - 1):
        before = tl.load(held + token * D, mask=inside, other=0.0)
        factor = tl.load(weights + token * token_stride, mask=inside, other=0.0)
        summed += before.to(tl.float32) * factor.to(tl.float32)
        if token > 0:
            tl.store(held + (token - 1) * D, before, mask=inside)
    tl.store(held + (W - 2) * D, own, mask=inside)
    activated = summed * tl.sigmoid(summed)
    tl.store(out + batch * D + channels, activated.to(out.dtype.element_ty), mask=inside)


@triton.jit
def shift_kernel(
    x,
    state,
    weights,
    out,
    weight_strides,
    B: tl.constexpr,
    D: tl.constexpr,
    J: tl.constexpr,
    KEEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Interpolate BLOCK channels of one token with those of the token before, by J weights each.

    `weight_strides` are those from one weight to the next, and from sequence to sequence.
    """
    batch = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < D
    token = tl.load(x + batch * D + channels, mask=inside, other=0.0)
    own = token.to(tl.float32)
    difference = tl.load(state + batch * D + channels, mask=inside, other=0.0).to(tl.float32) - own
    for j in tl.static_range(J):
        weight = weights + j * weight_strides[0] + batch * weight_strides[1] + channels
        mixed = own + difference * tl.load(weight, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + (j * B + batch) * D + channels, mixed.to(out.dtype.element_ty), mask=inside)
    if KEEPS:
        tl.store(state + batch * D + channels, token, mask=inside)


@triton.jit
def gated_norm_kernel(
    x,
    values,
    skip,
    gate,
    weight,
    out,
    values_stride,
    gate_stride,
    eps,
    D: tl.constexpr,
    P: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the skipped values (D,), heads of P, to one group of a read-out, gate it, and norm it."""
    batch, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside, channels = columns < D // GROUPS, group * (D // GROUPS) + columns
    skipped = tl.load(values + batch * values_stride + channels, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(skip + channels // P, mask=inside, other=0.0).to(tl.float32)
    opened = tl.load(gate + batch * gate_stride + channels, mask=inside, other=0.0).to(tl.float32)
    row = tl.load(x + batch * D + channels, mask=inside, other=0.0) + factor * skipped
    row *= opened * tl.sigmoid(opened)
    row = normed(row, weight + group * (D // GROUPS), None, columns, eps, D // GROUPS, "rms")
    tl.store(out + batch * D + channels, row.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_gate_kernel(
    x,
    weight,
    bias,
    gate,
    out,
    gate_stride,
    weight_stride,
    eps,
    H: tl.constexpr,
    V: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Norm one head of one sequence, and multiply it by silu(gate).

    The norm sum divides by one value more than the V of the head, which follows them. `weight_stride` is that of weight
    and bias from head to head.
    """
    index = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < V
    if NORM == "sum":
        start = x + index * (V + 1)
        values = tl.load(start + columns, mask=inside, other=0.0) / (tl.load(start + V) + eps)
    else:
        values = tl.load(x + index * V + columns, mask=inside, other=0.0).to(tl.float32)
        if weight is not None:
            weight += index % H * weight_stride
        if bias is not None:
            bias += index % H * weight_stride
        values = normed(values, weight, bias, columns, eps, V, NORM)
    if gate is not None:
        start = gate + (index // H) * gate_stride + (index % H) * V
        opened = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
        values = values * opened * tl.sigmoid(opened)
    tl.store(out + index * V + columns, values.to(out.dtype.element_ty), mask=inside)
