"""Conditions that the tests of all mixers share, and a mixer that reads a text in parts."""

import pytest
import torch
from torch import Tensor

from retbench.measure import products
from retbench.mixers.module import MixerModule
from retbench.mixers.state import LayerState, allocate_state
from tests.measure.outcomes import ROW_OUTCOMES

OUTCOMES = (
    *ROW_OUTCOMES,
    *(f"attention_from, {what}" for what in ("bfloat16", "float64", "shared, bfloat16", "shared, float64")),
)


@pytest.fixture(autouse=True)
def _torch_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch counts the operations of its own products only, and which product a process finds faster is chance."""
    monkeypatch.setattr(products, "_found", dict.fromkeys(OUTCOMES, 0))


@torch.no_grad()
def read_in_parts(module: MixerModule, x: Tensor, cuts: list[int]) -> tuple[Tensor, LayerState]:
    """Return the outputs of a text that is read in parts, one call each, and the state after it."""
    state, encoding = allocate_state(module.config.state, len(x), x.shape[1], x, x.dtype), module.encoding()
    start, outs = 0, []
    for part in x.split(cuts, dim=1):
        outs.append(module(part, state, encoding(start, part.shape[1], x.dtype)))
        start += part.shape[1]
    return torch.cat(outs, dim=1), state
