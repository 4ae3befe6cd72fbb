"""Norms and feed-forwards of a block."""

import torch.nn.functional as F
from torch import Tensor, nn

from retbench.ops import fused
from retbench.ops.fused import FusedSteps
from retbench.ops.linear import Linear
from retbench.ops.precision import cast
from retbench.ops.rms_norm import rms_norm


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm in the dtype of its weight, also for the 16-bit inputs of autocast."""

    kind = "rms"
    bias = None
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        weight = self.weight  # once: a module looks a parameter up in Python
        return rms_norm(x if weight is None else cast(x, weight.dtype), weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm with its kind, as `ops.fused` names it."""

    kind = "layer"


class SwigluFeedForward(FusedSteps):
    """SwiGLU, (silu(x W_gate) * x W_up) W_down, gate and up in one product (arXiv:2002.05202)."""

    def __init__(self, d_model: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(d_model, 2 * ffn_dim)
        self.down_proj = Linear(ffn_dim, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        if self.steps_fused(x):
            hidden = fused.activate(gate.squeeze(1), up.squeeze(1), "silu").unsqueeze(1)
        else:
            hidden = F.silu(gate) * up
        out: Tensor = self.down_proj(hidden)
        return out


class GeluFeedForward(nn.Module):
    """gelu(x W_up) W_down (arXiv:2307.08621, Sec. 2.3; GPT-2)."""

    def __init__(self, d_model: int, ffn_dim: int) -> None:
        super().__init__()
        self.up_proj = Linear(d_model, ffn_dim)
        self.down_proj = Linear(ffn_dim, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x)))
        return out


def make_norm(kind: str, width: int, eps: float) -> RMSNorm | LayerNorm:
    """Build a norm over the last axis with weights: rms, or layer with weight and bias."""
    return (RMSNorm if kind == "rms" else LayerNorm)(width, eps=eps)


def norm_step(norm: RMSNorm | LayerNorm, x: Tensor) -> Tensor:
    """Apply a norm to one token (B, 1, D) by the fused operator."""
    out: Tensor = fused.norm(x.squeeze(1), norm.weight, norm.bias, norm.kind, norm.eps)
    return out.unsqueeze(1)


def add_norm_step(norm: RMSNorm | LayerNorm, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of one token's x and added, (B, 1, D) each, and its norm, by the fused operator."""
    weights = norm.weight, norm.bias, norm.kind, norm.eps
    total, normed = fused.add_norm(x.squeeze(1), added.squeeze(1), *weights)
    return total.unsqueeze(1), normed.unsqueeze(1)


def make_head_norm(kind: str, width: int, eps: float) -> nn.Module:
    """Build a norm over each head: rms, rms_affine, layer (GroupNorm with one group per head), or none."""
    if kind == "none":
        return nn.Identity()
    if kind == "layer":
        return nn.LayerNorm(width, eps=eps, elementwise_affine=False)
    return RMSNorm(width, eps=eps, elementwise_affine=kind == "rms_affine")
