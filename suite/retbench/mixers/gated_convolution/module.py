"""Gated convolution as a torch module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.mixers.gated_convolution.config import GatedConvolution
from retbench.mixers.module import Depth, MixerModule
from retbench.mixers.state import LayerState
from retbench.ops import fused_linear
from retbench.ops.convolution import empty_weight, short_convolution, short_convolution_step_
from retbench.ops.linear import Linear
from retbench.ops.position import Positions


class GatedConvolutionModule(MixerModule):
    """A short causal convolution with a gate; see `GatedConvolution`.

    Args:
        config: The mixer.
        form: convolution: all tokens at once. recurrent: token by token.
        chunk_size: The mixer has no chunks to choose.
    """

    config: GatedConvolution

    def __init__(self, config: GatedConvolution, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        self.in_proj = Linear(config.d_model, 2 * config.inner_width)
        self.conv_weight = nn.Parameter(empty_weight(config.inner_width, config.kernel_size))
        self.out_proj = Linear(config.inner_width, config.d_model)
        self.read_out = nn.Identity()

    @property
    def after_operator(self) -> nn.Module:
        """The identity that gets the convolved channels, (B, T, W)."""
        return self.read_out

    def init_weights(self, generator: torch.Generator, depth: Depth) -> None:
        """Draw the weights of the convolution from the uniform distribution of torch's convolutions."""
        bound = self.config.kernel_size**-0.5
        drawn = torch.empty(self.conv_weight.shape, device=self.conv_weight.device)
        self.conv_weight.copy_(drawn.uniform_(-bound, bound, generator=generator))

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        width = self.config.inner_width
        if last_only:
            gate = self.in_proj.part(x[:, -1:], width, 2 * width)
            convolved = self._convolve(self.in_proj.part(x, 0, width), state)[:, -1:]
        else:
            inputs, gate = self.in_proj(x).split(width, dim=-1)
            convolved = self._convolve(inputs, state)
        mixed: Tensor = self.out_proj(self.read_out(convolved) * gate)
        return mixed

    def _convolve(self, inputs: Tensor, state: LayerState | None) -> Tensor:
        """Convolve and activate inputs (B, T, W)."""
        before = state["inputs"] if state is not None else None
        if before is not None and self.steps_fused(inputs):
            self.executed["decode"] = "fused"
            step: Tensor = fused_linear.convolution_step(inputs.squeeze(1), self.conv_weight, None, before)
            return step.unsqueeze(1)
        if before is not None and inputs.shape[1] == 1 and not torch.is_grad_enabled():
            self.executed["decode"] = "recurrent"
            return short_convolution_step_(inputs, self.conv_weight, None, before, activation=F.silu)
        self.executed["prefill"] = self.backend
        outs = []
        for part in inputs.split(1 if self.backend == "recurrent" else inputs.shape[1], dim=1):
            out, before = short_convolution(part, self.conv_weight, None, before, activation=F.silu)
            outs.append(out)
        assert before is not None
        self.keep(state, "inputs", before)
        return torch.cat(outs, dim=1)
