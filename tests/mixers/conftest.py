"""A mixer that reads a text in parts."""

import torch
from torch import Tensor

from retbench.mixers.module import MixerModule
from retbench.mixers.state import LayerState, allocate_state


@torch.no_grad()
def read_in_parts(module: MixerModule, x: Tensor, cuts: list[int]) -> tuple[Tensor, LayerState]:
    """Return the outputs of a text that is read in parts, one call each, and the state after it."""
    state, encoding = allocate_state(module.config.state, len(x), x.shape[1], x, x.dtype), module.encoding()
    start, outs = 0, []
    for part in x.split(cuts, dim=1):
        outs.append(module(part, state, encoding(start, part.shape[1], x.dtype)))
        start += part.shape[1]
    return torch.cat(outs, dim=1), state
