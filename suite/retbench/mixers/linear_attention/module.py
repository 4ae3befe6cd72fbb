"""Linear attention as a torch module: the operator of retention without a decay, on mapped queries and keys."""

import torch
from torch import Tensor, nn

from retbench.mixers.linear_attention.config import LinearAttention
from retbench.mixers.linear_attention.features import Performer, make_feature_map
from retbench.mixers.module import LinearOperatorModule
from retbench.mixers.state import LayerState
from retbench.ops import fused_linear, kernels
from retbench.ops.layers import make_head_norm
from retbench.ops.linear import Linear
from retbench.ops.position import Positions
from retbench.ops.precision import Float64Constant, cast, wide_dtype

UNSCALED_EPS = 1e-30
"""Added to Performer's sum of weights, which can be as small as `features.EPS`: `norm_eps` would change it by 1 %."""


class Normaliser(nn.Module):
    """Divides a read-out (B, T, H, V + 1) by its last column, the sum of the weights, plus eps: (B, T, H, V)."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, out: Tensor) -> Tensor:
        """(B, T, H, V + 1) to (B, T, H, V)."""
        return out[..., :-1] / (out[..., -1:] + self.eps)


class LinearAttentionModule(LinearOperatorModule):
    """Causal linear attention; see `LinearAttention` for the feature maps.

    The normaliser is one more column of ones in the values, so that it is summed in the state's dtype: a sum of 16-bit
    numbers would stop growing after some hundred tokens.
    """

    config: LinearAttention

    def __init__(self, config: LinearAttention, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        self.forms["fla"] = self._read_by_kernel
        self.qkv_proj = Linear(config.d_model, 2 * config.key_dim + config.d_model)
        self.feature_map = make_feature_map(config)
        self.read_out = nn.Identity()
        self.head_norm = (
            Normaliser(UNSCALED_EPS if config.feature_map == "performer" else config.norm_eps)
            if config.is_normalised
            else make_head_norm("rms_affine", config.value_head_dim, config.norm_eps)
        )
        self.out_proj = Linear(config.d_model, config.d_model)
        self.log_decay = Float64Constant(lambda: torch.zeros(config.num_heads, dtype=torch.float64))

    @property
    def after_operator(self) -> nn.Module:
        """The identity that gets the read-out, (B, T, H, V), before the normaliser or the head norm."""
        return self.read_out

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why one form cannot run here; None where it can."""
        if name != "fla":
            return None
        if self.config.is_normalised:
            return (
                f"the features of the map '{self.config.feature_map}' and the sum of their weights are float32, which "
                "flash-linear-attention's kernels multiply in TensorFloat-32; use backend 'chunkwise', or the map "
                "'identity'"
            )
        return kernels.missing_reason(device, dtype)

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        if state is not None and self.steps_fused(x):
            return self._step(x, state)
        q, k, v = self._project(x, last_only)
        k, log_decay = self._map_keys(k, state)
        decay = None if log_decay is None else log_decay.exp()
        out = self.read_out(self.operate(q, k, v, log_decay, state, step_decay=decay))
        mixed: Tensor = self.out_proj(cast(self.head_norm(out), x.dtype).flatten(2))
        return mixed

    def _step(self, x: Tensor, state: LayerState) -> Tensor:
        """Compute one token by the fused operators, (B, 1, D) to (B, 1, D); `state` is advanced in place."""
        config = self.config
        self.executed["decode"] = "fused"
        q, k, v = self._split(x, last_only=False)
        decay, mapped = None, {}
        if isinstance(self.feature_map, Performer):
            wide = wide_dtype(x.dtype)
            q = self.feature_map.of_queries(cast(q, wide))
            k, log_decay = self._map_keys(cast(k, wide), state)
            assert log_decay is not None
            decay = log_decay[:, 0].exp()
        elif config.is_normalised:
            mapped["feature_map"] = config.feature_map
        else:
            mapped["query_scale"] = config.projected_width**-0.5
        out = fused_linear.linear_step(q[:, 0], k[:, 0], v[:, 0], decay, state["values"], **mapped)
        out = self.read_out(out.unsqueeze(1)).squeeze(1)
        kind = "sum" if config.is_normalised else "rms"
        weight = getattr(self.head_norm, "weight", None)
        out = fused_linear.norm_gate(out, weight, None, kind, self.head_norm.eps, x.dtype)
        mixed: Tensor = self.out_proj(out).unsqueeze(1)
        return mixed

    def _read_by_kernel(
        self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute the operator by flash-linear-attention's kernel, which takes a decay."""
        return kernels.retention_fla(q, k, v, self.log_decay.value if log_decay is None else log_decay, state)

    def _map_keys(self, k: Tensor, state: LayerState | None) -> tuple[Tensor, Tensor | None]:
        """Return features of keys (B, T, H, K), and the logarithm of the decay (B, T, H), or None without one."""
        if not isinstance(self.feature_map, Performer):
            return self.feature_map.of_keys(k), None
        features, log_decay, largest = self.feature_map.of_keys(
            k, None if state is None else state["largest"]
        )
        self.keep(state, "largest", largest)
        return features, log_decay

    def _project(self, x: Tensor, last_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return mapped q (B, T, H, K), of the last token alone with `last_only`, k (B, T, H, W) and v (B, T, H, V)."""
        q, k, v = self._split(x, last_only=last_only)
        if not self.config.is_normalised:
            return self.feature_map.of_queries(q), k, v
        wide = wide_dtype(x.dtype)  # of a sum of weights and its parts, so that no form rounds them apart
        ones = torch.ones_like(v[..., :1], dtype=wide)
        values = torch.cat([cast(v, wide), ones], dim=-1)
        return self.feature_map.of_queries(cast(q, wide)), cast(k, wide), values

    def _split(self, x: Tensor, *, last_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return q and k (B, T, H, W) and v (B, T, H, V) as they are projected, without the column of ones."""
        keys, d = self.config.key_dim, self.config.d_model
        if last_only:
            q = self.qkv_proj.part(x[:, -1:], 0, keys)
            k, v = self.qkv_proj.part(x, keys, 2 * keys + d).split([keys, d], dim=-1)
        else:
            q, k, v = self.qkv_proj(x).split([keys, keys, d], dim=-1)
        q, k, v = (one.view(*one.shape[:-1], self.config.num_heads, -1) for one in (q, k, v))
        return q, k, v
