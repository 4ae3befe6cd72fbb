"""Gated multi-scale retention as a torch module."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.mixers.module import Depth, LinearOperatorModule
from retbench.mixers.retention.config import Retention
from retbench.mixers.state import LayerState
from retbench.ops import fused_linear, kernels
from retbench.ops.decay import decay_schedule, gated_log_decay
from retbench.ops.layers import make_head_norm
from retbench.ops.linear import Linear
from retbench.ops.position import Positions, Rotary, rotate
from retbench.ops.precision import Float64Constant, WideConstant, wide_dtype

_INPUT_GAIN, _OUTPUT_GAIN = 2**-2.5, 2**-1
"""Gains of the published Xavier-uniform draws of q, k, v and gates, and of the output."""


class RetentionModule(LinearOperatorModule):
    """Gated multi-scale retention, arXiv:2307.08621 Eq. 8, with every option of `Retention`.

    Where a variant asks for it, the retention at position n is divided by the square root of the row sum of D,
    (1 - decay^(n+1)) / (1 - decay): the same scalar in every form. torchscale's parallel form divides by a second,
    data-dependent sum, which its own recurrent form leaves out; so does this one. It comes with the positions.
    """

    config: Retention

    def __init__(self, config: Retention, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        self.forms["fla"] = kernels.retention_fla
        d, values = config.d_model, config.value_dim
        self.qkvg_proj = Linear(d, 2 * d + values * (2 if config.swish_gate else 1))
        self.read_out = nn.Identity()
        self.head_norm = make_head_norm(config.head_norm, config.value_head_dim, config.norm_eps)
        self.out_proj = Linear(values, d)
        if config.decay == "gated":
            self.decay_proj = Linear(d, config.num_heads)
        else:
            self.log_decay = Float64Constant(lambda: decay_schedule(config.decay, config.num_heads))
            self.decay = WideConstant(lambda: decay_schedule(config.decay, config.num_heads).exp())

    @property
    def after_operator(self) -> nn.Module:
        """The identity that gets the read-out, (B, T, H, V), before the head norm."""
        return self.read_out

    def encoding(self) -> Rotary:
        """Build the rotary positions and, where the variant divides by it, the row norm of D."""
        config = self.config
        normed = partial(decay_schedule, config.decay, config.num_heads) if config.row_norm else None
        return Rotary(config.head_dim, config.layout, config.rotary_base, normed, self.key_scale)

    @property
    def key_scale(self) -> float:
        """Factor of the keys, one over the square root of their width; the tables of `encoding` have it."""
        return float(self.config.head_dim**-0.5)

    @torch.no_grad()
    def init_published(self, generator: torch.Generator, depth: Depth) -> None:
        """Draw the projections as torchscale's `multiscale_retention.py` and YOCO's code do: Xavier-uniform, scaled."""
        inputs = [(weight, _INPUT_GAIN) for weight in self.qkvg_proj.weight.split(self._widths)]
        if self.config.decay == "gated":
            inputs.append((self.decay_proj.weight, _INPUT_GAIN))
        for weight, gain in (*inputs, (self.out_proj.weight, _OUTPUT_GAIN)):
            bound = gain * (6 / sum(weight.shape)) ** 0.5
            weight.uniform_(-bound, bound, generator=generator)

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why one form cannot run here; None where it can."""
        return kernels.missing_reason(device, dtype) if name == "fla" else None

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        if state is not None and self.steps_fused(x):
            return self._step(x, state, positions)
        q, k, v, gate = self._project_last(x, positions) if last_only else self._project(x, positions)
        step_decay = None if self.config.decay == "gated" else self.decay.value
        out = self.operate(q, k, v, self._log_decay(x), state, step_decay=step_decay)
        if last_only:
            positions = positions.last
        if positions.row_norm is not None:
            out = out * positions.row_norm
        out = self.head_norm(self.read_out(out)).flatten(2)  # (B, T, H V)
        mixed: Tensor = self.out_proj(out if gate is None else F.silu(gate) * out)
        return mixed

    def _step(self, x: Tensor, state: LayerState, positions: Positions) -> Tensor:
        """Compute one token by the fused operators, (B, 1, D) to (B, 1, D); `state` is advanced in place."""
        config, x = self.config, x.squeeze(1)
        self.executed["decode"] = "fused"
        q, k, v, *gate = self.qkvg_proj(x).split(self._widths, dim=-1)
        q, k, v = (one.unflatten(1, (config.num_heads, -1)) for one in (q, k, v))
        is_gated = config.decay == "gated"
        out = fused_linear.linear_step(
            q,
            k,
            v,
            self.decay_proj(x) if is_gated else self.decay.value,
            state["values"],
            gate="sigmoid" if is_gated else "decay",
            cos=positions.cos,
            sin=positions.sin,
            layout=config.layout,
            key_scale=self.key_scale,
            row_norm=positions.row_norm,
        )
        out = self.read_out(out.unsqueeze(1)).squeeze(1)
        weight, kind = getattr(self.head_norm, "weight", None), config.head_norm.removesuffix("_affine")
        out = fused_linear.norm_gate(out, weight, gate[0] if gate else None, kind, config.norm_eps, x.dtype)
        mixed: Tensor = self.out_proj(out).unsqueeze(1)
        return mixed

    @property
    def _widths(self) -> list[int]:
        """Widths of q, k, v and, if there is one, the gate in their joined projection."""
        d, values = self.config.d_model, self.config.value_dim
        return [d, d, *[values] * (2 if self.config.swish_gate else 1)]

    def _project(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return rotated q and scaled k (B, T, H, K), v (B, T, H, V), and the gate (B, T, H V) or None."""
        _, d, *values = self._widths
        qk, v, *gate = self.qkvg_proj(x).split([2 * d, *values], dim=-1)
        qk = self._heads(qk.unflatten(-1, (2, d)))  # (B, T, 2, H, K)
        q, k = rotate(qk, positions, self.config.layout).unbind(2)
        return q, k, self._heads(v), gate[0] if gate else None

    def _project_last(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the same, with q and gate for the last token alone."""
        d, values, layout = self.config.d_model, self.config.value_dim, self.config.layout
        last, keys_end = x[:, -1:], 2 * d + values
        q = rotate(self._heads(self.qkvg_proj.part(last, 0, d)), positions.last.part(0), layout)
        k, v = self.qkvg_proj.part(x, d, keys_end).split([d, values], dim=-1)
        k = rotate(self._heads(k), positions.part(1), layout)
        gate = self.qkvg_proj.part(last, keys_end, keys_end + values) if self.config.swish_gate else None
        return q, k, self._heads(v), gate

    def _heads(self, x: Tensor) -> Tensor:
        """(..., W) as heads, (..., H, W / H)."""
        heads: Tensor = x.unflatten(-1, (self.config.num_heads, -1))
        return heads

    def _log_decay(self, x: Tensor) -> Tensor:
        """(H,) where it is fixed; (B, T, H) where it depends on x (B, T, D)."""
        if self.config.decay == "gated":
            return gated_log_decay(self.decay_proj(x), wide_dtype(x.dtype))
        return self.log_decay.value
