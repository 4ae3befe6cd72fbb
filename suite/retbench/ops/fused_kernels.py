"""Triton kernels of one decode token; `fused` launches them and states their arguments.

Importing this module imports Triton, so `fused` does it when a kernel first runs. Each program computes in float32 and
rounds once, when it stores. Sizes that are no powers of two are padded to one and masked.

Letters of shapes are those of `retbench.ops`. Parameters without an annotation are pointers or numbers of a launch;
`tl.constexpr` ones are compiled in.
"""

import triton
import triton.language as tl


@triton.jit
def _load_rotated(head, cos, sin, columns, K: tl.constexpr, LAYOUT: tl.constexpr):
    """Return columns of a head (K,), rotated by cos and sin (K,); columns from K on are zero."""
    inside = columns < K
    x = tl.load(head + columns, mask=inside, other=0.0).to(tl.float32)
    if LAYOUT != "none":
        if LAYOUT == "half":
            partner = tl.where(columns < K // 2, columns + K // 2, columns - K // 2)
        else:
            partner = tl.where(columns % 2 == 0, columns + 1, columns - 1)
        other = tl.load(head + partner, mask=inside, other=0.0).to(tl.float32)
        turned = tl.load(cos + columns, mask=inside, other=0.0) * x
        x = turned + tl.load(sin + columns, mask=inside, other=0.0) * other
    return x


@triton.jit
def _advanced(state, decay, keys, values, rows, columns, K: tl.constexpr, V: tl.constexpr):
    """Advance a tile of a state (K, V) in place, and return it; columns from V on are zero.

    The decay is one number, or one for each row.
    """
    inside = (rows < K)[:, None] & (columns < V)[None, :]
    tile = state + rows[:, None] * V + columns[None, :]
    updated = decay * tl.load(tile, mask=inside, other=0.0) + keys[:, None] * values[None, :]
    tl.store(tile, updated, mask=inside)
    return updated


@triton.jit
def _normed(x, weight, bias, columns, eps, WIDTH: tl.constexpr, NORM: tl.constexpr):
    """Return x after an rms or layer norm over its WIDTH columns, or unchanged for none; padding of x is zero."""
    inside = columns < WIDTH
    if NORM == "layer":
        x = tl.where(inside, x - tl.sum(x, axis=0) / WIDTH, 0.0)
    if NORM != "none":
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    if weight is not None:
        x = x * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        x = x + tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def retention_step_kernel(
    q,
    k,
    v,
    decay,
    state,
    cos,
    sin,
    row_norm,
    out,
    key_scale,
    strides,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    LAYOUT: tl.constexpr,
    DECAYS_CHANNELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Advance BLOCK_V columns of one head's state and read them out.

    `strides` are those of q, k, v and decay from sequence to sequence.
    """
    index = tl.program_id(0).to(tl.int64)
    batch, head = index // H, index % H
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    if not DECAYS_CHANNELS:
        gamma = tl.load(decay + batch * strides[3] + head)
    values = tl.load(v + batch * strides[2] + head * V + columns, mask=columns < V, other=0.0).to(tl.float32)
    summed = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    for start in range(0, K, BLOCK_K):
        rows = start + tl.arange(0, BLOCK_K)
        queries = _load_rotated(q + batch * strides[0] + head * K, cos, sin, rows, K, LAYOUT)
        keys = _load_rotated(k + batch * strides[1] + head * K, cos, sin, rows, K, LAYOUT) * key_scale
        if DECAYS_CHANNELS:
            gammas = decay + batch * strides[3] + head * K + rows
            gamma = tl.load(gammas, mask=rows < K, other=0.0)[:, None]
        summed += queries[:, None] * _advanced(
            state + index * K * V, gamma, keys, values, rows, columns, K, V
        )
    scale = 1.0 if row_norm is None else tl.load(row_norm + head).to(tl.float32)
    tl.store(out + index * V + columns, tl.sum(summed, axis=0) * scale, mask=columns < V)


@triton.jit
def norm_gate_kernel(
    x,
    weight,
    gate,
    out,
    gate_stride,
    eps,
    H: tl.constexpr,
    V: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Norm one head of one sequence, and multiply it by silu(gate)."""
    index = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < V
    values = tl.load(x + index * V + columns, mask=inside, other=0.0).to(tl.float32)
    values = _normed(values, weight, None, columns, eps, V, NORM)
    if gate is not None:
        start = gate + (index // H) * gate_stride + (index % H) * V
        opened = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
        values = values * opened * tl.sigmoid(opened)
    tl.store(out + index * V + columns, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rotate_and_cache_kernel(
    qkv,
    cos,
    sin,
    position,
    keys,
    values,
    out,
    qkv_stride,
    cache_batch_stride,
    cache_head_stride,
    sinks,
    window,
    H: tl.constexpr,
    HKV: tl.constexpr,
    K: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotate one query head, or rotate and cache one key head, or cache one value head."""
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < K
    source = qkv + batch * qkv_stride + head * K
    if head < H:
        rotated = _load_rotated(source, cos, sin, columns, K, LAYOUT)
        tl.store(out + (batch * H + head) * K + columns, rotated.to(out.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(position)
        if window > 0:
            slot = tl.where(slot < sinks, slot, sinks + (slot - sinks) % window)
        cached = ((head - H) % HKV).to(tl.int64)  # a cache may have more values than int32 counts
        at = batch * cache_batch_stride + cached * cache_head_stride + slot * K + columns
        if head < H + HKV:
            rotated = _load_rotated(source, cos, sin, columns, K, LAYOUT)
            tl.store(keys + at, rotated.to(keys.dtype.element_ty), mask=inside)
        else:
            tl.store(values + at, tl.load(source + columns, mask=inside, other=0.0), mask=inside)


@triton.jit
def add_norm_kernel(
    x,
    added,
    weight,
    bias,
    total,
    out,
    eps,
    D: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Norm one row of x, or of x + added, which is rounded and stored first."""
    start = tl.program_id(0).to(tl.int64) * D
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    row = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
    if added is not None:
        row = row + tl.load(added + start + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = row.to(total.dtype.element_ty)
        tl.store(total + start + columns, rounded, mask=inside)
        row = rounded.to(tl.float32)
    row = _normed(row, weight, bias, columns, eps, D, NORM)
    tl.store(out + start + columns, row.to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_multiply_kernel(gate_up, out, row_stride, F: tl.constexpr, BLOCK: tl.constexpr):
    """Multiply BLOCK columns of silu(gate) by those of up, of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < F
    source = gate_up + row * row_stride
    gate = tl.load(source + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + F + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * F + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)
