"""The linear Transformer: linear attention in place of softmax attention (arXiv:2006.16236), in Llama's blocks."""

from functools import partial
from typing import Literal, get_args

from pydantic import Field

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import ModelConfig, llama_config
from retbench.architectures.matching import choose_width
from retbench.architectures.sizes import Size
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
    mixers = [LinearAttention.at_size(size, feature_map=spec.variant)] * size.num_layers
    make = partial(llama_config, "linear", spec.variant, size, mixers)
    return choose_width(make, spec.ffn_dim, size, "no width is published for linear attention with SwiGLU")


ARCHITECTURE = Architecture(
    name="linear",
    title="Linear attention",
    reference="arXiv:2006.16236",
    spec=LinearSpec,
    resolve=_resolve,
    presets={variant: {"variant": variant} for variant in get_args(FeatureMap)},
    unusual=lambda config: [] if config.variant == "elu" else [f"variant {config.variant}"],
)
