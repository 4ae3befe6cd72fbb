"""Triton kernels of one decode token; `fused` launches them and states their arguments.

Importing this module imports Triton, so `fused` does it when a kernel first runs. Each program computes in float32 and
rounds once, when it stores. Sizes that are no powers of two are padded to one and masked.

Letters of shapes are those of `retbench.ops`. Parameters without an annotation are pointers or numbers of a launch;
`tl.constexpr` ones are compiled in.
"""

import triton
import triton.language as tl


@triton.jit
def load_rotated(head, cos, sin, columns, K: tl.constexpr, LAYOUT: tl.constexpr):
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
def normed(x, weight, bias, columns, eps, WIDTH: tl.constexpr, NORM: tl.constexpr):
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
        rotated = load_rotated(source, cos, sin, columns, K, LAYOUT)
        tl.store(out + (batch * H + head) * K + columns, rotated.to(out.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(position)
        if window > 0:
            slot = tl.where(slot < sinks, slot, sinks + (slot - sinks) % window)
        cached = ((head - H) % HKV).to(tl.int64)  # a cache may have more values than int32 counts
        at = batch * cache_batch_stride + cached * cache_head_stride + slot * K + columns
        if head < H + HKV:
            rotated = load_rotated(source, cos, sin, columns, K, LAYOUT)
            tl.store(keys + at, rotated.to(keys.dtype.element_ty), mask=inside)
        else:
            tl.store(values + at, tl.load(source + columns, mask=inside, other=0.0), mask=inside)


@triton.jit
def cache_latent_kernel(
    q,
    entry,
    cos,
    sin,
    position,
    weight,
    latents,
    out,
    q_stride,
    entry_stride,
    cache_batch_stride,
    query_scale,
    eps,
    H: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Scale one query head and rotate its last P values, or norm a latent (R,), rotate its key (P,) and cache both."""
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    turned = tl.arange(0, BLOCK_P)
    if head < H:
        source, target = q + batch * q_stride + head * K, out + (batch * H + head) * K
        kept = tl.arange(0, BLOCK_K)
        content = tl.load(source + kept, mask=kept < K - P, other=0.0).to(tl.float32) * query_scale
        tl.store(target + kept, content.to(out.dtype.element_ty), mask=kept < K - P)
        rotated = load_rotated(source + K - P, cos, sin, turned, P, "half") * query_scale
        tl.store(target + K - P + turned, rotated.to(out.dtype.element_ty), mask=turned < P)
    else:
        source = entry + batch * entry_stride
        target = latents + batch * cache_batch_stride + tl.load(position) * (R + P)
        columns = tl.arange(0, BLOCK_R)
        latent = tl.load(source + columns, mask=columns < R, other=0.0).to(tl.float32)
        latent = normed(latent, weight, None, columns, eps, R, "rms")
        tl.store(target + columns, latent.to(latents.dtype.element_ty), mask=columns < R)
        key = load_rotated(source + R, cos, sin, turned, P, "half")
        tl.store(target + R + turned, key.to(latents.dtype.element_ty), mask=turned < P)


@triton.jit
def add_norm_kernel(
    x,
    added,
    weight,
    bias,
    total,
    out,
    x_stride,
    eps,
    D: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Norm one row of x, or of x + added, which is rounded and stored first."""
    index = tl.program_id(0).to(tl.int64)
    start = index * D
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    row = tl.load(x + index * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if added is not None:
        row = row + tl.load(added + start + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = row.to(total.dtype.element_ty)
        tl.store(total + start + columns, rounded, mask=inside)
        row = rounded.to(tl.float32)
    row = normed(row, weight, bias, columns, eps, D, NORM)
    tl.store(out + start + columns, row.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activate_kernel(
    x,
    factor,
    out,
    x_stride,
    factor_stride,
    KIND: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Activate BLOCK columns of one row, and multiply them by those of a factor."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < F
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if KIND == "relu_squared":
        values = tl.maximum(values, 0.0) * values
    elif KIND == "silu":
        values = values * tl.sigmoid(values)
    else:
        values = tl.sigmoid(values)
    if factor is not None:
        values *= tl.load(factor + row * factor_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * F + columns, values.to(out.dtype.element_ty), mask=inside)
