"""Checkpoints of flash-linear-attention's GLA, as in `fla-hub/gla-*`.

The feed-forward and the norm of the heads are stored as in its other models; see `retbench.checkpoints.fla`.

Source: fla-org/flash-linear-attention, `fla/models/gla/`, `fla/layers/gla.py`, `fla/modules/mlp.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from retbench.architectures.configs import ModelConfig
from retbench.architectures.gla import gla_config
from retbench.checkpoints.fla import NAMES, FlaFields, with_stored_ffn
from retbench.checkpoints.format import Description, Format, Plan, Shape, WeightPart, map_decoder
from retbench.errors import CheckpointError
from retbench.mixers.gated_linear_attention.config import GatedLinearAttention

_GLA_NAMES = replace(
    NAMES,
    projections=tuple(
        f"attn.{part}.weight" for part in ("q_proj", "g_proj", "k_proj", "v_proj", "gk_proj.0")
    ),
)


class _GlaFields(FlaFields):
    num_heads: int = 4
    hidden_ratio: float | None = 4
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_low_rank_dim: int = 16
    gate_logit_normalizer: Literal[16] = 16
    clamp_min: None = None
    feature_map: None = None
    use_output_gate: Literal[True] = True
    use_short_conv: Literal[False] = False
    elementwise_affine: Literal[True, None] = True
    attn: None = None
    """Attention layers among the layers of GLA."""

    def resolve(self, path: Path) -> ModelConfig:
        """Return the model; CheckpointError for shared key heads, which models here do not have."""
        if self.num_kv_heads not in (None, self.num_heads):
            raise CheckpointError(
                f"{path}: num_kv_heads {self.num_kv_heads}; a GLA here has one key head for each query head "
                f"({self.num_heads})."
            )
        mixer = GatedLinearAttention(
            d_model=self.hidden_size,
            num_heads=self.num_heads,
            key_dim=int(self.hidden_size * self.expand_k),
            value_dim=int(self.hidden_size * self.expand_v),
            gate_rank=self.gate_low_rank_dim,
            norm_eps=self.norm_eps,
        )
        sizes = {"num_layers": self.num_hidden_layers, "vocab_size": self.vocab_size, "ffn_dim": self.ffn_dim}
        return gla_config(mixer, **sizes, norm_eps=self.norm_eps)


def describe(raw: dict[str, Any], path: Path) -> Description:
    """Read a configuration; CheckpointError if it is invalid, or of a model that this package does not have."""
    fields = _GlaFields.model_validate(raw)
    return Description(
        config=fields.resolve(path),
        context_len=fields.max_position_embeddings,
        tied_embeddings=fields.tie_word_embeddings,
    )


def plan(described: Description, stored: Collection[str], ours: Mapping[str, Shape]) -> Plan:
    """Map the weights: those of every decoder, then the second factor of the decay and the norm of the heads."""
    found = map_decoder(described, with_stored_ffn(_GLA_NAMES, stored))
    is_fused = "model.layers.0.attn.g_norm_swish_gate.weight" in stored
    names = {
        "decay_proj.weight": "gk_proj.1.weight",
        "decay_proj.bias": "gk_proj.1.bias",
        "head_norm.weight": "g_norm_swish_gate.weight" if is_fused else "g_norm.weight",
    }
    for index in range(described.config.num_layers):
        for own, theirs in names.items():
            name = f"blocks.{index}.mixer.{own}"
            found[name] = (WeightPart(f"model.layers.{index}.attn.{theirs}", ours[name]),)
    return found


FORMAT = Format(
    recognises=lambda raw: raw.get("model_type") == "gla" and "num_hidden_layers" in raw,
    describe=describe,
    plan=plan,
    ignored=r"lm_head\.weight",  # the unused head of a model with tied embeddings
)
