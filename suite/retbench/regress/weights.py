"""Weights that are the same everywhere: drawn from a hash of their names, by no generator whose stream may change."""

import hashlib
import math

import numpy as np
import torch
from torch import nn

_NORM_SPREAD = 0.25
"""Weights of norms are spread so far about 1 and biases about 0, so that none can be left out unseen."""


@torch.no_grad()
def fill_weights(model: nn.Module) -> None:
    """Fill every parameter with numbers that depend on its name and shape alone.

    Matrices get the standard deviation that keeps the size of what passes through, so that every layer counts.
    """
    for name, parameter in model.named_parameters():
        values = _uniform(f"{name} {tuple(parameter.shape)}", parameter.numel())
        if parameter.dim() == 1:
            middle = 0.0 if name.endswith("bias") else 1.0
            values = middle + _NORM_SPREAD * values
        elif "embedding" not in name:
            values *= math.sqrt(3 / parameter.shape[-1])
        parameter.copy_(torch.from_numpy(values.reshape(parameter.shape)))


def _uniform(label: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Numbers between -1 and 1 of 32 bits each, from the SHAKE-256 of a label."""
    digest = hashlib.shake_256(label.encode()).digest(4 * count)
    return np.frombuffer(digest, dtype="<u4").astype(np.float64) / 2**31 - 1
