"""Checkpoints of flash-linear-attention: its RetNet and its Transformer, as in `fla-hub/retnet-*` and `transformer-*`.

Since 9 February 2025 the inputs of a feed-forward are `gate_proj` and `up_proj`; before, `gate_proj` held the rows of
both. The norm of the heads is `g_norm_swish_gate` if one kernel computes it with the gate, else `g_norm`.

Source: fla-org/flash-linear-attention, `fla/models/{retnet,transformer}/`, `fla/layers/{multiscale_retention,attn}.py`,
`fla/modules/mlp.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import swiglu_width
from retbench.architectures.retnet import retnet_config
from retbench.architectures.transformer import transformer_config
from retbench.checkpoints.format import Description, Fields, Format, Names, Plan, Shape, map_decoder
from retbench.errors import CheckpointError
from retbench.mixers.retention.config import Retention
from retbench.ops import ROTARY_BASE

NAMES = Names(
    embedding="model.embeddings.weight",
    mixer_norm="attn_norm.weight",
    projections=tuple(f"attn.{letter}_proj.weight" for letter in "qkv"),
    out="attn.o_proj.weight",
    ffn_norm="mlp_norm.weight",
)


class FlaFields(Fields):
    """Fields of all models, with fla's own defaults, since its files may omit them."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_heads: int
    num_kv_heads: int | None = None
    hidden_ratio: float | None
    intermediate_size: int | None = None
    hidden_act: Literal["swish", "silu"] = "swish"
    norm_eps: float = 1e-6
    max_position_embeddings: int | None = 2048
    vocab_size: int = 32000
    tie_word_embeddings: bool = False
    attnres_block_size: None = None

    def shared(self) -> dict[str, Any]:
        """Return the arguments that both recipes take."""
        return {
            "d_model": self.hidden_size,
            "num_layers": self.num_hidden_layers,
            "num_heads": self.num_heads,
            "vocab_size": self.vocab_size,
            "ffn_dim": self.ffn_dim,
            "norm_eps": self.norm_eps,
        }

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward, as in `fla/modules/mlp.py`."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        return swiglu_width(self.hidden_size, self.hidden_ratio or 4)


class _RetNetFields(FlaFields):
    num_heads: int = 8
    hidden_ratio: float | None = 2
    expand_k: float = 1.0
    expand_v: float = 2.0
    feature_map: None = None
    use_output_gate: bool = True
    elementwise_affine: Literal[True, None] = True
    attn: None = None
    """Attention layers among the retention layers."""

    def resolve(self, path: Path) -> ModelConfig:
        """Return the model; CheckpointError for widths of keys that models here do not have."""
        if self.expand_k != 1 or self.num_kv_heads not in (None, self.num_heads):
            raise CheckpointError(
                f"{path}: expand_k {self.expand_k} and num_kv_heads {self.num_kv_heads}; a RetNet here has keys as "
                f"wide as the model (1.0) and one key head for each query head ({self.num_heads})."
            )
        return retnet_config(
            variant="fla",
            value_dim=round(self.hidden_size * self.expand_v),
            decay="eq8",
            swish_gate=self.use_output_gate,
            **self.shared(),
        )


class _TransformerFields(FlaFields):
    num_heads: int = 32
    hidden_ratio: float | None = 4
    rope_theta: float | None = ROTARY_BASE
    window_size: None = None
    qkv_bias: Literal[False] = False
    qk_norm: Literal[False] = False
    attention_bias: Literal[False] = False

    def resolve(self, path: Path) -> ModelConfig:
        """Return the model."""
        return transformer_config(
            variant="llama",
            num_kv_heads=self.num_kv_heads or self.num_heads,
            rotary_base=self.rope_theta or ROTARY_BASE,
            **self.shared(),
        )


def describe(raw: dict[str, Any], path: Path) -> Description:
    """Read a configuration; CheckpointError if it is invalid, or of a model that this package does not have."""
    is_retnet = raw.get("model_type") == "retnet"
    fields = (_RetNetFields if is_retnet else _TransformerFields).model_validate(raw)
    return Description(
        config=fields.resolve(path),
        context_len=fields.max_position_embeddings,
        tied_embeddings=fields.tie_word_embeddings,
    )


def plan(described: Description, stored: Collection[str], ours: Mapping[str, Shape]) -> Plan:
    """Map the weights, with the layout of the feed-forward that the file has."""
    names = with_stored_ffn(NAMES, stored)
    mixer = described.config.mixer
    projection = mixer.projection()
    if projection is not None and mixer.other_params:
        gate = ("attn.g_proj.weight",)[: len(projection.widths) - len(names.projections)]
        fused = "attn.g_norm_swish_gate.weight"
        is_fused = bool(gate) and f"model.layers.0.{fused}" in stored
        names = replace(
            names,
            projections=(*names.projections, *gate),
            head_norm=fused if is_fused else "attn.g_norm.weight",
        )
    return map_decoder(described, names)


def with_stored_ffn(names: Names, stored: Collection[str]) -> Names:
    """Return names with the layout of the feed-forward that the files have: two inputs, or both as one tensor."""
    if "model.layers.0.mlp.up_proj.weight" in stored:
        return names
    return replace(names, gate_up=("mlp.gate_proj.weight",))


def render(described: Description) -> dict[str, Any] | None:
    """Return the configuration of a RetNet; None for any other model, its Transformer included."""
    config = described.config
    mixer, ffn = config.mixer, config.ffn
    if not isinstance(mixer, Retention) or ffn is None:
        return None
    return {
        "architectures": ["RetNetForCausalLM"],
        "model_type": "retnet",
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_heads": mixer.num_heads,
        "expand_k": 1.0,
        "expand_v": mixer.value_dim / config.d_model,
        "use_output_gate": mixer.swish_gate,
        "hidden_ratio": None,
        "intermediate_size": ffn.ffn_dim,
        "hidden_act": "swish",
        "norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": described.context_len,
        "tie_word_embeddings": described.tied_embeddings,
    }


FORMAT = Format(
    recognises=lambda raw: raw.get("model_type") in ("retnet", "transformer") and "num_hidden_layers" in raw,
    describe=describe,
    plan=plan,
    # A buffer that follows from the configuration, and the unused head of a model with tied embeddings.
    ignored=r"model\.layers\.\d+\.attn\.rotary\.inv_freq|lm_head\.weight",
    render=render,
    written=("model.layers.0.mlp.up_proj.weight", "model.layers.0.attn.g_norm_swish_gate.weight"),
)
