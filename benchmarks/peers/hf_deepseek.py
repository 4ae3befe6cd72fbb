"""transformers' DeepseekV2ForCausalLM with dense feed-forwards in all layers: our `mla`."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

from benchmarks.peers import hf_llama, pairs
from retbench.architectures.configs import ModelConfig
from retbench.mixers.latent_attention.config import LatentAttention


def build_peer(config: ModelConfig, *, seed: int, max_len: int) -> DeepseekV2ForCausalLM:
    """Build a DeepSeek-V2 of `config`'s shapes with its own initialisation, and norm weights that are not all one.

    Args:
        config: The model.
        seed: Same seed, same weights.
        max_len: Largest number of positions.
    """
    mixer = _mixer_of(config)
    torch.manual_seed(seed)
    arguments = DeepseekV2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=pairs.ffn_of(config).ffn_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=mixer.num_heads,
        kv_lora_rank=mixer.kv_rank,
        q_lora_rank=mixer.query_rank,
        qk_nope_head_dim=mixer.nope_head_dim,
        qk_rope_head_dim=mixer.rope_head_dim,
        v_head_dim=mixer.value_head_dim,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=max_len,
        tie_word_embeddings=False,
        first_k_dense_replace=config.num_layers,
        attn_implementation="sdpa",
    )
    peer = DeepseekV2ForCausalLM(arguments).eval()
    hf_llama.draw_norms(peer)
    return peer


def _mixer_of(config: ModelConfig) -> LatentAttention:
    """Return the latent attention of a model."""
    assert isinstance(config.mixer, LatentAttention)
    return config.mixer


def map_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return our state dict from DeepSeek-V2's."""
    mapped = {
        "embedding.weight": weights["model.embed_tokens.weight"],
        "norm.weight": weights["model.norm.weight"],
        "head.weight": weights["lm_head.weight"],
    }
    for index in range(config.num_layers):
        ours, lead = f"blocks.{index}", f"model.layers.{index}."
        theirs = {
            name.removeprefix(lead): weight for name, weight in weights.items() if name.startswith(lead)
        }
        mapped |= {
            f"{ours}.mixer_norm.weight": theirs["input_layernorm.weight"],
            f"{ours}.ffn_norm.weight": theirs["post_attention_layernorm.weight"],
            f"{ours}.ffn.gate_up_proj.weight": torch.cat(
                [theirs["mlp.gate_proj.weight"], theirs["mlp.up_proj.weight"]]
            ),
            f"{ours}.ffn.down_proj.weight": theirs["mlp.down_proj.weight"],
        }
        mapped |= {
            f"{ours}.mixer.{name}": part for name, part in _map_mixer(theirs, _mixer_of(config)).items()
        }
    return mapped


def _map_mixer(theirs: Mapping[str, Tensor], mixer: LatentAttention) -> dict[str, Tensor]:
    """Return the weights of one layer's attention."""
    rope, heads = mixer.rope_head_dim, mixer.num_heads
    compressed = mixer.query_rank is not None
    queries = theirs["self_attn.q_b_proj.weight" if compressed else "self_attn.q_proj.weight"]
    queries = _in_halves(queries.unflatten(0, (heads, -1)), rope).flatten(0, 1)
    cached = _in_halves(theirs["self_attn.kv_a_proj_with_mqa.weight"][None], rope)[0]
    keys, values = (
        theirs["self_attn.kv_b_proj.weight"]
        .unflatten(0, (heads, -1))
        .split([mixer.nope_head_dim, mixer.value_head_dim], dim=1)
    )
    first = theirs["self_attn.q_a_proj.weight"] if compressed else queries
    mapped = {
        "in_proj.weight": torch.cat([first, cached]),
        "latent_norm.weight": theirs["self_attn.kv_a_layernorm.weight"],
        "key_up_proj.weight": keys.flatten(0, 1),
        "value_up_proj.weight": values.flatten(0, 1),
        "out_proj.weight": theirs["self_attn.o_proj.weight"],
    }
    if compressed:
        mapped["query_norm.weight"] = theirs["self_attn.q_a_layernorm.weight"]
        mapped["query_up_proj.weight"] = queries
    return mapped


def _in_halves(rows: Tensor, rope: int) -> Tensor:
    """Reorder the last `rope` rows of each head (H, R, I) from adjacent rotary pairs to halves."""
    rotary = rows[:, -rope:].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat([rows[:, :-rope], rotary], dim=1)
