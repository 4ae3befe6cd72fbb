"""Fused operators of a decode step on a GPU: each is one launch of a Triton kernel, for all architectures alike.

One token moves few bytes besides the weights and the state, so many small kernels cost more time than they move data.
The operators here join what lies between two matrix products. Their eager counterparts are in `linear_operator`,
`position` and `layers`, and the tests compare them.

Every operator is registered with torch, so that a dispatch mode counts it as one kernel, a compiled step holds it as
one node, and fake tensors give its shapes without a GPU. The operators have no gradients.

Why retention takes two launches, `retention_step` and `norm_gate`: at batch 1 the heads alone are too few programs to
fill a GPU, so each program of the step takes some columns of the state, which are independent. The norm of a head needs
all of its columns. It therefore follows in a second launch, which reads V values per head, not K V.
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from retbench.ops import DecodeOperators
from retbench.ops.kernels import TRITON_CURE, launch_problem
from retbench.ops.registration import operator, shapes_of

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TILE = 4096
"""Values of the state that one program holds at once: 16 KiB in float32, 32 per thread."""
MIN_BLOCK_V = 32
"""Fewest columns of the state per program: a row of 32 float32 values is one cache line of 128 bytes."""
MIN_BLOCK_K = 4
"""Fewest rows of the state per tile, which with the fewest columns has a value for each thread of four warps."""
MAX_BLOCK_V = 128
MIN_PROGRAMS = 256
"""Programs that fill a GPU: about two for each multiprocessor of an A100 or H100."""
SILU_BLOCK = 1024
"""Columns per program of `silu_multiply`."""


class FusedSteps(nn.Module):
    """Base of modules that can compute one token by the fused operators.

    Attributes:
        fused: True if they do; `Decoder.set_decode_operators` sets it.
    """

    fused = False

    def steps_fused(self, x: Tensor) -> bool:
        """Return True if an input (B, T, D) is one token, without gradients, for the fused operators."""
        return self.fused and x.shape[1] == 1 and not torch.is_grad_enabled()


@operator("state")
def retention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    state: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    row_norm: Tensor | None,
    layout: str,
    key_scale: float,
) -> Tensor:
    """Rotate q and k, advance the state by one token in place and read it out, as `linear_decayed_step_` does.

    Args:
        q: Query, (B, H, K). Heads of q, k and v must be adjacent in memory; sequences may be any stride apart.
        k: Key, (B, H, K).
        v: Value, (B, H, V).
        decay: The decay itself in float32, (H,), (B, H) or, per channel of the keys, (B, H, K).
        state: (B, H, K, V) float32, contiguous; holds the new state afterwards.
        cos: Cosines as in `Positions`, of which the first K are read; None without rotary positions.
        sin: Sines, likewise.
        row_norm: Factor of each head's read-out, H values; None is one.
        layout: Pairs that are rotated, half or interleaved.
        key_scale: Factor of the key.

    Returns:
        (B, H, V) in float32.
    """
    require(state.is_contiguous() and state.dtype == torch.float32, "state must be contiguous float32", state)
    _require_heads(q, k, v)
    out = state.new_empty(v.shape)
    if decay.dim() == 3:
        _require_heads(decay)
    strides = (q.stride(0), k.stride(0), v.stride(0), decay.stride(0) if decay.dim() > 1 else 0)
    arguments = (q, k, v, decay, state, cos, sin, row_norm, out, key_scale, strides)
    _launch_step(state, arguments, "none" if cos is None else layout, decay.dim() == 3)
    return out


@shapes_of("retention_step")
def _(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, *rest: Any) -> Tensor:
    return state.new_empty(v.shape)


@operator()
def norm_gate(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, kind: str, eps: float, dtype: torch.dtype
) -> Tensor:
    """Norm and gate the read-out of every head: norm(x) * weight * silu(gate).

    Args:
        x: Read-out, (B, H, V) float32, contiguous.
        weight: Weight of the norm, (V,), the same for all heads; None is one.
        gate: (B, H V), sequences any stride apart; None leaves it out.
        kind: rms, layer or none, over the V values of a head.
        eps: Added to the mean square or the variance.
        dtype: Dtype of the result.

    Returns:
        (B, H V) in `dtype`.
    """
    batch, heads, value_dim = x.shape
    require(x.is_contiguous(), "x must be contiguous", x)
    require(gate is None or gate.stride(-1) == 1, "the gate must be contiguous in each row", gate)
    out = x.new_empty((batch, heads * value_dim), dtype=dtype)
    arguments = (x, weight, gate, out, 0 if gate is None else gate.stride(0), eps)
    sizes = {"H": heads, "V": value_dim, "BLOCK": _padded(value_dim)}
    _launch("norm_gate_kernel", (batch * heads,), arguments, NORM=kind, **sizes)
    return out


@shapes_of("norm_gate")
def _(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, kind: str, eps: float, dtype: torch.dtype
) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] * x.shape[2]), dtype=dtype)


@operator("keys", "values")
def rotate_and_cache(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: str,
    position: Tensor,
    keys: Tensor,
    values: Tensor,
    sinks: int,
    window: int,
) -> Tensor:
    """Rotate queries and keys of one token, and write its keys and values into the cache.

    The position is read on the device. The caller must check on the host that the cache has room for it. Without key
    heads only queries are rotated, and nothing is written.

    Args:
        qkv: Joined queries, keys and values, (B, (H + 2 Hkv) K), sequences any stride apart.
        cos: Cosines as in `Positions`, K values in float32.
        sin: Sines, likewise.
        layout: Pairs that are rotated, half or interleaved.
        position: Position of the token, one int64 value on the device.
        keys: Cache, (B, Hkv, S, K) in the dtype of qkv, changed in place.
        values: Cache, as `keys` and with the same strides.
        sinks: First slots of a ring buffer, which are never overwritten; 0 without a window.
        window: Slots of the ring after the sinks; 0 writes into the slot at `position`.

    Returns:
        Rotated queries, (B, H, K) in the dtype of qkv.
    """
    batch, kv_heads, _, width = keys.shape
    heads = qkv.shape[1] // width - 2 * kv_heads
    require(keys.stride() == values.stride(), "keys and values must have the same strides", values)
    require(keys.stride()[2:] == (width, 1), "slots of the cache must be adjacent", keys)
    require(qkv.stride(1) == 1, "qkv must be contiguous in each row", qkv)
    out = qkv.new_empty(batch, heads, width)
    strides = (qkv.stride(0), keys.stride(0), keys.stride(1))
    arguments = (qkv, cos, sin, position, keys, values, out, *strides, sinks, window)
    sizes = {"H": heads, "HKV": kv_heads, "K": width, "BLOCK": _padded(width)}
    _launch("rotate_and_cache_kernel", (batch, heads + 2 * kv_heads), arguments, LAYOUT=layout, **sizes)
    return out


@shapes_of("rotate_and_cache")
def _(
    qkv: Tensor, cos: Tensor, sin: Tensor, layout: str, position: Tensor, keys: Tensor, *rest: Any
) -> Tensor:
    batch, kv_heads, _, width = keys.shape
    return qkv.new_empty(batch, qkv.shape[1] // width - 2 * kv_heads, width)


@operator()
def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str, eps: float) -> Tensor:
    """Norm rows x (R, D), contiguous: rms or layer, with an optional weight and bias (D,). One program per row."""
    require(x.is_contiguous(), "x must be contiguous", x)
    out = torch.empty_like(x)
    _launch_norm(x, None, weight, bias, None, out, kind, eps)
    return out


@shapes_of("norm")
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


@operator()
def add_norm(
    x: Tensor, added: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    """Add rows and norm their sum in one kernel.

    Args:
        x: (R, D), contiguous.
        added: (R, D), contiguous.
        weight: (D,) or None.
        bias: (D,) or None.
        kind: rms or layer.
        eps: Added to the mean square or the variance.

    Returns:
        The sum in the dtype of x, and its norm; both (R, D).
    """
    require(x.is_contiguous(), "x must be contiguous", x)
    require(added.is_contiguous(), "added must be contiguous", added)
    total, out = torch.empty_like(x), torch.empty_like(x)
    _launch_norm(x, added, weight, bias, total, out, kind, eps)
    return total, out


@shapes_of("add_norm")
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@operator()
def silu_multiply(gate_up: Tensor) -> Tensor:
    """Compute silu(gate) * up of joined rows (R, 2F), contiguous in each row; returns (R, F)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    require(gate_up.stride(1) == 1, "gate and up must be contiguous in each row", gate_up)
    out = gate_up.new_empty(rows, width)
    grid = (rows, _blocks(width, SILU_BLOCK))
    _launch("silu_multiply_kernel", grid, (gate_up, out, gate_up.stride(0)), F=width, BLOCK=SILU_BLOCK)
    return out


@shapes_of("silu_multiply")
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def missing_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the fused operators cannot run on this device at this dtype, and what to do; None if they can.

    On the meta device, which computes nothing, they need no kernel.
    """
    if device.type not in {"cuda", "meta"}:
        return "the fused operators run on CUDA devices only; use decode operators 'eager'"
    if dtype not in DTYPES:
        given = str(dtype).removeprefix("torch.")
        return f"the fused operators compute in float32, too coarse for {given}; use decode operators 'eager'"
    if device.type == "meta":
        return None
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'retbench[kernels]'"
    return _launch_problem(device, dtype)


def default_operators(device: torch.device, dtype: torch.dtype) -> DecodeOperators:
    """Return the operators that decode steps take unless others are asked for: fused ones if they can run here."""
    return "fused" if missing_reason(device, dtype) is None else "eager"


@cache
def _launch_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why installed kernels cannot be launched here: Triton compiles them at their first launch."""
    return launch_problem(
        lambda: silu_multiply(torch.zeros(1, 2, dtype=dtype, device=device)),
        device,
        "Triton's kernels",
        f"{TRITON_CURE}; use decode operators 'eager'",
    )


def value_block(num_heads: int, value_dim: int) -> int:
    """Return the columns of a state per program: the most that still give MIN_PROGRAMS programs, in its bounds.

    Args:
        num_heads: Heads of all sequences, B H.
        value_dim: V.
    """
    block = min(MAX_BLOCK_V, max(MIN_BLOCK_V, _padded(value_dim)))
    while block > MIN_BLOCK_V and num_heads * _blocks(value_dim, block) < MIN_PROGRAMS:
        block //= 2
    return block


def require(holds: bool, what: str, tensor: Tensor | None) -> None:
    """Raise ValueError unless a condition of a kernel holds, since a kernel would read other memory silently."""
    if not holds:
        given = None if tensor is None else (tuple(tensor.shape), tensor.stride(), tensor.dtype)
        raise ValueError(f"{what}, got shape, strides and dtype {given}")


def _require_heads(*tensors: Tensor) -> None:
    """Raise ValueError unless the heads (B, H, W) of each tensor are adjacent in memory."""
    for one in tensors:
        require(one.stride()[1:] == (one.shape[2], 1), "heads must be adjacent in memory", one)


def _launch_step(state: Tensor, arguments: tuple[Any, ...], layout: str, decays_channels: bool) -> None:
    """Launch the kernel of `retention_step`."""
    batch, heads, key_dim, value_dim = state.shape
    block_v = value_block(batch * heads, value_dim)
    # With fewer values than threads two threads would hold the same, and advance it twice.
    block_k = max(MIN_BLOCK_K, min(_padded(key_dim), TILE // block_v))
    sizes = {"H": heads, "K": key_dim, "V": value_dim, "BLOCK_K": block_k, "BLOCK_V": block_v}
    grid = (batch * heads, _blocks(value_dim, block_v))  # the second axis of a grid ends at 65,535
    _launch("retention_step_kernel", grid, arguments, LAYOUT=layout, DECAYS_CHANNELS=decays_channels, **sizes)


def _launch_norm(
    x: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    total: Tensor | None,
    out: Tensor,
    kind: str,
    eps: float,
) -> None:
    """Launch the kernel of `norm` and `add_norm`."""
    rows, width = x.shape
    arguments = (x, added, weight, bias, total, out, eps)
    _launch("add_norm_kernel", (rows,), arguments, D=width, NORM=kind, BLOCK=_padded(width))


def _launch(name: str, grid: Sequence[int], arguments: tuple[Any, ...], **compiled_in: object) -> None:
    """Launch a kernel of `fused_kernels` on the device of its first argument."""
    # Imports Triton, which only a launch needs. The statement makes the kernels part of a record's source.
    from retbench.ops import fused_kernels

    kernel = getattr(fused_kernels, name)[tuple(grid)]
    with torch.cuda.device_of(arguments[0]):
        # Fused multiply-adds are asked for, since the default of Triton differs between its versions.
        kernel(*arguments, **compiled_in, enable_fp_fusion=True)


def _padded(width: int) -> int:
    """Return the smallest power of two that is at least `width`."""
    return 1 << (width - 1).bit_length()


def _blocks(width: int, block: int) -> int:
    """Return the number of blocks that cover `width`."""
    return -(-width // block)
