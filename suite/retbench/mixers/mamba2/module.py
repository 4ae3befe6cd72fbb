"""Mamba-2 as a torch module."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.mixers.mamba2.config import Mamba2
from retbench.mixers.mamba2.kernels import missing_reason, scan_fla, scan_mamba_ssm
from retbench.mixers.module import Depth, LinearOperatorModule
from retbench.mixers.state import LayerState
from retbench.ops import fused_linear, kernels
from retbench.ops.convolution import empty_weight, short_convolution, short_convolution_step_
from retbench.ops.linear import Linear
from retbench.ops.position import Positions
from retbench.ops.precision import cast, wide_dtype
from retbench.ops.rms_norm import rms_norm

RATE_RANGE = 1.0, 16.0
"""Range of exp(A_log) at the start."""
STEP_RANGE = 1e-3, 0.1
"""Range of softplus(dt_bias) at the start, uniform in its logarithm."""

_silu_ = partial(F.silu, inplace=True)
"""It is applied to a new tensor as large as the input: one more would take as long to allocate as to compute."""


class GatedNorm(nn.Module):
    """RMSNorm(y * silu(z)) over the channels of each group, in the wide dtype: the gate comes before the norm."""

    def __init__(self, width: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.num_groups = num_groups
        self.eps = eps

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """(B, T, H P) and (B, T, H P) to (B, T, H P) in the dtype of the weight."""
        gated, weight = F.silu(cast(gate, y.dtype)).mul_(y), cast(self.weight, y.dtype)
        if gated.device.type == "cpu" and gated.shape[1] > 1 and not torch.is_grad_enabled():
            # In place, and without a tensor of squares: new memory costs a CPU as much as the norm.
            groups = gated.unflatten(-1, (self.num_groups, -1))
            mean_square = torch.linalg.vector_norm(groups, dim=-1, keepdim=True).square() / groups.shape[-1]
            groups.mul_((mean_square + self.eps).rsqrt())
            normed = gated.mul_(weight)
        elif self.num_groups == 1:
            normed = rms_norm(gated, weight, self.eps)
        else:
            groups = gated.unflatten(-1, (self.num_groups, -1))
            normed = rms_norm(groups, None, self.eps).flatten(-2) * weight
        return cast(normed, self.weight.dtype)


class Mamba2Module(LinearOperatorModule):
    """The layer of Mamba-2; see `Mamba2` for what it computes.

    Decays, time steps, the skip and the gated norm are in the wide dtype, as in `mamba_ssm/modules/mamba2.py`.
    """

    config: Mamba2

    def __init__(self, config: Mamba2, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        self.forms["fla"] = scan_fla
        d, channels, heads = config.d_model, config.conv_channels, config.num_heads
        self.in_proj = Linear(d, config.inner_dim + channels + heads)
        weight = empty_weight(channels, config.conv_width)
        self.conv_weight = nn.Parameter(weight.unsqueeze(1))  # with the axes of nn.Conv1d
        self.conv_bias = nn.Parameter(torch.empty(channels))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.log_rate = nn.Parameter(torch.empty(heads))
        self.skip = nn.Parameter(torch.empty(heads))
        self.read_out = nn.Identity()
        self.norm = GatedNorm(config.inner_dim, config.num_groups, config.norm_eps)
        self.out_proj = Linear(config.inner_dim, d)

    @property
    def after_operator(self) -> nn.Module:
        """The identity that gets the read-out, (B, T, H, P), before the skip and the norm."""
        return self.read_out

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, depth: Depth) -> None:
        """Draw the weights outside of the projections as `mamba_ssm/modules/mamba2.py` does."""

        def draw(weight: Tensor, low: float, high: float) -> Tensor:
            drawn = torch.rand(weight.shape, generator=generator, device=weight.device)
            return low + (high - low) * drawn

        bound = self.config.conv_width**-0.5
        self.conv_weight.copy_(draw(self.conv_weight, -bound, bound))
        self.conv_bias.copy_(draw(self.conv_bias, -bound, bound))
        step = draw(self.dt_bias, *map(math.log, STEP_RANGE)).exp()
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        self.log_rate.copy_(draw(self.log_rate, *RATE_RANGE).log())
        self.skip.fill_(1.0)

    @torch.no_grad()
    def init_published(self, generator: torch.Generator, depth: Depth) -> None:
        """Draw the projections as torch's linear layers do, W_out divided by sqrt(layers).

        As `_init_weights` of `mamba_ssm/models/mixer_seq_simple.py` leaves them, for blocks of one residual.
        """
        for projection, divisor in ((self.in_proj, 1.0), (self.out_proj, depth.num_layers**0.5)):
            bound = projection.in_features**-0.5 / divisor
            projection.weight.t().uniform_(-bound, bound, generator=generator)

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why one form cannot run here; None where it can."""
        reasons = {"fla": kernels.missing_reason, "mamba_ssm": missing_reason}
        return reasons[name](device, dtype) if name in reasons else None

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        if state is not None and self.steps_fused(x):
            return self._step(x, state)
        config, wide = self.config, wide_dtype(x.dtype)
        gate, channels, dt = self._project(x, last_only)
        channels = self._convolve(channels, state)
        group = config.num_groups * config.state_size
        values, b, c = channels.split([config.inner_dim, group, group], dim=-1)
        values = values.view(*values.shape[:2], config.num_heads, -1)  # (B, T, H, P)
        b, c = (one.view(*one.shape[:2], config.num_groups, -1) for one in (b, c))  # (B, T, G, N)
        if last_only:
            c = c[:, -1:]
        dt = F.softplus(cast(dt, wide) + cast(self.dt_bias, wide))
        out = cast(self.read_out(self._scan(c, b, values, dt, state)), wide)
        if last_only:
            values = values[:, -1:]
        skipped = torch.addcmul(out, cast(values, wide), cast(self.skip, wide).unsqueeze(-1))
        mixed: Tensor = self.out_proj(self.norm(skipped.flatten(2), gate))
        return mixed

    def _step(self, x: Tensor, state: LayerState) -> Tensor:
        """Compute one token by the fused operators, (B, 1, D) to (B, 1, D); `state` is advanced in place."""
        config = self.config
        self.executed["decode"] = "fused"
        gate, channels, dt = (one.squeeze(1) for one in self._project(x, last_only=False))
        weight = self.conv_weight.squeeze(1)
        channels = fused_linear.convolution_step(channels, weight, self.conv_bias, state["convolution"])
        group = config.num_groups * config.state_size
        values, b, c = channels.split([config.inner_dim, group, group], dim=-1)
        out = fused_linear.linear_step(
            c.unflatten(1, (config.num_groups, -1)),
            b.unflatten(1, (config.num_groups, -1)),
            values.unflatten(1, (config.num_heads, -1)),
            dt,
            state["values"],
            gate="time_step",
            gate_bias=self.dt_bias,
            gate_rate=self.log_rate,
        )
        out = self.read_out(out.unsqueeze(1)).squeeze(1)
        normed = fused_linear.gated_norm(
            out, values, self.skip, gate, self.norm.weight, config.num_groups, config.norm_eps
        )
        mixed: Tensor = self.out_proj(normed).unsqueeze(1)
        return mixed

    def _project(self, x: Tensor, last_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return z (B, T, H P), x with B and C (B, T, channels), and dt (B, T, H); z of the last token alone."""
        config = self.config
        inner, channels, heads = config.inner_dim, config.conv_channels, config.num_heads
        if last_only:
            rest = self.in_proj.part(x, inner, inner + channels + heads)
            return self.in_proj.part(x[:, -1:], 0, inner), *rest.split([channels, heads], dim=-1)
        gate, values, dt = self.in_proj(x).split([inner, channels, heads], dim=-1)
        return gate, values, dt

    def _convolve(self, x: Tensor, state: LayerState | None) -> Tensor:
        """Apply the short convolution to (B, T, channels), and advance its state."""
        weight = self.conv_weight.squeeze(1)
        before = state["convolution"] if state is not None else None
        if before is not None and x.shape[1] == 1 and not torch.is_grad_enabled():
            return short_convolution_step_(x, weight, self.conv_bias, before, activation=_silu_)
        out, after = short_convolution(x, weight, self.conv_bias, before, activation=_silu_)
        self.keep(state, "convolution", after)
        return out

    def _scan(self, c: Tensor, b: Tensor, x: Tensor, dt: Tensor, state: LayerState | None) -> Tensor:
        """Run the operator on queries c and keys b (B, T, G, N), values x (B, T, H, P) and time steps dt (B, T, H)."""
        out: Tensor
        rate = -cast(self.log_rate, dt.dtype).exp()
        steps = state is not None and x.shape[1] == 1 and not torch.is_grad_enabled()
        if self.backend == "mamba_ssm" and c.shape[1] == x.shape[1] and not steps:
            self.executed["prefill"] = self.backend
            out, after = scan_mamba_ssm(c, b, x, dt, rate, None if state is None else state["values"])
            self.keep(state, "values", after)
            return out
        log_decay, values = dt * rate, cast(cast(x, dt.dtype) * dt.unsqueeze(-1), x.dtype)
        return self.operate(c, b, values, log_decay, state, step_decay=log_decay.exp() if steps else None)
