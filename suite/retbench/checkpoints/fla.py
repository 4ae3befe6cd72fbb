"""Checkpoints of flash-linear-attention: its RetNet and its Transformer, as in `fla-hub/retnet-*` and `transformer-*`.

Since 9 February 2025 a feed-forward's inputs are `gate_proj` and `up_proj`; before, `gate_proj` held both, one below
the other. The norm of the heads is `g_norm_swish_gate` where it is one kernel with the gate, else `g_norm`.

Source: fla-org/flash-linear-attention, `fla/models/{retnet,transformer}/`, `fla/layers/{multiscale_retention,attn}.py`,
`fla/modules/mlp.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from retbench.architectures.retnet import retnet_config
from retbench.architectures.transformer import transformer_config
from retbench.checkpoints.config_file import Fields, parse
from retbench.checkpoints.info import Description
from retbench.checkpoints.mapping import Names, Plan, Shape, map_decoder
from retbench.errors import CheckpointError
from retbench.ops import ROTARY_BASE

IGNORED = r"model\.layers\.\d+\.attn\.rotary\.inv_freq|lm_head\.weight"
"""A buffer, which follows from the configuration; and the head of a model that does not use it, being tied."""

_NAMES = Names(
    embedding="model.embeddings.weight",
    norm="model.norm.weight",
    head="lm_head.weight",
    layer="model.layers.{}",
    mixer_norm="attn_norm.weight",
    projections=("attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"),
    out="attn.o_proj.weight",
    ffn_norm="mlp_norm.weight",
    gate_up=("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    down="mlp.down_proj.weight",
)


class _FlaFields(Fields):
    """What both models have; the defaults are fla's own, which its files may leave out."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_kv_heads: int | None = None
    intermediate_size: int | None = None
    hidden_act: Literal["swish", "silu"] = "swish"
    norm_eps: float = 1e-6
    max_position_embeddings: int | None = 2048
    vocab_size: int = 32000
    tie_word_embeddings: bool = False
    attnres_block_size: None = None


class _RetNetFields(_FlaFields):
    num_heads: int = 8
    hidden_ratio: float | None = 2
    expand_k: float = 1.0
    expand_v: float = 2.0
    feature_map: None = None
    use_output_gate: bool = True
    elementwise_affine: Literal[True, None] = True
    attn: None = None
    """Layers of attention among those of retention."""


class _TransformerFields(_FlaFields):
    num_heads: int = 32
    hidden_ratio: float | None = 4
    rope_theta: float | None = ROTARY_BASE
    window_size: None = None
    qkv_bias: Literal[False] = False
    qk_norm: Literal[False] = False
    attention_bias: Literal[False] = False


def recognises(raw: Mapping[str, Any]) -> bool:
    """Whether a configuration says that it is fla's RetNet or Transformer."""
    return raw.get("model_type") in ("retnet", "transformer") and "num_hidden_layers" in raw


def describe(raw: dict[str, Any], path: Path) -> Description:
    """What a configuration says; CheckpointError where it is none, or of a model that this package does not have."""
    is_retnet = raw.get("model_type") == "retnet"
    return _describe_retnet(raw, path) if is_retnet else _describe_transformer(raw, path)


def _describe_retnet(raw: dict[str, Any], path: Path) -> Description:
    """What a RetNet's configuration says."""
    fields = parse(_RetNetFields, raw, path)
    if fields.expand_k != 1 or fields.num_kv_heads not in (None, fields.num_heads):
        raise CheckpointError(
            f"{path}: expand_k {fields.expand_k} and num_kv_heads {fields.num_kv_heads}; a RetNet here has keys as "
            f"wide as the model (1.0) and one key head for each query head ({fields.num_heads})."
        )
    config = retnet_config(
        variant="fla",
        value_dim=round(fields.hidden_size * fields.expand_v),
        decay="eq8",
        swish_gate=fields.use_output_gate,
        num_heads=fields.num_heads,
        **_common(fields, fields.hidden_ratio),
    )
    return Description(config, fields.max_position_embeddings, fields.tie_word_embeddings)


def _describe_transformer(raw: dict[str, Any], path: Path) -> Description:
    """What a Transformer's configuration says."""
    fields = parse(_TransformerFields, raw, path)
    config = transformer_config(
        variant="llama",
        num_heads=fields.num_heads,
        num_kv_heads=fields.num_kv_heads or fields.num_heads,
        rotary_base=fields.rope_theta or ROTARY_BASE,
        **_common(fields, fields.hidden_ratio),
    )
    return Description(config, fields.max_position_embeddings, fields.tie_word_embeddings)


def _common(fields: _FlaFields, hidden_ratio: float | None) -> dict[str, Any]:
    """Fields of ours that both models have."""
    ffn_dim = fields.intermediate_size
    if ffn_dim is None:  # `fla/modules/mlp.py`: two thirds of the ratio, up to a multiple of 256
        ffn_dim = 256 * -(-int(fields.hidden_size * (hidden_ratio or 4) * 2 / 3) // 256)
    return {
        "d_model": fields.hidden_size,
        "num_layers": fields.num_hidden_layers,
        "vocab_size": fields.vocab_size,
        "ffn_dim": ffn_dim,
        "norm_eps": fields.norm_eps,
    }


def plan(described: Description, stored: Collection[str], ours: Mapping[str, Shape]) -> Plan:
    """Where the weights are, in whichever of the two layouts of a feed-forward the file has."""
    names = _NAMES
    if "model.layers.0.mlp.up_proj.weight" not in stored:
        names = replace(names, gate_up=("mlp.gate_proj.weight",))
    mixer = described.config.mixer
    projection = mixer.projection()
    if projection is not None and mixer.other_params:
        gate = ("attn.g_proj.weight",)[: len(projection.widths) - len(names.projections)]
        fused = "attn.g_norm_swish_gate.weight"
        is_fused = f"model.layers.0.{fused}" in stored
        names = replace(
            names,
            projections=(*names.projections, *gate),
            head_norm=fused if is_fused else "attn.g_norm.weight",
        )
    return map_decoder(described.config, names, tied_embeddings=described.tied_embeddings)
