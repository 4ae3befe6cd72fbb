"""Hybrids: any mixers, in a pattern that is repeated over the layers, each before a SwiGLU feed-forward."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import ModelConfig, join_default_forms, llama_config
from retbench.architectures.matching import choose_width
from retbench.architectures.registry import find_mixer
from retbench.architectures.sizes import Size
from retbench.errors import ConfigError

Pattern = tuple[str | dict[str, Any], ...]

VARIANTS: Mapping[str, Pattern] = {
    # One attention in eight mixers: Jamba (arXiv:2403.19887, Sec. 3.1), with retention in place of Mamba. It is the
    # second of them, not the fifth as there, so that models of a few layers have one too.
    "1-in-8": ("retention", "attention", *["retention"] * 6),
    # Based (arXiv:2402.18668): of 27 layers, 1, 6, ... are linear attention and 2, 7, ... sliding windows;
    # `train/configs/experiment/reference/based-360m.yaml` of HazyResearch/based, whose windows have 128 earlier tokens.
    "based": (
        "gated_convolution",
        {"mixer": "linear_attention", "feature_map": "taylor"},
        {"mixer": "window_attention", "window": 129, "sinks": 0},
        "gated_convolution",
        "gated_convolution",
    ),
    # Samba (arXiv:2406.07522): Mamba and windows of 2,048 tokens in turn, each before an MLP. Mamba-2 takes the place
    # of its Mamba-1, which is no mixer here.
    "samba": ("mamba2", {"mixer": "window_attention", "window": 2048, "sinks": 0}),
}
"""Published patterns by name."""


class HybridSpec(ModelSpec):
    """A `[models.NAME]` table with a pattern of mixers, or the name of a published one."""

    architecture: Literal["hybrid"] = "hybrid"
    variant: Literal["pattern", "1-in-8", "based", "samba"] = "pattern"
    """pattern: the list in `pattern`. 1-in-8: one attention in eight layers, the others retention. based: short
    convolutions, linear attention and sliding windows. samba: Mamba-2 and sliding windows in turn."""
    pattern: Pattern = Field(min_length=1)
    """The mixers of the layers, from the first on, repeated to the last: names such as "retention", or tables such as
    {mixer = "attention", num_kv_heads = 2} with a mixer's own fields."""
    ffn_dim: FfnWidth = "matched"
    backend: str = ""
    """Forms joined by '+': "chunkwise+sdpa", "retention=recurrent"; the default form of each mixer when absent."""
    chunk_size: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, raw: object) -> object:
        """Set the pattern of a variant, and an absent backend by the pattern.

        A pattern of another type than its field asks for is left to the field.
        """
        if not isinstance(raw, dict):
            return raw
        variant, pattern = raw.get("variant"), raw.get("pattern")
        if isinstance(variant, str) and variant in VARIANTS:
            if pattern is not None and list(VARIANTS[variant]) != pattern and VARIANTS[variant] != pattern:
                raise ConfigError(
                    f"a hybrid has variant {variant!r} and also the pattern {pattern!r}. Remove one of them."
                )
            pattern = VARIANTS[variant]
            raw = {**raw, "pattern": pattern}
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


def _check_all_used(kinds: list[str], num_layers: int) -> None:
    """ConfigError where a pattern names a mixer that no layer of a size has; `{size}` stands for the size's name."""
    unused = set(kinds) - set(kinds[:num_layers])
    if unused:
        name = min(unused, key=kinds.index)
        raise ConfigError(
            f"pattern has {name!r} first as its mixer {kinds.index(name) + 1}, and {{size}} has {num_layers} layers. "
            "Shorten the pattern, or use a larger size."
        )


def _resolve(spec: HybridSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size."""
    fields = [_fields_of(item) for item in spec.pattern]
    mixers = [find_mixer(each["mixer"]).at_size(size, **each) for each in fields]
    _check_all_used([each["mixer"] for each in fields], size.num_layers)
    kinds = "-".join(dict.fromkeys(mixer.mixer for mixer in mixers))
    variant = kinds if spec.variant == "pattern" else spec.variant
    layers = [mixers[index % len(mixers)] for index in range(size.num_layers)]
    make = partial(llama_config, "hybrid", variant, size, layers)
    return choose_width(make, spec.ffn_dim, size, "no width is published for a hybrid")


ARCHITECTURE = Architecture(
    name="hybrid",
    title="Hybrid",
    reference="a pattern of mixers",
    spec=HybridSpec,
    resolve=_resolve,
    presets={
        "default": {"pattern": ("retention", "retention", "attention")},
        **{variant: {"variant": variant} for variant in VARIANTS},
    },
)
