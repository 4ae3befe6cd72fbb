"""transformers' GPTNeoXForCausalLM without its parallel residual and its biases: the block of our `gpt`."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks.peers import pairs
from retbench.architectures.configs import ModelConfig


def build_peer(config: ModelConfig, *, seed: int, max_len: int) -> GPTNeoXForCausalLM:
    """Build a GPT-NeoX of `config`'s shapes with its own initialisation and norms that are neither one nor zero.

    Args:
        config: The model.
        seed: Same seed, same weights.
        max_len: Largest number of positions.
    """
    torch.manual_seed(seed)
    arguments = GPTNeoXConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=pairs.ffn_of(config).ffn_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.mixer.num_heads,
        hidden_act="gelu",
        layer_norm_eps=config.norm_eps,
        max_position_embeddings=max_len,
        rotary_pct=1.0,
        use_parallel_residual=False,
        attention_bias=False,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    peer = GPTNeoXForCausalLM(arguments).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "mlp" in name and name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return peer


def map_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return our state dict from GPT-NeoX's."""
    mapped = {
        "embedding.weight": weights["gpt_neox.embed_in.weight"],
        "head.weight": weights["lm_head.weight"],
    }
    mapped |= _norm(weights, "norm", "gpt_neox.final_layer_norm")
    for index in range(config.num_layers):
        theirs, ours = f"gpt_neox.layers.{index}", f"blocks.{index}"
        qkv = weights[f"{theirs}.attention.query_key_value.weight"]  # per head, each with its q, k and v
        by_kind = qkv.view(config.mixer.num_heads, 3, config.mixer.head_dim, -1).transpose(0, 1)
        mapped |= {
            f"{ours}.mixer.qkv_proj.weight": by_kind.reshape(3 * config.d_model, -1),
            f"{ours}.mixer.out_proj.weight": weights[f"{theirs}.attention.dense.weight"],
            f"{ours}.ffn.up_proj.weight": weights[f"{theirs}.mlp.dense_h_to_4h.weight"],
            f"{ours}.ffn.down_proj.weight": weights[f"{theirs}.mlp.dense_4h_to_h.weight"],
        }
        mapped |= _norm(weights, f"{ours}.mixer_norm", f"{theirs}.input_layernorm")
        mapped |= _norm(weights, f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm")
    return mapped


def _norm(weights: Mapping[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    """Return weight and bias of a norm."""
    return {f"{ours}.{part}": weights[f"{theirs}.{part}"] for part in ("weight", "bias")}
