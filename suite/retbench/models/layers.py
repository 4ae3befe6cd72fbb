"""The parts of a block that are not its mixer: norms and feed-forwards, each chosen by a variant's traits."""

import torch.nn.functional as F
from torch import Tensor, nn

from retbench.architectures.configs import ModelConfig
from retbench.models.linear import Linear


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm in the dtype of its weight, whatever that of its input is: autocast gives it 2-byte values."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return super().forward(x if self.weight is None else x.to(self.weight.dtype))


class GatedFeedForward(nn.Module):
    """SwiGLU, (silu(x W_gate) * x W_up) W_down, gate and up in one product (arXiv:2002.05202)."""

    def __init__(self, d_model: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(d_model, 2 * ffn_dim)
        self.down_proj = Linear(ffn_dim, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class FeedForward(nn.Module):
    """gelu(x W_up) W_down (arXiv:2307.08621, Sec. 2.3; GPT-2)."""

    def __init__(self, d_model: int, ffn_dim: int) -> None:
        super().__init__()
        self.up_proj = Linear(d_model, ffn_dim)
        self.down_proj = Linear(ffn_dim, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x)))
        return out


def make_feed_forward(config: ModelConfig) -> nn.Module:
    """The feed-forward of a block."""
    kind = GatedFeedForward if config.traits.ffn == "swiglu" else FeedForward
    return kind(config.d_model, config.ffn_dim)


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm over the width of the model."""
    kind = RMSNorm if config.traits.block_norm == "rms" else nn.LayerNorm
    return kind(config.d_model, eps=config.norm_eps)


def make_head_norm(kind: str, width: int, eps: float) -> nn.Module:
    """A norm over one retention head: rms, rms_affine, or layer, which is GroupNorm with a group a head."""
    if kind == "layer":
        return nn.LayerNorm(width, eps=eps, elementwise_affine=False)
    return RMSNorm(width, eps=eps, elementwise_affine=kind == "rms_affine")
