"""YOCO: a lower half with a small state, and an upper half that shares one key-value cache (arXiv:2405.05254)."""

from functools import partial
from typing import Literal, Self

from pydantic import Field, model_validator

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import ModelConfig, llama_config
from retbench.architectures.matching import check_divides, choose_width
from retbench.architectures.sizes import Size
from retbench.mixers.attention.config import Attention
from retbench.mixers.mixer import Mixer
from retbench.mixers.retention.config import Retention
from retbench.mixers.shared_attention.config import SharedAttention
from retbench.mixers.window_attention.config import WindowAttention

Variant = Literal["gated", "sw"]

WINDOW = 1024
"""Window of the paper's scaling curves."""


class YocoSpec(ModelSpec):
    """A `[models.NAME]` table with architecture = "yoco"."""

    architecture: Literal["yoco"]
    variant: Variant = "gated"
    """Mixer of the lower half. gated: gated retention. sw: sliding-window attention."""
    ffn_dim: FfnWidth = "matched"
    num_kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads of all attention; fewer than the query heads is grouped-query attention."""
    window: int | None = Field(default=None, ge=1)
    """Tokens that a query of the lower half attends to in variant sw; 1,024 when absent."""
    backend: str = ""
    """Forms joined by '+': "recurrent+reference"; when absent, chunkwise+auto for gated and auto for sw."""
    chunk_size: int | None = Field(default=None, ge=1)
    """Tokens of a chunk of gated retention; 128 when absent."""

    @model_validator(mode="after")
    def _fields_apply(self) -> Self:
        """Refuse a field without effect on the variant."""
        for name, variant in (("window", "sw"), ("chunk_size", "gated")):
            if getattr(self, name) is not None and self.variant != variant:
                raise ValueError(f"{name} has no effect on variant '{self.variant}'. Remove it.")
        return self

    @model_validator(mode="before")
    @classmethod
    def _choose_default_forms(cls, raw: object) -> object:
        """Set an absent backend by the variant."""
        if not isinstance(raw, dict):
            return raw
        lower = WindowAttention if raw.get("variant") == "sw" else Retention
        forms = dict.fromkeys((lower.default_form, Attention.default_form))
        return {"backend": "+".join(forms), **raw}


def _lower_mixer(spec: YocoSpec, size: Size, kv_heads: int) -> Mixer:
    """Return the mixer of the lower half; gated retention as in the variant `yoco` of RetNet."""
    if spec.variant == "sw":
        return WindowAttention.at_size(size, num_kv_heads=kv_heads, window=spec.window or WINDOW, sinks=0)
    return Retention.at_size(
        size, value_dim=size.d_model, decay="gated", head_norm="rms", layout="interleaved"
    )


def _resolve(spec: YocoSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size; of an odd number of layers the upper half has one more."""
    heads = size.attention_heads
    kv_heads = spec.num_kv_heads or heads
    check_divides("num_kv_heads", kv_heads, f"the {heads} query heads", heads)
    lower = _lower_mixer(spec, size, kv_heads)
    writer = Attention.at_size(size, num_kv_heads=kv_heads)
    reader = SharedAttention.at_size(size, num_kv_heads=kv_heads)
    num_lower = size.num_layers // 2
    mixers = [*[lower] * num_lower, writer, *[reader] * (size.num_layers - num_lower - 1)]
    make = partial(llama_config, "yoco", spec.variant, size, mixers)
    return choose_width(make, spec.ffn_dim, size, 3 * size.d_model)


ARCHITECTURE = Architecture(
    name="yoco",
    title="YOCO",
    reference="arXiv:2405.05254",
    spec=YocoSpec,
    resolve=_resolve,
    presets={"gated": {"variant": "gated"}, "sw": {"variant": "sw"}},
    unusual=lambda config: [] if config.variant == "gated" else ["sliding-window lower half"],
)
