"""Causal attention to the cache of an earlier layer as a torch module."""

import torch
from torch import Tensor, nn

from retbench.mixers.attention.module import attend
from retbench.mixers.module import MixerModule
from retbench.mixers.shared_attention.config import SharedAttention
from retbench.mixers.state import LayerState
from retbench.ops import attention, fused
from retbench.ops.linear import Linear
from retbench.ops.position import Positions, rotate


class SharedAttentionModule(MixerModule):
    """Causal attention of this layer's queries to the keys and values that its source has cached.

    Args:
        config: The mixer.
        form: A name in `ops.attention.BACKENDS`, for prefill and decode alike, or auto.
        chunk_size: Attention has no chunks.
    """

    config: SharedAttention

    def __init__(self, config: SharedAttention, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        self.q_proj = Linear(config.d_model, config.d_model)
        self.out_proj = Linear(config.d_model, config.d_model)

    @property
    def after_operator(self) -> nn.Module:
        """The output projection, which gets (B, T, H K)."""
        return self.out_proj

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why one backend cannot run here; None where it can."""
        return attention.missing_reason(name, device, dtype)

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is that of the source, already advanced."""
        assert state is not None
        end = positions.start + positions.length
        k, v = (state[name][:, :, :end] for name in ("keys", "values"))
        steps_fused = not last_only and self.steps_fused(x)
        if steps_fused:
            # The kernel that writes a token to the cache, for no key heads.
            caches = (state[name][:, :0] for name in ("keys", "values"))
            table = positions.cos, positions.sin, "half", positions.on_device
            q = fused.rotate_and_cache(self.q_proj(x).squeeze(1), *table, *caches, 0, 0).unsqueeze(2)
        else:
            x, positions = (x[:, -1:], positions.last) if last_only else (x, positions)
            heads = self.q_proj(x).unflatten(-1, (self.config.num_heads, -1))
            q = rotate(heads, positions, "half").transpose(1, 2)
        phase = "prefill" if last_only or x.shape[1] > 1 else "decode"
        mixed: Tensor = self.out_proj(attend(self, q, k, v, phase, fused=steps_fused))
        return mixed
