"""Hybrids: any mixers, in a pattern that is repeated over the layers, each before a SwiGLU feed-forward."""

from typing import Any, Literal

from pydantic import Field, model_validator

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import BlockConfig, ModelConfig, join_default_forms, repeat_blocks
from retbench.architectures.matching import choose_width
from retbench.architectures.registry import find_mixer
from retbench.architectures.sizes import Size
from retbench.errors import ConfigError
from retbench.mixers.feed_forward import FeedForward


class HybridSpec(ModelSpec):
    """A `[models.NAME]` table with a pattern of mixers."""

    architecture: Literal["hybrid"] = "hybrid"
    pattern: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    """The mixers of the layers, from the first on, repeated to the last: names such as "retention", or tables such as
    {mixer = "attention", num_kv_heads = 2} with a mixer's own fields."""
    ffn_dim: FfnWidth = "matched"
    backend: str = ""
    """Forms joined by '+': "chunkwise+sdpa", "retention=recurrent"; the default form of each mixer when absent."""
    chunk_size: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _choose_default_forms(cls, raw: object) -> object:
        """Set an absent backend by the pattern, if the pattern has the type that its field will ask for."""
        if not isinstance(raw, dict):
            return raw
        pattern = raw.get("pattern")
        if not isinstance(pattern, list | tuple) or not all(isinstance(item, str | dict) for item in pattern):
            return raw
        kinds = (find_mixer(_fields_of(item)["mixer"]) for item in pattern)
        return {"backend": join_default_forms(kinds), **raw}


def _fields_of(item: str | dict[str, Any]) -> dict[str, Any]:
    """Return an entry of a pattern as a mixer's fields; ConfigError where it names no mixer."""
    fields = {"mixer": item} if isinstance(item, str) else dict(item)
    if not isinstance(fields.get("mixer"), str):
        raise ConfigError(f'an entry of pattern is {item!r}, without the name of a mixer. Add mixer = "...".')
    return fields


def _resolve(spec: HybridSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size."""
    fields = [_fields_of(item) for item in spec.pattern]
    mixers = [find_mixer(each["mixer"]).at_size(size, **each) for each in fields]

    def make(ffn_dim: int) -> ModelConfig:
        ffn = FeedForward(d_model=size.d_model, ffn_dim=ffn_dim)
        layers = [BlockConfig(mixer=mixers[index % len(mixers)], ffn=ffn) for index in range(size.num_layers)]
        return ModelConfig(
            architecture="hybrid",
            variant="-".join(dict.fromkeys(mixer.mixer for mixer in mixers)),
            d_model=size.d_model,
            vocab_size=size.vocab_size,
            blocks=repeat_blocks(layers),
        )

    def no_published_width() -> int:
        raise ConfigError(
            "ffn_dim is 'published', and no width is published for a hybrid. Use ffn_dim = \"matched\"."
        )

    return choose_width(make, spec.ffn_dim, size, no_published_width)


ARCHITECTURE = Architecture(
    name="hybrid",
    title="Hybrid",
    reference="a pattern of mixers",
    spec=HybridSpec,
    resolve=_resolve,
    presets={"default": {"pattern": ("retention", "retention", "attention")}},
)
