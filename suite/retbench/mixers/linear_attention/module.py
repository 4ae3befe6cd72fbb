"""Linear attention as a torch module: the operator of retention without a decay, on mapped queries and keys."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.mixers.linear_attention.config import LinearAttention
from retbench.mixers.module import MixerModule
from retbench.mixers.state import LayerState
from retbench.ops.constants import Float64Constant, WideConstant
from retbench.ops.layers import make_head_norm
from retbench.ops.linear import Linear
from retbench.ops.position import Positions
from retbench.ops.retention import (
    RetentionForm,
    retention_chunkwise,
    retention_decayed_step_,
    retention_last,
    retention_parallel,
    retention_recurrent,
    wide_dtype,
)


class Normaliser(nn.Module):
    """Divides a read-out (B, T, H, V + 1) by its last column, the sum of the weights, plus eps: (B, T, H, V)."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, out: Tensor) -> Tensor:
        """(B, T, H, V + 1) to (B, T, H, V)."""
        return out[..., :-1] / (out[..., -1:] + self.eps)


class LinearAttentionModule(MixerModule):
    """Causal linear attention; see `LinearAttention` for the feature maps.

    The normaliser is one more column of ones in the values, so that it is summed in the state's dtype: a sum of 16-bit
    numbers would stop growing after some hundred tokens.

    Args:
        config: The mixer.
        form: parallel, chunkwise or recurrent, for more than one token; one token without gradients is always a
            recurrent step in place.
        chunk_size: Tokens of a chunk of the chunkwise form.
    """

    config: LinearAttention

    def __init__(self, config: LinearAttention, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        chunk = chunk_size or config.default_chunk_size
        self.forms: dict[str, RetentionForm] = {
            "parallel": retention_parallel,
            "chunkwise": partial(retention_chunkwise, chunk_size=cast(int, chunk)),
            "recurrent": retention_recurrent,
        }
        self.qkv_proj = Linear(config.d_model, 3 * config.d_model)
        is_normalised = config.feature_map == "elu"
        self.head_norm = (
            Normaliser(config.norm_eps)
            if is_normalised
            else make_head_norm("rms_affine", config.head_dim, config.norm_eps)
        )
        self.out_proj = Linear(config.d_model, config.d_model)
        self.log_decay = Float64Constant(lambda: torch.zeros(config.num_heads, dtype=torch.float64))
        self.decay = WideConstant(lambda: torch.ones(config.num_heads, dtype=torch.float64))

    @property
    def after_operator(self) -> nn.Module:
        """The normaliser or the head norm, which gets (B, T, H, V)."""
        return self.head_norm

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        q, k, v = self._project(x, last_only)
        before = state["values"] if state is not None else None
        log_decay = self.log_decay.value
        if last_only:
            out, values = retention_last(q, k, v, log_decay, before)
            self.keep(state, "values", values)
        elif state is not None and x.shape[1] == 1 and not torch.is_grad_enabled():
            self.executed["decode"] = "recurrent"
            out = retention_decayed_step_(q, k, v, self.decay.value, state["values"])
        else:
            self.executed["prefill"] = self.backend
            out, values = self.forms[self.backend](q, k, v, log_decay, before)
            self.keep(state, "values", values)
        mixed: Tensor = self.out_proj(self.head_norm(out).to(x.dtype).flatten(2))
        return mixed

    def mixing(self, state: LayerState, batch_size: int, context_len: int) -> Callable[[], object]:
        """Return a decode step's operator on the state, which has one cost at every depth."""
        values, dtype = state["values"], self.qkv_proj.weight.dtype
        _, heads, key_dim, value_dim = values.shape
        q, k = torch.randn(2, batch_size, 1, heads, key_dim).to(dtype)
        v = torch.randn(batch_size, 1, heads, value_dim).to(dtype)
        return partial(retention_decayed_step_, q, k, v, self.decay.value, values)

    def _project(self, x: Tensor, last_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return mapped q and k (B, T, H, K) and v (B, T, H, V), q of the last token alone with `last_only`."""
        d = self.config.d_model
        if last_only:
            q = self.qkv_proj.part(x[:, -1:], 0, d)
            k, v = self.qkv_proj.part(x, d, 3 * d).chunk(2, dim=-1)
        else:
            q, k, v = self.qkv_proj(x).chunk(3, dim=-1)
        q, k, v = (one.view(*one.shape[:-1], self.config.num_heads, -1) for one in (q, k, v))
        if self.config.feature_map == "identity":
            return q * self.config.head_dim**-0.5, k, v
        wide = wide_dtype(x.dtype)  # of a sum of weights and its parts, so that no form rounds them apart
        ones = torch.ones_like(v[..., :1], dtype=wide)
        return _features(q.to(wide)), _features(k.to(wide)), torch.cat([v.to(wide), ones], dim=-1)


def _features(x: Tensor) -> Tensor:
    """Return elu(x) + 1, which is positive."""
    return F.elu(x) + 1
