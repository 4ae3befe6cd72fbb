"""The sliding-window Transformer: Llama's blocks with a window and sinks in place of the whole context."""

from functools import partial
from typing import Literal

from pydantic import Field

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import ModelConfig, llama_config
from retbench.architectures.matching import check_divides, choose_width, swiglu_width
from retbench.architectures.sizes import Size
from retbench.mixers.window_attention.config import WindowAttention


class SlidingWindowSpec(ModelSpec):
    """A `[models.NAME]` table with architecture = "sliding_window"."""

    architecture: Literal["sliding_window"]
    ffn_dim: FfnWidth = "matched"
    window: int = Field(default=1024, ge=1)
    """Tokens that a query attends to, the own one included."""
    sinks: int = Field(default=4, ge=0)
    """First tokens that every query attends to."""
    num_kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads; fewer than the query heads is grouped-query attention."""
    backend: Literal["auto", "blocks", "products", "reference"] = "auto"
    chunk_size: None = None
    """Attention has no chunks."""


def _resolve(spec: SlidingWindowSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size."""
    heads = size.attention_heads
    kv_heads = spec.num_kv_heads or heads
    check_divides("num_kv_heads", kv_heads, f"the {heads} query heads", heads)
    mixer = WindowAttention.at_size(size, num_kv_heads=kv_heads, window=spec.window, sinks=spec.sinks)
    make = partial(llama_config, "sliding_window", "llama", size, [mixer] * size.num_layers)
    return choose_width(make, spec.ffn_dim, size, swiglu_width(size.d_model))


ARCHITECTURE = Architecture(
    name="sliding_window",
    title="Sliding window",
    reference="arXiv:2310.06825; sinks: arXiv:2309.17453",
    spec=SlidingWindowSpec,
    resolve=_resolve,
    presets={"llama": {}},
    formats=("retbench.checkpoints.mistral",),
)
