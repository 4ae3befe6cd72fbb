"""Causal attention as a torch module."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from retbench.mixers.attention.config import Attention
from retbench.mixers.module import MixerModule
from retbench.mixers.state import LayerState
from retbench.ops import attention
from retbench.ops.linear import Linear
from retbench.ops.position import Positions, Rotary, rotate


class AttentionModule(MixerModule):
    """Causal attention with half-split rotary positions; grouped-query where num_kv_heads < num_heads.

    Args:
        config: The mixer.
        form: A name in `ops.attention.BACKENDS`, for prefill and decode alike.
        chunk_size: Attention has no chunks.
    """

    config: Attention

    def __init__(self, config: Attention, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        self.qkv_proj = Linear(config.d_model, config.d_model + 2 * config.kv_width)
        self.out_proj = Linear(config.d_model, config.d_model)

    @property
    def after_operator(self) -> nn.Module:
        """The output projection, which gets (B, T, H K)."""
        return self.out_proj

    def encoding(self) -> Rotary:
        """Build the rotary positions."""
        return Rotary(self.config.head_dim, "half", self.config.rotary_base)

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why one backend cannot run here; None where it can."""
        return attention.missing_reason(name, device, dtype)

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        q, k, v = self._project_last(x, positions) if last_only else self._project(x, positions)
        if state is not None:
            k, v = self._append(state, k, v, positions.start)
        out = attention.BACKENDS[self.backend](q, k, v)  # (B, H, T, K)
        phase = "prefill" if x.shape[1] > 1 else "decode"
        if phase not in self.executed:  # asked once for each phase, so that a decode step does nothing for it
            self.executed[phase] = attention.executed_kernel(self.backend, q, k, v)
        mixed: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return mixed

    def mixing(self, state: LayerState, batch_size: int, context_len: int) -> Callable[[], object]:
        """Return the attention of one token to itself and the context."""
        used = state.used(context_len + 1)
        keys, values = used["keys"], used["values"]  # (B, Hkv, context + 1, K)
        q = torch.randn(batch_size, self.config.num_heads, 1, self.config.head_dim).to(keys.dtype)
        return partial(attention.BACKENDS[self.backend], q, keys, values)

    @staticmethod
    def _append(state: LayerState, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, Hkv, T, K) at position `start`; return views of everything up to their end."""
        end = start + keys.shape[2]
        state["keys"][:, :, start:end] = keys
        state["values"][:, :, start:end] = values
        return state["keys"][:, :, :end], state["values"][:, :, :end]

    def _project(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated q (B, H, T, K) and k (B, Hkv, T, K), and v (B, Hkv, T, K)."""
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv = self._heads(self.qkv_proj(x))
        qk = rotate(qkv[:, :, : heads + kv_heads], positions, "half")
        q, k = qk.transpose(1, 2).split([heads, kv_heads], dim=1)
        return q, k, qkv[:, :, heads + kv_heads :].transpose(1, 2)

    def _project_last(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same, with q for the last token alone, (B, H, 1, K)."""
        d = self.config.d_model
        q = rotate(self._heads(self.qkv_proj.part(x[:, -1:], 0, d)), positions.last, "half")
        k, v = self.qkv_proj.part(x, d, d + 2 * self.config.kv_width).chunk(2, dim=-1)
        k = rotate(self._heads(k), positions, "half")
        return q.transpose(1, 2), k.transpose(1, 2), self._heads(v).transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, W) as heads, (B, T, W / K, K)."""
        return x.view(*x.shape[:-1], -1, self.config.head_dim)
