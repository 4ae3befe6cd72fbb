"""Time mix and channel mix of RWKV-5 and RWKV-6 as torch modules."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.mixers.module import ChannelMixerModule, Depth, LinearOperatorModule, StatefulModule
from retbench.mixers.rwkv.config import RwkvChannelMix, RwkvTimeMix
from retbench.mixers.rwkv.kernels import KERNELS, missing_reason
from retbench.mixers.state import LayerState
from retbench.ops import fused, fused_linear
from retbench.ops.convolution import token_difference_step_, token_shift
from retbench.ops.linear import Linear, multiply_thin
from retbench.ops.linear_operator import Readout
from retbench.ops.position import Positions
from retbench.ops.precision import cast, wide_dtype

LOW_RANK_GAIN = 0.5
"""Root mean square of what a low rank adds at the start, for inputs of 1, if tanh left them as they are."""
LOW_RANK_BOUND = 1e-2
"""Published range of B_j and D at the start."""


class RwkvTimeMixModule(LinearOperatorModule):
    """The time mix of RWKV-6 or RWKV-5; see `RwkvTimeMix` for what it computes.

    The inputs x_j are in the order w, k, v, r, g, without w if the decay is fixed: what later tokens need comes before
    what a prompt's last token alone needs. Matrices of a low rank have the orientation of the published checkpoints.
    """

    config: RwkvTimeMix
    mix_input: nn.Parameter | None
    mix_down: nn.Parameter | None
    mix_up: nn.Parameter | None
    decay_down: nn.Parameter | None
    decay_up: nn.Parameter | None

    def __init__(self, config: RwkvTimeMix, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        self.forms |= KERNELS
        d, count, rank = config.d_model, config.num_inputs, config.mix_rank
        self.mix = nn.Parameter(torch.empty(count * d))
        # A_j and C are stored by output: on a CPU a single row is then multiplied in 0.6 to 0.9 of the time.
        down, up = torch.empty(count * rank, d).t(), torch.empty(count, rank, d)  # A_j, B_j
        self._register(rank, mix_input=torch.empty(d), mix_down=down, mix_up=up)
        self.log_rate = nn.Parameter(torch.empty(d))  # w
        down, up = torch.empty(config.decay_rank, d).t(), torch.empty(config.decay_rank, d)  # C, D
        self._register(config.decay_rank, decay_down=down, decay_up=up)
        self.bonus = nn.Parameter(torch.empty(d))  # u
        self.key_proj, self.value_proj = Linear(d, d), Linear(d, d)
        self.receptance_proj, self.gate_proj = Linear(d, d), Linear(d, d)
        self.read_out = nn.Identity()
        self.head_norm = nn.GroupNorm(config.num_heads, d, config.norm_eps)
        self.out_proj = Linear(d, d)

    def _register(self, rank: int, **weights: Tensor) -> None:
        """Register parameters by name, as None if their rank is 0."""
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight) if rank else None)

    @property
    def after_operator(self) -> nn.Module:
        """The identity that gets the read-out, (B, T, H, V), before the head norm."""
        return self.read_out

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, depth: Depth) -> None:
        """Set the vectors as `RWKV-v5/src/model.py` of BlinkDL/RWKV-LM does, and draw the matrices of a low rank.

        The published code starts A_j, C and W_o at zero, as `init_published` does. With such weights the equivalence
        check would find no fault in what depends on the data. So A_j, B_j, C and D are drawn such that decays and
        interpolation visibly depend on it, and W_o like every projection here.
        """
        d, rise = self.config.d_model, depth.layer / max(1, depth.num_layers - 1)
        index = torch.arange(d, dtype=torch.float64)
        place = index / max(1, d - 1)  # from 0 to 1
        late, early = _powers(d, depth, 1.0), _powers(d, depth, 0.5)
        mixes = [1 - late, 1 - late, 1 - late - 0.3 * rise, 1 - early, 1 - early]
        self.mix.copy_(torch.cat(mixes[-self.config.num_inputs :]))
        self.log_rate.copy_(-6 + 5 * place ** (0.7 + 1.3 * rise))
        self.bonus.copy_(rise * (1 - place) + 0.1 * ((index + 1) % 3 - 1))
        self.head_norm.weight.fill_(((1 + depth.layer) / depth.num_layers) ** 0.7)
        if self.mix_input is not None:
            self.mix_input.copy_(1 - late)
        for down, up in self._low_ranks():
            down.t().normal_(0.0, d**-0.5, generator=generator)  # in memory order
            up.normal_(0.0, LOW_RANK_GAIN * up.shape[-2] ** -0.5, generator=generator)

    @torch.no_grad()
    def init_published(self, generator: torch.Generator, depth: Depth) -> None:
        """Draw the projections as `RWKV-v5/src/model.py` does: orthogonal, with A_j, C and W_o at zero."""
        for projection, gain in (
            (self.receptance_proj, 1.0),
            (self.key_proj, 0.1),
            (self.value_proj, 1.0),
            (self.gate_proj, 0.1),
        ):
            _draw_orthogonal(projection, gain, generator)
        self.out_proj.weight.zero_()
        for down, up in self._low_ranks():
            down.zero_()
            up.uniform_(-LOW_RANK_BOUND, LOW_RANK_BOUND, generator=generator)

    def _low_ranks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield A_j and B_j, then C and D, without those of rank 0."""
        for down, up in ((self.mix_down, self.mix_up), (self.decay_down, self.decay_up)):
            if down is not None and up is not None:
                yield down, up

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why one form cannot run here; None where it can."""
        return missing_reason(name, device, dtype) if name in KERNELS else None

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        if state is not None and self.steps_fused(x):
            return self._step(x, state)
        r, k, v, log_decay, gate = self._project(x, state, last_only=last_only)
        step_decay = log_decay.exp() if x.shape[1] == 1 else None
        readout = Readout(self.bonus.view(self.config.num_heads, -1))
        log_decay = log_decay.expand(*k.shape[:2], -1, -1)
        out = self.operate(r, k, v, log_decay, state, step_decay=step_decay, readout=readout)
        out = self.read_out(out)  # (B, T, H, V)
        normed = self.head_norm(out.reshape(-1, self.config.d_model)).view(gate.shape)
        mixed: Tensor = self.out_proj(gate * normed)
        return mixed

    def _step(self, x: Tensor, state: LayerState) -> Tensor:
        """Compute one token by the fused operators, (B, 1, D) to (B, 1, D); `state` is advanced in place."""
        self.executed["decode"] = "fused"
        x, before = x.squeeze(1), state["time_shift"]
        weights = self.mix.view(-1, 1, self.config.d_model)
        if self.mix_input is not None:
            (seen,) = fused_linear.shift(x, before, self.mix_input.view(1, 1, -1), keeps=False)
            weights = self._mix_weights(seen, weights, 0, self.config.num_inputs)
        inputs = fused_linear.shift(x, before, weights, keeps=True).unbind(0)
        *x_decay, x_key, x_value, x_receptance, x_gate = inputs
        out = fused_linear.linear_step(
            self._heads(self.receptance_proj(x_receptance)),
            self._heads(self.key_proj(x_key)),
            self._heads(self.value_proj(x_value)),
            self._heads(self._low_rate(*x_decay) if x_decay else self.log_rate.expand_as(x)),
            state["values"],
            gate="exponential",
            gate_bias=self.log_rate if x_decay else None,
            bonus=self.bonus,
        )
        out = self.read_out(out.unsqueeze(1)).squeeze(1)
        gate, norm = self.gate_proj(x_gate), self.head_norm
        out = fused_linear.norm_gate(out, norm.weight, gate, "layer", norm.eps, x.dtype, norm.bias)
        mixed: Tensor = self.out_proj(out).unsqueeze(1)
        return mixed

    def _project(
        self, x: Tensor, state: LayerState | None, *, last_only: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return r, k, v, the logarithm of the decay, (B, T, H, K) each, and the open gate, (B, T, D).

        With `last_only` r and the gate are of the last token alone. A fixed decay is (1, 1, H, K).
        """
        streamed, end = self.config.num_streamed_inputs, self.config.num_inputs
        difference = _difference(x, state, "time_shift")
        if last_only:
            inputs = self._interpolate(x, difference, 0, streamed)
            inputs += self._interpolate(x[:, -1:], difference[:, -1:], streamed, end)
        else:
            inputs = self._interpolate(x, difference, 0, end)
        *x_decay, x_key, x_value, x_receptance, x_gate = inputs
        return (
            self._heads(self.receptance_proj(x_receptance)),
            self._heads(self.key_proj(x_key)),
            self._heads(self.value_proj(x_value)),
            self._log_decay(*x_decay),
            F.silu(self.gate_proj(x_gate)),
        )

    def _interpolate(self, x: Tensor, difference: Tensor, first: int, end: int) -> list[Tensor]:
        """Return inputs x_j of number first .. end - 1, (B, T, D) each, from x and x_previous - x."""
        shape = x.shape
        x, difference = x.flatten(0, 1), difference.flatten(0, 1)  # (B T, D)
        mix = self.mix.view(-1, 1, shape[-1])[first:end]  # (J, 1, D)
        if self.mix_input is not None:
            mix = self._mix_weights(torch.addcmul(x, difference, self.mix_input), mix, first, end)
        return list(torch.addcmul(x, difference, mix).view(-1, *shape).unbind(0))

    def _mix_weights(self, seen: Tensor, mix: Tensor, first: int, end: int) -> Tensor:
        """Return weights (J, N, D) of inputs first .. end - 1: mix (J, 1, D) and what depends on rows seen (N, D)."""
        assert self.mix_down is not None
        assert self.mix_up is not None
        rank = self.config.mix_rank
        low = torch.tanh(multiply_thin(seen, self.mix_down[:, first * rank : end * rank]))  # (N, J rank)
        low = low.unflatten(1, (-1, rank)).transpose(0, 1)  # (J, N, rank)
        return multiply_thin(low, self.mix_up[first:end], mix)

    def _log_decay(self, x_decay: Tensor | None = None) -> Tensor:
        """Return the logarithm of the decay in the wide dtype, (B, T, H, K), or (1, 1, H, K) if it is fixed."""
        log_rate = cast(self.log_rate, wide_dtype(self.log_rate.dtype)).view(1, 1, -1)
        if x_decay is not None:
            log_rate = log_rate + self._low_rate(x_decay)
        return self._heads(-log_rate.exp())

    def _low_rate(self, x_decay: Tensor) -> Tensor:
        """Return what is added to the logarithm of the rate, (..., D)."""
        assert self.decay_down is not None
        assert self.decay_up is not None
        return multiply_thin(torch.tanh(multiply_thin(x_decay, self.decay_down)), self.decay_up)

    def _heads(self, x: Tensor) -> Tensor:
        """(..., D) as heads, (..., H, K)."""
        return x.view(*x.shape[:-1], self.config.num_heads, -1)


class RwkvChannelMixModule(ChannelMixerModule):
    """The channel mix of RWKV-5 and RWKV-6; see `RwkvChannelMix` for what it computes."""

    def __init__(self, config: RwkvChannelMix) -> None:
        super().__init__()
        d, width = config.d_model, config.ffn_dim
        self.key_mix, self.receptance_mix = nn.Parameter(torch.empty(d)), nn.Parameter(torch.empty(d))
        self.key_proj, self.value_proj = Linear(d, width), Linear(width, d)
        self.receptance_proj = Linear(d, d)

    @property
    def after_operator(self) -> nn.Module:
        """The product with W_v, which gets (B, T, F)."""
        return self.value_proj

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, depth: Depth) -> None:
        """Set the vectors as `RWKV-v5/src/model.py` of BlinkDL/RWKV-LM does."""
        for mix in (self.key_mix, self.receptance_mix):
            mix.copy_(1 - _powers(len(mix), depth, 1.0))

    @torch.no_grad()
    def init_published(self, generator: torch.Generator, depth: Depth) -> None:
        """Draw W_k orthogonal, with W_v and W_r at zero, as `RWKV-v5/src/model.py` does."""
        _draw_orthogonal(self.key_proj, 1.0, generator)
        self.value_proj.weight.zero_()
        self.receptance_proj.weight.zero_()

    def forward(self, x: Tensor, state: LayerState | None, *, last_only: bool = False) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        if state is not None and self.steps_fused(x):
            return self._step(x, state)
        difference = _difference(x, state, "channel_shift")
        if last_only:
            x, difference = x[:, -1:], difference[:, -1:]
        hidden = F.relu(self.key_proj(torch.addcmul(x, difference, self.key_mix))).square()
        receptance = torch.sigmoid(self.receptance_proj(torch.addcmul(x, difference, self.receptance_mix)))
        out: Tensor = receptance * self.value_proj(hidden)
        return out

    def _step(self, x: Tensor, state: LayerState) -> Tensor:
        """Compute one token by the fused operators, (B, 1, D) to (B, 1, D); `state` is advanced in place."""
        x, before = x.squeeze(1), state["channel_shift"]
        (x_key,) = fused_linear.shift(x, before, self.key_mix.view(1, 1, -1), keeps=False)
        (x_receptance,) = fused_linear.shift(x, before, self.receptance_mix.view(1, 1, -1), keeps=True)
        hidden = fused.activate(self.key_proj(x_key), None, "relu_squared")
        values = self.value_proj(hidden)
        out: Tensor = fused.activate(self.receptance_proj(x_receptance), values, "sigmoid")
        return out.unsqueeze(1)


def _difference(x: Tensor, state: LayerState | None, name: str) -> Tensor:
    """Return the input before each of x (B, T, D), less x, and put the last into a tensor of the state."""
    if state is not None and x.shape[1] == 1 and not torch.is_grad_enabled():
        return token_difference_step_(x, state[name])
    previous, last = token_shift(x, None if state is None else state[name])
    StatefulModule.keep(state, name, last)
    return previous - x


def _draw_orthogonal(projection: Linear, gain: float, generator: torch.Generator) -> None:
    """Draw a semi-orthogonal weight (out, in), times `gain` and, where it has more outputs, sqrt(out / in)."""
    weight = projection.weight
    rise = max(1.0, projection.out_features / projection.in_features) ** 0.5
    drawn = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    weight.copy_(nn.init.orthogonal_(drawn, gain * rise, generator=generator))


def _powers(width: int, depth: Depth, factor: float) -> Tensor:
    """Return (i / width)^p for each channel i, where p falls from `factor` to almost 0 over the layers."""
    places = torch.arange(width, dtype=torch.float64) / width
    return places ** (factor * (1 - depth.layer / depth.num_layers))
