"""The Transformer with multi-head latent attention, in Llama's blocks: DeepSeek-V2's without experts."""

from typing import Literal

from pydantic import Field

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.matching import choose_width
from retbench.architectures.sizes import Size
from retbench.errors import ConfigError
from retbench.mixers.feed_forward import FeedForward
from retbench.mixers.latent_attention.config import QUERY_RANK_FACTOR, LatentAttention

Variant = Literal["direct", "compressed"]


class MlaSpec(ModelSpec):
    """A `[models.NAME]` table with architecture = "mla"."""

    architecture: Literal["mla"]
    variant: Variant = "direct"
    """direct: queries are computed from the token, as in DeepSeek-V2-Lite. compressed: from a latent of the token, as
    in DeepSeek-V2 and V3."""
    ffn_dim: FfnWidth = "matched"
    kv_rank: int | None = Field(default=None, ge=1)
    """Values of the latent that is cached per token; that of `LatentAttention.at_size` when absent."""
    backend: Literal["sdpa", "reference", "absorbed"] = "sdpa"
    chunk_size: None = None
    """Attention has no chunks."""


def _resolve(spec: MlaSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size."""
    mixer = LatentAttention.at_size(size, **({} if spec.kv_rank is None else {"kv_rank": spec.kv_rank}))
    if spec.variant == "compressed":
        mixer = mixer.model_copy(update={"query_rank": QUERY_RANK_FACTOR * mixer.kv_rank})

    def make(ffn_dim: int) -> ModelConfig:
        ffn = FeedForward(d_model=size.d_model, ffn_dim=ffn_dim)
        return ModelConfig(
            architecture="mla",
            variant=spec.variant,
            d_model=size.d_model,
            vocab_size=size.vocab_size,
            blocks=(BlockConfig(count=size.num_layers, mixer=mixer, ffn=ffn),),
        )

    def no_published_width() -> int:
        raise ConfigError(
            "ffn_dim is 'published', and the published models with latent attention have experts in place of one "
            'feed-forward. Use ffn_dim = "matched".'
        )

    return choose_width(make, spec.ffn_dim, size, no_published_width)


ARCHITECTURE = Architecture(
    name="mla",
    title="MLA Transformer",
    reference="arXiv:2405.04434",
    spec=MlaSpec,
    resolve=_resolve,
    presets={"direct": {"variant": "direct"}, "compressed": {"variant": "compressed"}},
    unusual=lambda config: [] if config.variant == "direct" else [f"variant {config.variant}"],
)
