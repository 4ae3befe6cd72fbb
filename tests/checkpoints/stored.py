"""Checkpoints as other libraries write them, small, with weights so large and norms so uneven that every part shows."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.peers import fla_retnet
from retbench.architectures.configs import ModelConfig, default_backend
from retbench.architectures.gla import gla_config
from retbench.architectures.retnet import retnet_config
from retbench.architectures.transformer import transformer_config
from retbench.checkpoints.format import Description
from retbench.checkpoints.loading import load_checkpoint
from retbench.checkpoints.native import save_checkpoint
from retbench.checkpoints.reading import read_checkpoint
from retbench.mixers.gated_linear_attention.config import GatedLinearAttention
from retbench.models.build import build_model
from retbench.models.decoder import Decoder

LLAMA = transformer_config(
    d_model=48, num_layers=2, num_heads=6, num_kv_heads=2, vocab_size=97, ffn_dim=40, norm_eps=1e-5
)
FLA = retnet_config(d_model=48, num_layers=2, num_heads=3, vocab_size=97, ffn_dim=40, value_dim=96)
GLA = gla_config(
    GatedLinearAttention(d_model=48, num_heads=3, key_dim=24, value_dim=48, gate_rank=5, norm_eps=1e-5),
    num_layers=2,
    vocab_size=97,
    ffn_dim=40,
    norm_eps=1e-5,
)


def tokens_for(config: ModelConfig, length: int = 37) -> Tensor:
    """(1, T) int64 over the whole vocabulary."""
    return torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))


def load(folder: Path, **options: Any) -> Decoder:
    """A checkpoint in float32 on the CPU, in a backend that it has."""
    info = read_checkpoint(str(folder))
    backend = default_backend(info.config)
    return load_checkpoint(
        info, **{"dtype": torch.float32, "device": "cpu", "backend": backend, "chunk_size": 16, **options}
    )


def save_model(folder: Path, model: Decoder, **options: Any) -> str:
    """Save a model in our own format; returns the fingerprint of its weights."""
    described = Description(config=model.config, **options)
    return save_checkpoint(folder, described, dict(model.named_parameters()))


def logits_of(model: Decoder, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(tokens)


@torch.no_grad()
def weighty(config: ModelConfig, *, dtype: torch.dtype = torch.float32, seed: int = 1) -> Decoder:
    """A model of ours."""
    backend = default_backend(config)
    model = build_model(config, dtype=dtype, device="cpu", seed=seed, backend=backend, chunk_size=16)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        scale = weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.3
        weight.add_(torch.randn(weight.shape, generator=generator).to(dtype), alpha=scale)
    return model


def write_fla_retnet(
    folder: Path, config: ModelConfig = FLA, *, seed: int = 1, **fields: Any
) -> dict[str, Tensor]:
    """A RetNet of flash-linear-attention with its present names; returns its weights, float64 of float32 values."""
    weights = {
        name: weight.float().double() for name, weight in fla_retnet.draw_weights(config, seed=seed).items()
    }
    save(folder, weights, fla_retnet_config(config) | fields)
    return weights


def fla_retnet_config(config: ModelConfig) -> dict[str, Any]:
    """Return the configuration of `fla-hub/retnet-1.3B-100B` at a smaller size."""
    return {
        "architectures": ["RetNetForCausalLM"],
        "attn": None,
        "attn_mode": "chunk",
        "bos_token_id": 1,
        "conv_size": 4,
        "elementwise_affine": True,
        "eos_token_id": 2,
        "expand_k": 1,
        "expand_v": config.mixer.value_dim / config.d_model,
        "feature_map": None,
        "fuse_cross_entropy": True,
        "fuse_norm": True,
        "hidden_act": "swish",
        "hidden_ratio": 2,
        "hidden_size": config.d_model,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn.ffn_dim,
        "max_position_embeddings": 2048,
        "model_type": "retnet",
        "norm_eps": config.norm_eps,
        "num_heads": config.mixer.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_kv_heads": None,
        "rms_norm_eps": 1e-6,
        "share_conv_kernel": True,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_output_gate": True,
        "use_short_conv": False,
        "vocab_size": config.vocab_size,
    }


def draw_fla_gla(config: ModelConfig) -> dict[str, Tensor]:
    """Weights of a GLA under fla's names, float64 of float32 values, large enough for every part to matter."""
    d, mixer, ffn = config.d_model, config.mixer, config.ffn.ffn_dim
    products = {
        "attn.q_proj": (mixer.key_dim, d),
        "attn.k_proj": (mixer.key_dim, d),
        "attn.v_proj": (mixer.value_dim, d),
        "attn.g_proj": (mixer.value_dim, d),
        "attn.o_proj": (d, mixer.value_dim),
        "attn.gk_proj.0": (mixer.gate_rank, d),
        "attn.gk_proj.1": (mixer.key_dim, mixer.gate_rank),
        "mlp.gate_proj": (ffn, d),
        "mlp.up_proj": (ffn, d),
        "mlp.down_proj": (d, ffn),
    }
    norms = {"attn_norm": d, "mlp_norm": d, "attn.g_norm_swish_gate": mixer.value_head_dim}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.weight": (config.vocab_size, d),
        "lm_head.weight": (config.vocab_size, d),
        "model.norm.weight": (d,),
    }
    for layer in (f"model.layers.{index}" for index in range(config.num_layers)):
        shapes |= {f"{layer}.{name}.weight": shape for name, shape in products.items()}
        shapes |= {f"{layer}.{name}.weight": (width,) for name, width in norms.items()}
        shapes[f"{layer}.attn.gk_proj.1.bias"] = (mixer.key_dim,)
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {
        name: (weight / weight.shape[-1] ** 0.5 if weight.dim() > 1 else 1 + weight / 4).float().double()
        for name, weight in drawn.items()
    }


def write_fla_gla(folder: Path, config: ModelConfig = GLA, **fields: Any) -> dict[str, Tensor]:
    """A GLA of flash-linear-attention; returns its weights, float64 of float32 values."""
    weights = draw_fla_gla(config)
    save(folder, weights, fla_gla_config(config) | fields)
    return weights


def fla_gla_config(config: ModelConfig) -> dict[str, Any]:
    """Return the configuration of `fla-hub/gla-1.3B-100B` at a smaller size."""
    return {
        "architectures": ["GLAForCausalLM"],
        "attn": None,
        "attn_mode": "chunk",
        "clamp_min": None,
        "conv_size": 4,
        "elementwise_affine": True,
        "expand_k": 0.5,
        "expand_v": 1,
        "feature_map": None,
        "fuse_norm": True,
        "gate_low_rank_dim": config.mixer.gate_rank,
        "gate_logit_normalizer": 16,
        "hidden_act": "swish",
        "hidden_ratio": 4,
        "hidden_size": config.d_model,
        "intermediate_size": config.ffn.ffn_dim,
        "max_position_embeddings": 2048,
        "model_type": "gla",
        "norm_eps": config.norm_eps,
        "num_heads": config.mixer.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_kv_heads": None,
        "tie_word_embeddings": False,
        "use_output_gate": True,
        "use_short_conv": False,
        "vocab_size": config.vocab_size,
    }


def write_fla_transformer(folder: Path, config: ModelConfig) -> None:
    """A Transformer of flash-linear-attention, its weights drawn."""
    width, ffn = config.d_model, config.ffn.ffn_dim
    shared = config.mixer.num_kv_heads * config.mixer.head_dim
    shapes = {
        "model.embeddings.weight": (config.vocab_size, width),
        "lm_head.weight": (config.vocab_size, width),
    }
    for layer in (f"model.layers.{index}" for index in range(config.num_layers)):
        shapes |= {f"{layer}.attn.{name}_proj.weight": (width, width) for name in ("q", "o")}
        shapes |= {f"{layer}.attn.{name}_proj.weight": (shared, width) for name in ("k", "v")}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (ffn, width) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, ffn)
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    norms = [f"model.layers.{n}.{name}_norm" for n in range(config.num_layers) for name in ("attn", "mlp")]
    weights |= {f"{name}.weight": torch.ones(width) for name in ("model.norm", *norms)}
    save(folder, weights, fla_transformer_config(config))


def fla_transformer_config(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of `fla-hub/transformer-1.3B-100B` that define the model, at a smaller size."""
    return {
        "model_type": "transformer",
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_heads": config.mixer.num_heads,
        "num_kv_heads": config.mixer.num_kv_heads,
        "intermediate_size": config.ffn.ffn_dim,
        "vocab_size": config.vocab_size,
        "norm_eps": config.norm_eps,
        "rope_theta": config.mixer.rotary_base,
        "window_size": None,
    }


def save(
    folder: Path, weights: dict[str, Tensor], config: dict[str, Any], *, dtype: torch.dtype = torch.float32
) -> None:
    """A folder with `model.safetensors` and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.to(dtype).contiguous() for name, weight in weights.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def change_config(folder: Path, **fields: Any) -> None:
    """Replace fields of a configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def change_weights(folder: Path, **changed: Tensor | None) -> None:
    """Replace tensors of a file, or leave them out where None."""
    path = folder / "model.safetensors"
    weights: dict[str, Tensor | None] = {**load_file(path), **changed}
    save_file({name: weight for name, weight in weights.items() if weight is not None}, path)
