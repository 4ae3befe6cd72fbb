"""Checkpoints of transformers' LlamaForCausalLM, with or without tied embeddings and grouped-query attention.

Source: huggingface/transformers, `models/llama/configuration_llama.py`, `models/llama/modeling_llama.py`.
"""

from pathlib import Path
from typing import Any, Literal

from retbench.architectures.transformer import transformer_config
from retbench.checkpoints.format import Description, Fields, Format, Names, map_decoder
from retbench.errors import CheckpointError
from retbench.mixers.attention.config import Attention
from retbench.mixers.softmax_attention import RotaryScaling
from retbench.ops import ROTARY_BASE
from retbench.strict import Strict

_RotaryType = Literal["default", "linear", "llama3"]


class _RotaryParameters(Strict):
    """Rotary parameters: `rope_parameters` of transformers 5, `rope_scaling` of transformers 4.

    Other types would scale the frequencies by the length of the text, or the scores too.
    """

    rope_type: _RotaryType | None = None
    type: _RotaryType | None = None
    """Old name of `rope_type`."""
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None

    def scaling(self, max_positions: int | None) -> RotaryScaling | None:
        """Return how frequencies are scaled for a model of a longest context; None for the type default.

        Raises:
            ValueError: a field is missing, or out of its range.
        """
        kind = self.rope_type or self.type or "default"
        fields: dict[str, Any] = {}
        if kind != "default":
            fields["factor"] = self.factor
        if kind == "llama3":
            fields |= {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}
            fields["original_len"] = self.original_max_position_embeddings or max_positions
        if absent := [name for name, value in fields.items() if value is None]:
            raise ValueError(f"rotary positions of the type {kind} need {', '.join(absent)}")
        return RotaryScaling(**fields) if fields else None


class _LlamaFields(Fields):
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool = False
    rope_theta: float = ROTARY_BASE
    rope_parameters: _RotaryParameters | None = None
    rope_scaling: _RotaryParameters | None = None
    hidden_act: Literal["silu", "swish"] = "silu"
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    pretraining_tp: Literal[1] = 1


def describe(raw: dict[str, Any], path: Path) -> Description:
    """Read a configuration; CheckpointError if it is invalid, or of a model that this package does not have."""
    fields = _LlamaFields.model_validate(raw)
    heads = fields.num_attention_heads
    if fields.head_dim is not None and fields.head_dim * heads != fields.hidden_size:
        raise CheckpointError(
            f"{path}: head_dim {fields.head_dim} times {heads} heads is not hidden_size {fields.hidden_size}; models "
            "here have heads that together are as wide as the model."
        )
    rotary = fields.rope_scaling or fields.rope_parameters or _RotaryParameters()
    config = transformer_config(
        d_model=fields.hidden_size,
        num_layers=fields.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=fields.num_key_value_heads or heads,
        vocab_size=fields.vocab_size,
        ffn_dim=fields.intermediate_size,
        norm_eps=fields.rms_norm_eps,
        rotary_base=rotary.rope_theta or fields.rope_theta,
        rotary_scaling=rotary.scaling(fields.max_position_embeddings),
    )
    return Description(
        config=config,
        context_len=fields.max_position_embeddings,
        tied_embeddings=fields.tie_word_embeddings,
    )


def render(described: Description) -> dict[str, Any] | None:
    """Return the configuration of a Transformer; None for any other model."""
    config = described.config
    mixer, ffn = config.mixer, config.ffn
    if not isinstance(mixer, Attention) or ffn is None:
        return None
    rotary = _rotary_fields(mixer)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.d_model,
        "intermediate_size": ffn.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        # transformers refuses null, and assumes 2,048 without the field, which its rotary positions do not depend on.
        **({} if described.context_len is None else {"max_position_embeddings": described.context_len}),
        "tie_word_embeddings": described.tied_embeddings,
        # transformers 4 reads the first two, transformers 5 the third.
        "rope_theta": mixer.rotary_base,
        **({"rope_scaling": rotary} if mixer.rotary_scaling else {}),
        "rope_parameters": rotary | {"rope_theta": mixer.rotary_base},
        "hidden_act": "silu",
    }


def _rotary_fields(mixer: Attention) -> dict[str, Any]:
    """Return type and scaling of rotary positions, as `_RotaryParameters` reads them."""
    scaling = mixer.rotary_scaling
    if scaling is None:
        return {"rope_type": "default"}
    if scaling.original_len is None:
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_len,
    }


FORMAT = Format(
    recognises=lambda raw: (
        raw.get("model_type") == "llama" or raw.get("architectures") == ["LlamaForCausalLM"]
    ),
    describe=describe,
    plan=lambda described, stored, ours: map_decoder(described, Names()),
    # Buffers of old releases that follow from the configuration, and the unused head of a model with tied embeddings:
    # transformers too replaces it by the embedding table.
    ignored=r"(model\.layers\.\d+\.self_attn|model)\.rotary_emb\.inv_freq|lm_head\.weight",
    render=render,
)
