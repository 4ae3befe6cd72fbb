"""Our side of a comparison: configurations at the size of the bars, and models with a peer's weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retbench.architectures.architecture import FfnWidth
from retbench.architectures.configs import ModelConfig, default_backend
from retbench.architectures.mamba2 import Mamba2Spec
from retbench.architectures.matching import resolve_model
from retbench.architectures.mla import MlaSpec, Variant
from retbench.architectures.retnet import RetNetSpec
from retbench.architectures.sliding_window import SlidingWindowSpec
from retbench.architectures.transformer import TransformerSpec
from retbench.checkpoints.format import Description
from retbench.checkpoints.loading import decoder_rows
from retbench.checkpoints.reading import FORMATS
from retbench.config.experiment_files import load_experiment
from retbench.mixers.attention.config import Attention
from retbench.mixers.feed_forward import FeedForward
from retbench.mixers.mamba2.config import Mamba2
from retbench.mixers.retention.config import Retention
from retbench.models.build import build_model
from retbench.models.decoder import Decoder

SIZE = "25m"
"""d 512, 6 layers, vocabulary 8,192."""
TINY_EPS = 1e-12
"""Norm epsilon at which torchscale's chunkwise form equals its others."""


def torchscale_config(*, norm_eps: float = 1e-6) -> ModelConfig:
    """Return a RetNet of torchscale's variant."""
    config = resolve_model(RetNetSpec(architecture="retnet", variant="torchscale"), SIZE)
    return with_retention(config, norm_eps=norm_eps)


def with_retention(config: ModelConfig, *, norm_eps: float, **fields: Any) -> ModelConfig:
    """Return a RetNet with another epsilon in all norms, and other fields in its retention."""
    mixer = retention_of(config).model_copy(update={"norm_eps": norm_eps, **fields})
    blocks = tuple(block.model_copy(update={"mixer": mixer}) for block in config.blocks)
    return config.model_copy(update={"norm_eps": norm_eps, "blocks": blocks})


def retention_of(config: ModelConfig) -> Retention:
    """Return the retention of a RetNet."""
    assert isinstance(config.mixer, Retention)
    return config.mixer


def attention_of(config: ModelConfig) -> Attention:
    """Return the attention of a Transformer."""
    assert isinstance(config.mixer, Attention)
    return config.mixer


def ffn_of(config: ModelConfig) -> FeedForward:
    """Return the feed-forward of a model."""
    assert isinstance(config.ffn, FeedForward)
    return config.ffn


def fla_config(size: str = SIZE) -> ModelConfig:
    """Return a RetNet of fla's variant, the default of experiments."""
    return resolve_model(RetNetSpec(architecture="retnet"), size)


def paper_config() -> ModelConfig:
    """Return a RetNet of the paper's variant with values as wide as keys, as in yet-another-retnet."""
    config = resolve_model(RetNetSpec(architecture="retnet", variant="paper"), SIZE)
    # Here a row of D is divided by its norm before the head norm, and there it is not: epsilon must not matter.
    return with_retention(config, norm_eps=TINY_EPS, value_dim=config.d_model)


def gpt_config() -> ModelConfig:
    """Return a Transformer of GPT's variant."""
    return resolve_model(TransformerSpec(architecture="transformer", variant="gpt"), SIZE)


def llama_config(size: str = SIZE, *, num_kv_heads: int | None = None) -> ModelConfig:
    """Return a Transformer of Llama's variant."""
    return resolve_model(TransformerSpec(architecture="transformer", num_kv_heads=num_kv_heads), size)


def window_config() -> ModelConfig:
    """Return a sliding-window Transformer as Mistral's: without sinks, and with a quarter of the key-value heads."""
    spec = SlidingWindowSpec(architecture="sliding_window", window=100, sinks=0, num_kv_heads=2)
    return resolve_model(spec, SIZE)


def mamba2_config(size: str = SIZE, *, published: bool = False) -> ModelConfig:
    """Return a Mamba-2, of the published inner width instead of the matched one if `published`."""
    inner_dim: FfnWidth = "published" if published else "matched"
    return resolve_model(Mamba2Spec(architecture="mamba2", inner_dim=inner_dim), size)


def mla_config(variant: Variant) -> ModelConfig:
    """Return a Transformer with latent attention."""
    return resolve_model(MlaSpec(architecture="mla", variant=variant), SIZE)


def kin_configs(size: str = SIZE) -> dict[str, ModelConfig]:
    """Return the configuration of every model of the experiment `kin`, by name."""
    models = load_experiment("kin").models
    return {name: resolve_model(spec, size) for name, spec in models.items()}


def mamba2_of(config: ModelConfig) -> Mamba2:
    """Return the layer of a Mamba-2."""
    assert isinstance(config.mixer, Mamba2)
    return config.mixer


def map_weights(format: str, config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights in memory from a library's names to the state dict of a `Decoder`.

    Args:
        format: Name of a format in `FORMATS` that a `Decoder` is read from.
        config: The model, without tied embeddings.
        weights: Weights by name, or their gradients. Tensors that are not weights are ignored.
    """
    with torch.device("meta"):
        ours = Decoder(config, default_backend(config), chunk_size=None)
    shapes = {name: tuple(weight.shape) for name, weight in ours.named_parameters()}
    plan = FORMATS[format].plan(Description(config=config), weights.keys(), shapes)
    return {
        name: torch.cat([decoder_rows(weights[part.name], part) for part in parts])
        for name, parts in plan.items()
    }


def carry(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    chunk_size: int | None = None,
) -> Decoder:
    """Build our model of `config` with mapped weights of a peer; every weight is used and none is missing."""
    model = plain(config, dtype=dtype, chunk_size=chunk_size)
    model.load_state_dict(weights, strict=True)
    return model


def plain(
    config: ModelConfig, *, dtype: torch.dtype = torch.float32, chunk_size: int | None = None
) -> Decoder:
    """Build our model of `config` with its own weights and the default backend of experiments."""
    backend = default_backend(config)
    return build_model(config, dtype=dtype, device="cpu", seed=0, backend=backend, chunk_size=chunk_size)


def random_tokens(config: ModelConfig, length: int) -> Tensor:
    """Draw tokens (1, length) int64 over the whole vocabulary, so that an embedding row mapped wrongly is found."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (1, length), generator=generator)
