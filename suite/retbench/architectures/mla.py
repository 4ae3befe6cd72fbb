"""The Transformer with multi-head latent attention, in Llama's blocks: DeepSeek-V2's without experts."""

from functools import partial
from typing import Literal

from pydantic import Field

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import ModelConfig, llama_config
from retbench.architectures.matching import choose_width
from retbench.architectures.sizes import Size
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
        # A latent as wide as the token would save nothing; DeepSeek-V2's has 0.3 of its width.
        rank = min(QUERY_RANK_FACTOR * mixer.kv_rank, 3 * size.d_model // 4)
        mixer = mixer.model_copy(update={"query_rank": rank})
    make = partial(llama_config, "mla", spec.variant, size, [mixer] * size.num_layers)
    no_width = "the published models with latent attention have experts in place of one feed-forward"
    return choose_width(make, spec.ffn_dim, size, no_width)


ARCHITECTURE = Architecture(
    name="mla",
    title="MLA Transformer",
    reference="arXiv:2405.04434",
    spec=MlaSpec,
    resolve=_resolve,
    presets={"direct": {"variant": "direct"}, "compressed": {"variant": "compressed"}},
    unusual=lambda config: [] if config.variant == "direct" else [f"variant {config.variant}"],
)
