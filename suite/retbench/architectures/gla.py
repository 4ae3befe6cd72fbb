"""GLA: gated linear attention with a decay per channel (arXiv:2312.06635), in Llama's blocks."""

from typing import Literal

from pydantic import Field

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.matching import check_divides, choose_width, swiglu_width
from retbench.architectures.sizes import Size
from retbench.mixers.feed_forward import FeedForward
from retbench.mixers.gated_linear_attention.config import GatedLinearAttention


class GlaSpec(ModelSpec):
    """A `[models.NAME]` table with architecture = "gla"."""

    architecture: Literal["gla"]
    num_heads: int = Field(default=4, ge=1)
    """Heads. Together their keys are half as wide as the model, and their values as wide as the model."""
    ffn_dim: FfnWidth = "matched"
    backend: Literal["parallel", "chunkwise", "chunkwise_fp32", "recurrent", "fla", "fla_recurrent"] = (
        "chunkwise"
    )
    """chunkwise: products in the model's dtype. chunkwise_fp32: in float32 or wider. fla: chunkwise by
    flash-linear-attention's kernels, on CUDA; their chunk is fixed (see `FLA_CHUNK_SIZE`). fla_recurrent: token by
    token by its kernel."""
    chunk_size: int | None = Field(default=128, ge=1)
    """Tokens of a chunk of the chunkwise form."""


def gla_config(
    mixer: GatedLinearAttention, *, num_layers: int, vocab_size: int, ffn_dim: int, norm_eps: float = 1e-6
) -> ModelConfig:
    """Return a GLA of given sizes; pydantic's ValidationError where they do not go together."""
    ffn = FeedForward(d_model=mixer.d_model, ffn_dim=ffn_dim)
    return ModelConfig(
        architecture="gla",
        variant="fla",
        d_model=mixer.d_model,
        vocab_size=vocab_size,
        norm_eps=norm_eps,
        blocks=(BlockConfig(count=num_layers, mixer=mixer, ffn=ffn),),
    )


def _resolve(spec: GlaSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size."""
    check_divides("num_heads", spec.num_heads, f"half of d_model {size.d_model}", size.d_model // 2)
    mixer = GatedLinearAttention.at_size(size, num_heads=spec.num_heads)

    def make(ffn_dim: int) -> ModelConfig:
        return gla_config(mixer, num_layers=size.num_layers, vocab_size=size.vocab_size, ffn_dim=ffn_dim)

    return choose_width(make, spec.ffn_dim, size, swiglu_width(size.d_model))


def _unusual(config: ModelConfig) -> list[str]:
    """Return what differs from the published model, in words."""
    heads = config.mixers[-1].num_heads
    return [] if heads == 4 else [f"{heads} heads"]


ARCHITECTURE = Architecture(
    name="gla",
    title="GLA",
    reference="arXiv:2312.06635",
    spec=GlaSpec,
    resolve=_resolve,
    presets={"default": {}},
    formats=("retbench.checkpoints.fla_gla",),
    unusual=_unusual,
)
