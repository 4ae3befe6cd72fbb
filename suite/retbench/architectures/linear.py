"""The linear Transformer: linear attention in place of softmax attention (arXiv:2006.16236), in Llama's blocks."""

from typing import Literal, get_args

from pydantic import Field

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.matching import choose_width
from retbench.architectures.sizes import Size
from retbench.errors import ConfigError
from retbench.mixers.feed_forward import FeedForward
from retbench.mixers.linear_attention.config import FeatureMap, LinearAttention


class LinearSpec(ModelSpec):
    """A `[models.NAME]` table with architecture = "linear"."""

    architecture: Literal["linear"]
    variant: FeatureMap = "elu"
    """elu: phi(x) = elu(x) + 1 with the normaliser. identity: without either, and a norm of each head. performer:
    positive random features with the normaliser. taylor: the terms of exp up to the second order, of keys 16 wide, with
    the normaliser."""
    ffn_dim: FfnWidth = "matched"
    backend: Literal["parallel", "chunkwise", "chunkwise_fp32", "recurrent", "fla"] = "chunkwise"
    """fla: chunkwise by flash-linear-attention's kernels, on CUDA, for the variant identity."""
    chunk_size: int | None = Field(default=128, ge=1)


def _resolve(spec: LinearSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size."""
    mixer = LinearAttention.at_size(size, feature_map=spec.variant)

    def make(ffn_dim: int) -> ModelConfig:
        ffn = FeedForward(d_model=size.d_model, ffn_dim=ffn_dim)
        return ModelConfig(
            architecture="linear",
            variant=spec.variant,
            d_model=size.d_model,
            vocab_size=size.vocab_size,
            blocks=(BlockConfig(count=size.num_layers, mixer=mixer, ffn=ffn),),
        )

    def no_published_width() -> int:
        raise ConfigError(
            "ffn_dim is 'published', and no width is published for linear attention with SwiGLU. "
            'Use ffn_dim = "matched".'
        )

    return choose_width(make, spec.ffn_dim, size, no_published_width)


ARCHITECTURE = Architecture(
    name="linear",
    title="Linear attention",
    reference="arXiv:2006.16236",
    spec=LinearSpec,
    resolve=_resolve,
    presets={variant: {"variant": variant} for variant in get_args(FeatureMap)},
    unusual=lambda config: [] if config.variant == "elu" else [f"variant {config.variant}"],
)
