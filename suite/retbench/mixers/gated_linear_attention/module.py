"""Gated linear attention as a torch module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.mixers.gated_linear_attention.config import GatedLinearAttention
from retbench.mixers.module import LinearOperatorModule
from retbench.mixers.state import LayerState
from retbench.ops import fused_linear, kernels
from retbench.ops.decay import gated_log_decay
from retbench.ops.layers import make_head_norm
from retbench.ops.linear import Linear
from retbench.ops.position import Positions
from retbench.ops.precision import wide_dtype

KERNELS = {"fla": kernels.gla_fla, "fla_recurrent": kernels.gla_fla_recurrent}


class GatedLinearAttentionModule(LinearOperatorModule):
    """Gated linear attention, arXiv:2312.06635 Sec. 4.4.

    One product gives queries, gate, keys, values and the first factor of the decay. Their order keeps what a prompt's
    last token alone needs apart from what every token needs.
    """

    config: GatedLinearAttention

    def __init__(self, config: GatedLinearAttention, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        self.forms |= KERNELS
        self.qgkvd_proj = Linear(config.d_model, sum(config.projection().widths))
        self.decay_proj = nn.Linear(config.gate_rank, config.key_dim)
        self.read_out = nn.Identity()
        self.head_norm = make_head_norm("rms_affine", config.value_head_dim, config.norm_eps)
        self.out_proj = Linear(config.value_dim, config.d_model)

    @property
    def after_operator(self) -> nn.Module:
        """The identity that gets the read-out, (B, T, H, V), before the head norm."""
        return self.read_out

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why one form cannot run here; None where it can."""
        return kernels.missing_reason(device, dtype, KERNELS[name]) if name in KERNELS else None

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        if state is not None and self.steps_fused(x):
            return self._step(x, state)
        q, gate, k, v, log_decay = self._project(x, last_only=last_only)
        step_decay = log_decay.exp() if x.shape[1] == 1 else None
        out = self.operate(q, k, v, log_decay, state, step_decay=step_decay)
        out = self.head_norm(self.read_out(out)).flatten(2)  # (B, T, H V)
        mixed: Tensor = self.out_proj(F.silu(gate) * out)
        return mixed

    def _step(self, x: Tensor, state: LayerState) -> Tensor:
        """Compute one token by the fused operators, (B, 1, D) to (B, 1, D); `state` is advanced in place."""
        self.executed["decode"] = "fused"
        q, gate, k, v, logits = (part.squeeze(1) for part in self._split(x, last_only=False))
        scale = self.config.head_dim**-0.5
        out = fused_linear.linear_step(
            q, k, v, logits, state["values"], gate="sigmoid", query_scale=scale
        )  # (B, H, V)
        out = self.read_out(out.unsqueeze(1)).squeeze(1)
        weight, eps = self.head_norm.weight, self.config.norm_eps
        mixed: Tensor = self.out_proj(fused_linear.norm_gate(out, weight, gate, "rms", eps, x.dtype))
        return mixed.unsqueeze(1)

    def _project(self, x: Tensor, *, last_only: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return scaled q (B, T, H, K), the gate (B, T, H V), k, v (B, T, H, V) and the log decay (B, T, H, K).

        With `last_only` q and gate are of the last token alone.
        """
        q, gate, k, v, logits = self._split(x, last_only=last_only)
        return q * self.config.head_dim**-0.5, gate, k, v, gated_log_decay(logits, wide_dtype(x.dtype))

    def _split(self, x: Tensor, *, last_only: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the same, with q as it is projected, and the logits of the decay."""
        widths = list(self.config.projection().widths)
        if last_only:
            split = sum(widths[:2])
            q, gate = self.qgkvd_proj.part(x[:, -1:], 0, split).split(widths[:2], dim=-1)
            k, v, factor = self.qgkvd_proj.part(x, split, sum(widths)).split(widths[2:], dim=-1)
        else:
            q, gate, k, v, factor = self.qgkvd_proj(x).split(widths, dim=-1)
        q, k, v, logits = (self._heads(part) for part in (q, k, v, self.decay_proj(factor)))
        return q, gate, k, v, logits

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, W) as heads, (B, T, H, W / H)."""
        return x.view(*x.shape[:-1], self.config.num_heads, -1)
