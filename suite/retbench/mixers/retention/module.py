"""Gated multi-scale retention as a torch module."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.mixers.module import MixerModule
from retbench.mixers.retention.config import Retention
from retbench.mixers.state import LayerState
from retbench.ops import kernels
from retbench.ops.constants import Float64Constant, WideConstant
from retbench.ops.decay import decay_schedule, gated_log_decay
from retbench.ops.layers import make_head_norm
from retbench.ops.linear import Linear
from retbench.ops.position import Positions, Rotary, rotate
from retbench.ops.retention import (
    RetentionForm,
    retention_chunkwise,
    retention_decayed_step_,
    retention_last,
    retention_parallel,
    retention_recurrent,
    retention_step_,
    wide_dtype,
)

STEP_DECAY = 0.99
"""Decay of every head in `mixing`: the time of a step does not depend on it."""


class RetentionModule(MixerModule):
    """Gated multi-scale retention, arXiv:2307.08621 Eq. 8, with every option of `Retention`.

    Where a variant asks for it, the retention at position n is divided by the square root of the row sum of D,
    (1 - decay^(n+1)) / (1 - decay): the same scalar in every form. torchscale's parallel form divides by a second,
    data-dependent sum, which its own recurrent form leaves out; so does this one. It comes with the positions.

    Args:
        config: The mixer.
        form: parallel, chunkwise, recurrent or fla, for more than one token. One token without gradients is always a
            recurrent step of this package, in place; so is the last token alone of a prompt's last block.
        chunk_size: Tokens of a chunk of the chunkwise form.
    """

    config: Retention

    def __init__(self, config: Retention, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        chunk = chunk_size or config.default_chunk_size
        self.forms: dict[str, RetentionForm] = {
            "parallel": retention_parallel,
            "chunkwise": partial(retention_chunkwise, chunk_size=cast(int, chunk)),
            "recurrent": retention_recurrent,
            "fla": kernels.retention_fla,
        }
        d, values = config.d_model, config.value_dim
        self.qkvg_proj = Linear(d, 2 * d + values * (2 if config.swish_gate else 1))
        self.head_norm = make_head_norm(config.head_norm, config.value_head_dim, config.norm_eps)
        self.out_proj = Linear(values, d)
        if config.decay == "gated":
            self.decay_proj = Linear(d, config.num_heads)
        else:
            self.log_decay = Float64Constant(lambda: decay_schedule(config.decay, config.num_heads))
            self.decay = WideConstant(lambda: decay_schedule(config.decay, config.num_heads).exp())

    @property
    def after_operator(self) -> nn.Module:
        """The head norm, which gets (B, T, H, V)."""
        return self.head_norm

    def encoding(self) -> Rotary:
        """Build the rotary positions and, where the variant divides by it, the row norm of D."""
        config = self.config
        normed = partial(decay_schedule, config.decay, config.num_heads) if config.row_norm else None
        return Rotary(config.head_dim, config.layout, config.rotary_base, normed)

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why one form cannot run here; None where it can."""
        return kernels.missing_reason(device, dtype) if name == "fla" else None

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        log_decay = self._log_decay(x)
        if last_only:
            q, k, v, gate = self._project_last(x, positions)
            out, values = retention_last(q, k, v, log_decay, state["values"] if state else None)
            self.keep(state, "values", values)
            positions = positions.last
        else:
            q, k, v, gate = self._project(x, positions)
            out = self._retain(q, k, v, log_decay, state)
        if positions.row_norm is not None:
            out = out * positions.row_norm
        out = self.head_norm(out).flatten(2)  # (B, T, H V)
        mixed: Tensor = self.out_proj(out if gate is None else F.silu(gate) * out)
        return mixed

    def mixing(self, state: LayerState, batch_size: int, context_len: int) -> Callable[[], object]:
        """Return a decode step's retention on the state, which has one cost at every depth."""
        values, config = state["values"], self.config
        dtype = self.qkvg_proj.weight.dtype
        q, k = torch.randn(2, batch_size, 1, config.num_heads, config.head_dim).to(dtype)
        v = torch.randn(batch_size, 1, config.num_heads, config.value_head_dim).to(dtype)
        decay = torch.full((config.num_heads,), STEP_DECAY, dtype=values.dtype)
        return partial(retention_decayed_step_, q, k, v, decay, values)

    def _project(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return rotated q and scaled k (B, T, H, K), v (B, T, H, V), and the gate (B, T, H V) or None."""
        config = self.config
        values = [config.value_dim] * (2 if config.swish_gate else 1)
        qk, v, *gate = self.qkvg_proj(x).split([2 * config.d_model, *values], dim=-1)
        qk = rotate(self._heads(qk, 2), positions, config.layout)  # (B, T, 2H, K)
        q, k = qk.chunk(2, dim=2)
        return q, k * config.head_dim**-0.5, self._heads(v), gate[0] if gate else None

    def _project_last(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the same, with q and gate for the last token alone."""
        d, values, layout = self.config.d_model, self.config.value_dim, self.config.layout
        last, keys_end = x[:, -1:], 2 * d + values
        q = rotate(self._heads(self.qkvg_proj.part(last, 0, d)), positions.last, layout)
        k, v = self.qkvg_proj.part(x, d, keys_end).split([d, values], dim=-1)
        k = rotate(self._heads(k), positions, layout) * self.config.head_dim**-0.5
        gate = self.qkvg_proj.part(last, keys_end, keys_end + values) if self.config.swish_gate else None
        return q, k, self._heads(v), gate

    def _heads(self, x: Tensor, parts: int = 1) -> Tensor:
        """(B, T, W) as the heads of `parts` tensors side by side, (B, T, parts H, W / (parts H))."""
        return x.view(*x.shape[:-1], parts * self.config.num_heads, -1)

    def _log_decay(self, x: Tensor) -> Tensor:
        """(H,) where it is fixed; (B, T, H) where it depends on x (B, T, D)."""
        if self.config.decay == "gated":
            return gated_log_decay(self.decay_proj(x), wide_dtype(x.dtype))
        return self.log_decay.value

    def _retain(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: LayerState | None) -> Tensor:
        """Run the operator: one in-place step for one token, the chosen form for more; (B, T, H, V)."""
        if state is not None and q.shape[1] == 1 and not torch.is_grad_enabled():
            self.executed["decode"] = "recurrent"
            if log_decay.dim() == 1:
                return retention_decayed_step_(q, k, v, self.decay.value, state["values"])
            return retention_step_(q, k, v, log_decay, state["values"])
        self.executed["prefill"] = self.backend
        out, values = self.forms[self.backend](q, k, v, log_decay, state["values"] if state else None)
        self.keep(state, "values", values)
        return out
