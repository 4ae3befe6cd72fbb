"""Fused operators of a decode step on a GPU: each is one launch of a Triton kernel, for all architectures alike.

One token moves few bytes besides the weights and the state, so many small kernels cost more time than they move data.
The operators join what lies between two matrix products. The eager counterparts of those here are in `position` and
`layers`, and the tests compare them.

Every operator is registered with torch, so that a dispatch mode counts it as one kernel, a compiled step holds it as
one node, and fake tensors give its shapes without a GPU. The operators have no gradients.

Those of the linear recurrences are in `fused_linear`.
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
ACTIVATIONS = ("silu", "sigmoid", "relu_squared")
"""Names of the activations of `activate`."""
ACTIVATED_BLOCK = 1024
"""Columns per program of `activate`."""


class FusedSteps(nn.Module):
    """Base of modules that can compute one token by the fused operators.

    Attributes:
        fused: True if they do; `Decoder.set_decode_operators` sets it.
    """

    fused = False

    def steps_fused(self, x: Tensor) -> bool:
        """Return True if an input (B, T, D) is one token, without gradients, for the fused operators."""
        return self.fused and x.shape[1] == 1 and not torch.is_grad_enabled()


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
    sizes = {"H": heads, "HKV": kv_heads, "K": width, "BLOCK": padded(width)}
    launch("rotate_and_cache_kernel", (batch, heads + 2 * kv_heads), arguments, LAYOUT=layout, **sizes)
    return out


@shapes_of("rotate_and_cache")
def _(
    qkv: Tensor, cos: Tensor, sin: Tensor, layout: str, position: Tensor, keys: Tensor, *rest: Any
) -> Tensor:
    batch, kv_heads, _, width = keys.shape
    return qkv.new_empty(batch, qkv.shape[1] // width - 2 * kv_heads, width)


@operator("latents")
def cache_latent(
    q: Tensor,
    entry: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    weight: Tensor,
    latents: Tensor,
    head_dim: int,
    query_scale: float,
    eps: float,
) -> Tensor:
    """Rotate the ends of one token's queries and its key, norm its latent, and write latent and key into the cache.

    Args:
        q: Queries, (B, H K), sequences any stride apart.
        entry: Latent and key, (B, R + P), sequences any stride apart.
        cos: Cosines as in `Positions`, P values in float32, for pairs in halves.
        sin: Sines, likewise.
        position: As of `rotate_and_cache`.
        weight: Weight of the latent's RMSNorm, (R,).
        latents: Cache, (B, 1, S, R + P), changed in place.
        head_dim: K. The last P values of a query are rotated.
        query_scale: Factor of the queries.
        eps: Added to the mean square.

    Returns:
        Scaled queries, (B, H, K) in the dtype of q.
    """
    (batch, heads), latent, turned = (q.shape[0], q.shape[1] // head_dim), weight.shape[0], cos.numel()
    require(q.stride(1) == 1, "queries must be contiguous in each row", q)
    require(entry.stride(1) == 1, "the entry must be contiguous in each row", entry)
    require(latents.stride()[2:] == (latent + turned, 1), "slots of the cache must be adjacent", latents)
    out = q.new_empty(batch, heads, head_dim)
    strides = q.stride(0), entry.stride(0), latents.stride(0)
    arguments = (q, entry, cos, sin, position, weight, latents, out, *strides, query_scale, eps)
    blocks = {"BLOCK_K": padded(head_dim - turned), "BLOCK_R": padded(latent), "BLOCK_P": padded(turned)}
    sizes = {"H": heads, "K": head_dim, "R": latent, "P": turned}
    launch("cache_latent_kernel", (batch, heads + 1), arguments, **sizes, **blocks)
    return out


@shapes_of("cache_latent")
def _(
    q: Tensor,
    entry: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    weight: Tensor,
    latents: Tensor,
    head_dim: int,
    *rest: Any,
) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1] // head_dim, head_dim)


@operator()
def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str, eps: float) -> Tensor:
    """Norm rows x (R, D), any stride apart: rms or layer, with an optional weight and bias (D,), to new rows.

    One program norms a row.
    """
    require(x.stride(1) == 1, "x must be contiguous in each row", x)
    out = x.new_empty(x.shape)
    _launch_norm(x, None, weight, bias, None, out, kind, eps)
    return out


@shapes_of("norm")
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


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
def activate(x: Tensor, factor: Tensor | None, kind: str) -> Tensor:
    """Apply an activation to rows x (R, F), any stride apart, and multiply by a factor (R, F), likewise or None.

    Args:
        x: Input.
        factor: None is one.
        kind: silu, sigmoid, or relu_squared.

    Returns:
        (R, F) in the dtype of x.
    """
    rows, width = x.shape
    require(kind in ACTIVATIONS, f"the activation must be one of {ACTIVATIONS}, got {kind!r}", x)
    for one in (x, factor):
        require(one is None or one.stride(1) == 1, "rows must be contiguous", one)
    out = x.new_empty(rows, width)
    strides = x.stride(0), 0 if factor is None else factor.stride(0)
    grid = (rows, num_blocks(width, ACTIVATED_BLOCK))
    sizes = {"F": width, "BLOCK": ACTIVATED_BLOCK}
    launch("activate_kernel", grid, (x, factor, out, *strides), KIND=kind, **sizes)
    return out


@shapes_of("activate")
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


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
        lambda: activate(torch.zeros(1, 1, dtype=dtype, device=device), None, "silu"),
        device,
        "Triton's kernels",
        f"{TRITON_CURE}; use decode operators 'eager'",
    )


def require(holds: bool, what: str, tensor: Tensor | None) -> None:
    """Raise ValueError unless a condition of a kernel holds, since a kernel would read other memory silently."""
    if not holds:
        given = None if tensor is None else (tuple(tensor.shape), tensor.stride(), tensor.dtype)
        raise ValueError(f"{what}, got shape, strides and dtype {given}")


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
    arguments = (x, added, weight, bias, total, out, x.stride(0), eps)
    launch("add_norm_kernel", (rows,), arguments, D=width, NORM=kind, BLOCK=padded(width))


def launch(name: str, grid: Sequence[int], arguments: tuple[Any, ...], **compiled_in: object) -> None:
    """Launch a kernel of `fused_kernels` or `fused_linear_kernels` on the device of its first argument."""
    # Imports Triton, which only a launch needs. The statement makes the kernels part of a record's source.
    from retbench.ops import fused_kernels, fused_linear_kernels

    module = fused_kernels if hasattr(fused_kernels, name) else fused_linear_kernels
    kernel = getattr(module, name)[tuple(grid)]
    with torch.cuda.device_of(arguments[0]):
        # Fused multiply-adds are asked for, since the default of Triton differs between its versions.
        kernel(*arguments, **compiled_in, enable_fp_fusion=True)


def padded(width: int) -> int:
    """Return the smallest power of two that is at least `width`."""
    return 1 << (width - 1).bit_length()


def num_blocks(width: int, block: int) -> int:
    """Return the number of blocks that cover `width`."""
    return -(-width // block)
