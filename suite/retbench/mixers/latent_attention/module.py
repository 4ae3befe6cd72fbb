"""Multi-head latent attention as a torch module: expanded over many tokens, absorbed in a decode step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.mixers.latent_attention.config import LatentAttention
from retbench.mixers.module import MixerModule
from retbench.mixers.state import LayerState
from retbench.ops import attention, fused
from retbench.ops.attention_products import average, score_keys
from retbench.ops.layers import RMSNorm, norm_step
from retbench.ops.linear import Linear
from retbench.ops.position import Positions, Rotary, rotate
from retbench.ops.precision import cast, matmul, wide_dtype


class LatentAttentionModule(MixerModule):
    """Causal attention to latents of R values; see `LatentAttention` for its equations.

    Expanded, as in `reference` and `sdpa`, every latent is multiplied to the keys and values of all heads. Absorbed, a
    query is multiplied by its head's W_key, and the weighted sum of latents by W_value, so that all heads attend to the
    cache as it is. A single query is always absorbed: it would read or write H times the cache otherwise.

    Args:
        config: The mixer.
        form: sdpa: expanded, by torch's fused attention. reference: expanded, with every score and a mask. absorbed:
            every score of the latents and a mask.
        chunk_size: The mixer has no chunks.
    """

    config: LatentAttention

    def __init__(self, config: LatentAttention, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        queries = config.query_rank or config.query_width
        self.in_proj = Linear(config.d_model, queries + config.entry_width)
        if config.query_rank is not None:
            self.query_norm = RMSNorm(config.query_rank, eps=config.norm_eps)
            self.query_up_proj = Linear(config.query_rank, config.query_width)
        self.latent_norm = RMSNorm(config.kv_rank, eps=config.norm_eps)
        self.key_up_proj = Linear(config.kv_rank, config.num_heads * config.nope_head_dim)
        self.value_up_proj = Linear(config.kv_rank, config.num_heads * config.value_head_dim)
        self.out_proj = Linear(config.num_heads * config.value_head_dim, config.d_model)

    @property
    def after_operator(self) -> nn.Module:
        """The output projection, which gets (B, T, H V)."""
        return self.out_proj

    def encoding(self) -> Rotary:
        """Build the rotary positions of the rotated part of a head."""
        return Rotary(self.config.rope_head_dim, "half", self.config.rotary_base)

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        scale = self.config.head_dim**-0.5
        if state is not None and self.steps_fused(x):
            self.executed["decode"] = "fused+absorbed"
            return self._mix(self._attend_absorbed(*self._project_step(x, state, positions, scale)))
        q, entries = self._project(x, positions, last_only)
        if state is not None:
            entries = state.append("latents", entries, positions.start)
        if x.shape[1] == 1:
            self.executed["decode"] = "absorbed"
        if q.shape[1] == 1 or self.backend == "absorbed":
            out = self._attend_absorbed(q * scale, entries)
        else:
            out = self._attend_expanded(q, entries)
        return self._mix(out)

    def _mix(self, out: Tensor) -> Tensor:
        """Project what all heads read, (B, T, H, V), to (B, T, D)."""
        mixed: Tensor = self.out_proj(out.flatten(2))
        return mixed

    def _project_step(
        self, x: Tensor, state: LayerState, positions: Positions, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return scaled queries of one token, (B, 1, H, K), and all that is cached, (B, 1, S, R + P).

        The fused operator writes the token's own entry into the cache.
        """
        config = self.config
        split = self.in_proj.out_features - config.entry_width
        q, entry = self.in_proj(x).squeeze(1).split([split, config.entry_width], dim=-1)
        if config.query_rank is not None:
            q = self.query_up_proj(norm_step(self.query_norm, q.unsqueeze(1)).squeeze(1))
        state.grow(positions.start, 1)
        latents, norm = state["latents"], self.latent_norm
        where = positions.cos, positions.sin, positions.on_device
        q = fused.cache_latent(q, entry, *where, norm.weight, latents, config.head_dim, scale, norm.eps)
        return q.unsqueeze(1), latents[:, :, : positions.start + 1]

    def _project(self, x: Tensor, positions: Positions, last_only: bool) -> tuple[Tensor, Tensor]:
        """Return queries (B, T, H, K), of the last token alone with `last_only`, and what is cached, (B, 1, T, R + P).

        P is the width of the rotated part of a head.
        """
        config = self.config
        split = self.in_proj.out_features - config.entry_width
        if last_only and x.shape[1] > 1:
            q = self.in_proj.part(x[:, -1:], 0, split)
            entries = self.in_proj.part(x, split, self.in_proj.out_features)
        else:
            q, entries = self.in_proj(x).split([split, config.entry_width], dim=-1)
        if config.query_rank is not None:
            q = self.query_up_proj(self.query_norm(q))
        q = q.view(*q.shape[:-1], config.num_heads, config.head_dim)
        content, rotary = q.split([config.nope_head_dim, config.rope_head_dim], dim=-1)
        q = torch.cat([content, rotate(rotary, positions.last if last_only else positions, "half")], dim=-1)
        latent, key = entries.split([config.kv_rank, config.rope_head_dim], dim=-1)
        key = rotate(key.unsqueeze(2), positions, "half").squeeze(2)
        return q, torch.cat([cast(self.latent_norm(latent), key.dtype), key], dim=-1).unsqueeze(1)

    def _attend_expanded(self, q: Tensor, entries: Tensor) -> Tensor:
        """Attend with queries (B, T, H, K) to the keys and values of all entries (B, 1, S, R + P); (B, T, H, V)."""
        config, heads = self.config, self.config.num_heads
        latent, key = entries.squeeze(1).split([config.kv_rank, config.rope_head_dim], dim=-1)
        content = self.key_up_proj(latent).unflatten(-1, (heads, -1))  # (B, S, H, K - P)
        k = torch.cat([content, key.unsqueeze(2).expand(-1, -1, heads, -1)], dim=-1)
        v = self.value_up_proj(latent).unflatten(-1, (heads, -1))
        if self.backend == "sdpa" and config.value_head_dim < config.head_dim:
            # torch's flash kernels take values as wide as keys only. On a CPU the kernel without this condition took
            # three times as long.
            v = F.pad(v, (0, config.head_dim - config.value_head_dim))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if "prefill" not in self.executed:
            self.executed["prefill"] = attention.executed_kernel(self.backend, q, k, v)
        out = attention.BACKENDS[self.backend](q, k, v)
        return out[..., : config.value_head_dim].transpose(1, 2)

    def _attend_absorbed(self, q: Tensor, entries: Tensor) -> Tensor:
        """Attend with scaled queries (B, T, H, K) to entries (B, 1, S, R + P) as they are; (B, T, H, V)."""
        config, heads = self.config, self.config.num_heads
        if q.shape[1] > 1:
            self.executed["prefill"] = "absorbed"
        content, rotary = q.split([config.nope_head_dim, config.rope_head_dim], dim=-1)
        key_up = self.key_up_proj.weight.view(heads, config.nope_head_dim, config.kv_rank)
        value_up = self.value_up_proj.weight.view(heads, config.value_head_dim, config.kv_rank)
        summed = attend_entries(
            torch.cat([_multiply_heads(content, key_up), rotary], dim=-1),  # (B, T, H, R + P)
            entries.squeeze(1),
        )
        return _multiply_heads(summed[..., : config.kv_rank], value_up.transpose(1, 2))


def attend_entries(q: Tensor, entries: Tensor) -> Tensor:
    """Attend from the last T positions to entries that are key and value of all heads; every score is held.

    The products are in the order that torch has a fast kernel for in bfloat16: with the entries on the left, and whole.
    In a trial on a CPU with 32,768 entries they took a quarter of the time of the other order.

    Args:
        q: Queries, scaled, (B, T, H, W).
        entries: (B, S, W), S >= T.

    Returns:
        Weighted sums of entries, (B, T, H, W).
    """
    length, keys = q.shape[1], entries.shape[1]
    scores = score_keys(q.flatten(1, 2), entries)  # (B, T H, S)
    if length == 1:
        return average(scores, entries).view(q.shape)
    later = torch.ones(length, keys, dtype=torch.bool, device=q.device).triu(keys - length + 1)
    scores = scores.unflatten(1, (length, -1)).masked_fill(later[:, None], -torch.inf).flatten(1, 2)
    weights = cast(scores.softmax(dim=-1, dtype=wide_dtype(q.dtype)), q.dtype)
    return matmul(weights, entries).view(q.shape)


def _multiply_heads(x: Tensor, weights: Tensor) -> Tensor:
    """Multiply every head of x (B, T, H, I) by its own matrix of weights (H, I, O); (B, T, H, O)."""
    products = matmul(x.flatten(0, 1).transpose(0, 1), weights)  # (H, B T, O)
    out: Tensor = products.transpose(0, 1).unflatten(0, x.shape[:2])
    return out
