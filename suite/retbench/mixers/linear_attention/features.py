"""Feature maps of linear attention: queries and keys (..., W) to (..., K), whose product replaces that of softmax.

A map of one token must not depend on later ones, so that parallel and recurrent forms are one function.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.mixers.linear_attention.config import LinearAttention
from retbench.ops.precision import WideConstant

SEED = 0
"""Seed of the random features: every layer of every model has the same ones."""
EPS = 1e-4
"""Added to the random features of a query, the largest of which is 1; `softmax_kernel` of `performer_pytorch`."""


class Elu(nn.Module):
    """elu(x) + 1, which is positive (arXiv:2006.16236, Eq. 7)."""

    def of_queries(self, q: Tensor) -> Tensor:
        """(..., W) to (..., W)."""
        # max(x, 0) + exp(min(x, 0)): of elu torch's compiler would compute expm1 again for each value of a state.
        # q - min(q, 0) is max(q, 0) whose derivative at zero does not depend on the version of torch.
        least = q.clamp(max=0)
        return (q - least) + least.exp_()

    of_keys = of_queries


class Identity(nn.Module):
    """Queries scaled by W^(-1/2), and keys as they are (`fla/layers/linear_attn.py`)."""

    def of_queries(self, q: Tensor) -> Tensor:
        """(..., W) to (..., W)."""
        scaled: Tensor = q * q.shape[-1] ** -0.5
        return scaled

    def of_keys(self, k: Tensor) -> Tensor:
        """(..., W) to (..., W)."""
        return k


class Taylor(nn.Module):
    """[1, x / W^(1/4), (x x^T) / sqrt(2 W)], whose products are 1 + s + s^2 / 2 of s = q k / sqrt(W).

    Source: arXiv:2402.18668, Sec. 3; `based/models/mixers/linear_attention.py` of HazyResearch/based, `TaylorExp`.
    """

    def of_queries(self, q: Tensor) -> Tensor:
        """(..., W) to (..., 1 + W + W^2)."""
        scaled = q * q.shape[-1] ** -0.25
        squares = (scaled[..., :, None] * (scaled * 0.5**0.5)[..., None, :]).flatten(-2)
        return torch.cat([torch.ones_like(q[..., :1]), scaled, squares], dim=-1)

    of_keys = of_queries


class Performer(nn.Module):
    """Positive random features: exp(w x' - |x'|^2 / 2 - c) of x' = x / W^(1/4), for K rows w.

    Published code subtracts a maximum c before the exponential, and adds 1e-4 after it. For a query c is the maximum
    of its own exponents. For keys it is the maximum over all keys in `performer_pytorch`, which depends on later
    tokens, and here that of the keys so far. When it rises, the state is multiplied by exp(c_before - c), a decay.
    Every c cancels in the division by the sum of weights, as the published factor 1 / K would.

    Nothing is added to the features of keys: those of a long key are far below 1e-4, and such a sum would make its
    weights equal. They are positive, and the division by the sum of weights has another epsilon.

    Source: arXiv:2009.14794, Lemma 1 and Sec. 2.4 (orthogonal rows).
    """

    def __init__(self, width: int, num_features: int) -> None:
        super().__init__()
        # Of queries and keys that are still to be divided by W^(1/4).
        self.rows = WideConstant(lambda: draw_orthogonal_rows(num_features, width) * width**-0.25)

    def of_queries(self, q: Tensor) -> Tensor:
        """(..., W) to (..., K)."""
        exponents = self._exponents(q)
        exponents = exponents - exponents.amax(dim=-1, keepdim=True)
        features: Tensor = exponents.exp_() + EPS
        return features

    def of_keys(self, k: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Map the keys of new tokens.

        Args:
            k: (B, T, H, W).
            before: The last value returned for the tokens before; None or zeros where there are none.

        Returns:
            Features (B, T, H, K); the logarithms (B, T, H) of what earlier features are multiplied by at each token,
            at most 0; and, (B, 2, H), the maximum after the last token, with a row of ones: there are tokens.
        """
        exponents = self._exponents(k)
        largest = exponents.detach().amax(-1)
        if k.shape[1] > 1:
            largest = largest.cummax(1).values
        earlier = largest[:, :1]
        if before is not None:
            known = before[:, 1:] > 0
            largest = torch.where(known, largest.maximum(before[:, :1]), largest)
            earlier = torch.where(known, before[:, :1], largest[:, :1])
        if k.shape[1] > 1:
            earlier = torch.cat([earlier, largest[:, :-1]], dim=1)
        log_decay = earlier - largest
        features = (exponents - largest.unsqueeze(-1)).exp_()
        return features, log_decay, torch.stack([largest[:, -1], torch.ones_like(largest[:, -1])], dim=1)

    def _exponents(self, x: Tensor) -> Tensor:
        """Return the exponents of x (B, T, H, W)."""
        exponents: Tensor = self._multiply(x) - x.square().sum(-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)
        return exponents

    def _multiply(self, x: Tensor) -> Tensor:
        """Multiply x by all rows, without autocast, as the exponential would amplify rounded factors."""
        if x.shape[1] == 1:  # a decode step, which never uses it
            return F.linear(x, self.rows.value)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, self.rows.value)


FeatureMapModule = Elu | Identity | Taylor | Performer


def make_feature_map(config: LinearAttention) -> FeatureMapModule:
    """Build the feature map of a linear attention."""
    match config.feature_map:
        case "elu":
            return Elu()
        case "identity":
            return Identity()
        case "taylor":
            return Taylor()
        case "performer":
            return Performer(config.projected_width, config.head_dim)


def draw_orthogonal_rows(num_rows: int, width: int) -> Tensor:
    """Draw rows, (num_rows, width) float64, orthogonal in blocks of `width`, each as long as a normal vector.

    The draw is the same on every machine: NumPy keeps the stream of RandomState, and the decomposition is made unique.
    """
    random = np.random.RandomState(SEED)
    blocks = []
    for _ in range(math.ceil(num_rows / width)):
        q, r = np.linalg.qr(random.standard_normal((width, width)))
        blocks.append((q * np.sign(np.diag(r))).T)
    lengths = np.linalg.norm(random.standard_normal((num_rows, width)), axis=1, keepdims=True)
    return torch.from_numpy(np.concatenate(blocks)[:num_rows] * lengths)
