"""The torch module of minGRU; imported when a model is built."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retbench.mixers.module import MixerModule
from retbench.ops.precision import wide_dtype


class MinGruModule(MixerModule):
    """minGRU: (B, T, D) in and out, with a hidden state (B, D) that is advanced in place."""

    def __init__(self, config: Any, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        self.chunk_size = chunk_size or config.default_chunk_size
        self.in_proj = nn.Linear(config.d_model, 2 * config.d_model, bias=False)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    @property
    def after_operator(self) -> nn.Module:
        """The output projection, before which the forms are compared in 16-bit dtypes."""
        return self.out_proj

    def forward(self, x: Tensor, state: Any, positions: Any, *, last_only: bool = False) -> Tensor:
        """Mix the tokens; see `MixerModule.forward`."""
        gate, values = self.in_proj(x).to(wide_dtype(x.dtype)).chunk(2, dim=-1)
        log_kept, added = F.logsigmoid(-gate), gate.sigmoid() * values  # log (1 - z), z v
        hidden = torch.zeros_like(added[:, 0]) if state is None else state["hidden"]
        is_step = x.shape[1] == 1
        self.executed["decode" if is_step else "prefill"] = "recurrent" if is_step else self.backend
        parts = 1 if is_step or self.backend == "recurrent" else self.chunk_size
        outputs = []
        for kept, new in zip(log_kept.split(parts, 1), added.split(parts, 1), strict=True):
            mixed = _mix(kept, new, hidden)
            hidden = mixed[:, -1]
            outputs.append(mixed)
        self.keep(state, "hidden", hidden)
        mixed = hidden[:, None] if last_only else torch.cat(outputs, dim=1)
        return self.out_proj(mixed.to(x.dtype))


def _mix(log_kept: Tensor, added: Tensor, hidden: Tensor) -> Tensor:
    """Return the hidden states of a chunk, (B, C, D), after `hidden` (B, D): each adds up the tokens up to its own."""
    total = log_kept.cumsum(dim=1)
    if total.shape[1] == 1:
        return added + total.exp() * hidden[:, None]
    later = torch.ones(total.shape[1], total.shape[1], dtype=torch.bool, device=total.device).triu(1)
    weights = (
        (total[:, :, None] - total[:, None]).masked_fill(later[..., None], -torch.inf).exp()
    )  # (B, C, C, D)
    return (weights * added[:, None]).sum(dim=2) + total.exp() * hidden[:, None]
