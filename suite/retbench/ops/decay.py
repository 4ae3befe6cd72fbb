"""Decays of retention: fixed schedules per head, and data-dependent gates."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from retbench.ops.precision import cast

GATE_TEMPERATURE = 16
"""tau of gated retention: `gate_logit_normalizer` of YOCO's code; arXiv:2405.05254 prints no value."""

SINGLE_DECAY = 127 / 128
"""The decay of every head without the multi-scale: arXiv:2307.08621, Table 6."""


def decay_schedule(kind: str, num_heads: int) -> Tensor:
    """Return the logarithm of the decay of each head, (H,) float64.

    eq8: 1 - 2^(-5-h), arXiv:2307.08621 Eq. 8, torchscale, fla.
    paper: 1 - exp(linspace(log 1/32, log 1/512, H)), ibid. Sec. 3.1, which the paper's models used.
    single: 127/128 for every head, ibid. Table 6, "- multi-scale decay".
    none: 1, ibid. Table 6, "- gamma decay".
    """
    heads = torch.arange(num_heads, dtype=torch.float64)
    match kind:
        case "eq8":
            return torch.log1p(-(2.0 ** (-5 - heads)))
        case "paper":
            first, last = math.log(1 / 32), math.log(1 / 512)
            return torch.log1p(-torch.linspace(first, last, num_heads, dtype=torch.float64).exp())
        case "single":
            return torch.full((num_heads,), math.log(SINGLE_DECAY), dtype=torch.float64)
        case "none":
            return torch.zeros(num_heads, dtype=torch.float64)
    raise ValueError(f"no schedule of decays is called {kind!r}")


def gated_log_decay(logits: Tensor, wide: torch.dtype) -> Tensor:
    """Return the logarithm of sigmoid(logits)^(1/tau), in the shape of `logits` and the dtype `wide`.

    Source: arXiv:2405.05254, Sec. 3.3.
    """
    return F.logsigmoid(cast(logits, wide)) / GATE_TEMPERATURE
