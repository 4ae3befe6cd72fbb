"""Checkpoints of transformers' LlamaForCausalLM, with or without tied embeddings and grouped-query attention.

Source: huggingface/transformers, `models/llama/configuration_llama.py`, `models/llama/modeling_llama.py`.
"""

from pathlib import Path
from typing import Any, Literal

from retbench.architectures.transformer import transformer_config
from retbench.checkpoints.format import Description, Fields, Format, Names, map_decoder
from retbench.errors import CheckpointError
from retbench.mixers.attention.config import Attention
from retbench.ops import ROTARY_BASE
from retbench.strict import Strict


class _RotaryParameters(Strict):
    """Rotary parameters of transformers 5. Any other field would scale them, which models here do not support."""

    rope_type: Literal["default"] = "default"
    rope_theta: float = ROTARY_BASE


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
    rope_scaling: None = None
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
    rotary = fields.rope_parameters or _RotaryParameters(rope_theta=fields.rope_theta)
    config = transformer_config(
        d_model=fields.hidden_size,
        num_layers=fields.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=fields.num_key_value_heads or heads,
        vocab_size=fields.vocab_size,
        ffn_dim=fields.intermediate_size,
        norm_eps=fields.rms_norm_eps,
        rotary_base=rotary.rope_theta,
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
        "max_position_embeddings": described.context_len,
        "tie_word_embeddings": described.tied_embeddings,
        # transformers 4 reads the first, transformers 5 the second.
        "rope_theta": mixer.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.rotary_base},
        "hidden_act": "silu",
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
