"""Causal attention as a torch module."""

import torch
from torch import Tensor

from retbench.mixers.attention.config import Attention
from retbench.mixers.module import MixerModule, SoftmaxAttentionModule
from retbench.mixers.state import LayerState
from retbench.ops import attention
from retbench.ops.position import Positions


class AttentionModule(SoftmaxAttentionModule):
    """Causal attention with half-split rotary positions; grouped-query where num_kv_heads < num_heads.

    Args:
        config: The mixer.
        form: A name in `ops.attention.BACKENDS`, for prefill and decode alike, or auto.
        chunk_size: Attention has no chunks.
    """

    config: Attention

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why one backend cannot run here; None where it can."""
        return attention.missing_reason(name, device, dtype)

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        steps_fused = state is not None and self.steps_fused(x)
        if state is not None and steps_fused:
            state.grow(positions.start, 1)
            q = self.project_step(x, state, positions)
            k, v = (state[name][:, :, : positions.start + 1] for name in ("keys", "values"))
        else:
            q, k, v = self.project(x, positions, last_only=last_only)
            if state is not None:
                k = state.append("keys", k, positions.start)
                v = state.append("values", v, positions.start)
        phase = "prefill" if x.shape[1] > 1 else "decode"
        mixed: Tensor = self.out_proj(attend(self, q, k, v, phase, fused=steps_fused))
        return mixed


def attend(mixer: MixerModule, q: Tensor, k: Tensor, v: Tensor, phase: str, *, fused: bool) -> Tensor:
    """Attend with a mixer's backend, and note the kernel that a phase executes.

    Args:
        mixer: Its `backend` is a name in `ops.attention.BACKENDS` or auto.
        q: Queries, (B, H, T, K).
        k: Keys, (B, Hkv, S, K).
        v: Values, (B, Hkv, S, K).
        phase: prefill or decode.
        fused: Whether a fused operator made the queries.

    Returns:
        (B, T, H K).
    """
    if q.shape[2] > 1 and v.stride(-1) != 1:
        v = v.contiguous()  # torch's fused kernels read no values that lie by value
    out = attention.attend(mixer.backend, q, k, v, mixer.products_from)  # (B, H, T, K)
    if phase not in mixer.executed:  # asked once for each phase, so that a decode step does nothing for it
        backend = attention.chosen_backend(mixer.backend, q, k, mixer.products_from)
        kernel = attention.executed_kernel(backend, q, k, v)
        mixer.executed[phase] = f"fused+{kernel}" if fused else kernel
    return out.transpose(1, 2).flatten(2)
