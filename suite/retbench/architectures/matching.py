"""Turns a model's entry in an experiment into a full configuration, with the FFN width that matches the pair.

Both sides of a pair are given the budget of the paper, 12 d^2 parameters a layer (arXiv:2307.08621, Sec.
3.1), and each side's feed-forward width, a multiple of 8, is solved for it. What is left as mismatch is
reported.
"""

import math
from dataclasses import dataclass, replace

from pydantic import ValidationError

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig, RetNetConfig, TransformerConfig
from retbench.architectures.sizes import Size, find_size
from retbench.config.experiment import Decay, FfnWidth, ModelSpec, RetNetSpec, RetNetVariant, TransformerSpec
from retbench.errors import ConfigError

MAX_MISMATCH = 0.01

OWN_DECAY: dict[RetNetVariant, Decay] = {"fla": "eq8", "torchscale": "eq8", "paper": "paper", "yoco": "gated"}

TORCHSCALE_FFN = {512: 864, 1024: 1728, 2048: 3456, 2560: 4280, 4096: 6912, 5120: 8560, 8192: 13824}
"""Feed-forward and value width by d_model: examples/fairseq/models/retnet.py of torchscale."""


def resolve_model(spec: ModelSpec, default_size: str, *, vocab_size: int | None = None) -> ModelConfig:
    """The full configuration of one entry of `[models]`; with the size's vocabulary when `vocab_size` is None.

    Raises:
        ConfigError: unknown size, or head counts that do not fit the width.
    """
    size = find_size(spec.size or default_size)
    if vocab_size is not None:
        size = replace(size, vocab_size=vocab_size)
    if isinstance(spec, RetNetSpec) and spec.head_dim and size.d_model % spec.head_dim:
        raise ConfigError(
            f"head_dim is {spec.head_dim}, which does not divide d_model {size.d_model} of size "
            f"'{spec.size or default_size}'. Give a divisor."
        )
    if isinstance(spec, TransformerSpec) and spec.num_kv_heads and size.attention_heads % spec.num_kv_heads:
        raise ConfigError(
            f"num_kv_heads is {spec.num_kv_heads}, which does not divide the {size.attention_heads} query "
            f"heads of size '{spec.size or default_size}'. Give a divisor."
        )
    try:
        return _with_ffn(spec, size, _ffn_dim(spec, size, spec.ffn_dim))
    except ValidationError as error:  # such as a feed-forward width that the value heads cannot share
        reason = error.errors()[0]["msg"]
        raise ConfigError(
            f"{spec.architecture} of size '{spec.size or default_size}', ffn_dim {spec.ffn_dim!r}: {reason}. "
            'Use ffn_dim = "matched", or a width that fits.'
        ) from error


def _with_ffn(spec: ModelSpec, size: Size, ffn_dim: int) -> ModelConfig:
    """The configuration with a given feed-forward width."""
    match spec:
        case RetNetSpec():
            return RetNetConfig(
                variant=spec.variant,
                d_model=size.d_model,
                num_layers=size.num_layers,
                num_heads=_retention_heads(spec, size),
                vocab_size=size.vocab_size,
                ffn_dim=ffn_dim,
                value_dim=_value_dim(spec, size, ffn_dim),
                decay=spec.decay or OWN_DECAY[spec.variant],
                swish_gate=spec.swish_gate,
                head_norm=spec.head_norm,
            )
        case TransformerSpec():
            return TransformerConfig(
                variant=spec.variant,
                d_model=size.d_model,
                num_layers=size.num_layers,
                num_heads=size.attention_heads,
                vocab_size=size.vocab_size,
                ffn_dim=ffn_dim,
                num_kv_heads=spec.num_kv_heads or size.attention_heads,
            )


def _retention_heads(spec: RetNetSpec, size: Size) -> int:
    """Heads of the width asked for, or those of the size."""
    return size.d_model // spec.head_dim if spec.head_dim else size.retention_heads


def _value_dim(spec: RetNetSpec, size: Size, ffn_dim: int) -> int:
    """Width of all value heads together, by the variant."""
    match spec.variant:
        case "fla" | "paper":
            return 2 * size.d_model
        case "torchscale":
            return ffn_dim
        case "yoco":
            return size.d_model


def _ffn_dim(spec: ModelSpec, size: Size, width: FfnWidth) -> int:
    """The feed-forward width asked for: a number, as published, or solved."""
    if isinstance(width, int):
        return width
    return _published_ffn(spec, size) if width == "published" else _solved_ffn(spec, size)


def _published_ffn(spec: ModelSpec, size: Size) -> int:
    """Width by the rule of the variant's own code."""
    d = size.d_model
    match spec.variant:
        case "llama":
            return 256 * -(-(8 * d // 3) // 256)  # Llama and fla: 8/3 d, up to a multiple of 256
        case "gpt":
            return 4 * d
        case "fla":
            return 256 * -(-(4 * d // 3) // 256)  # fla RetNetConfig: hidden_ratio 2
        case "paper":
            return 2 * d  # Sec. 3.1
        case "yoco":
            return 3 * d  # arXiv:2405.05254, scaling curves
        case "torchscale" if d in TORCHSCALE_FFN:
            return TORCHSCALE_FFN[d]
    raise ConfigError(
        f"ffn_dim is 'published', and torchscale publishes no width for d_model {d}. Use ffn_dim = \"matched\"."
    )


def _solved_ffn(spec: ModelSpec, size: Size) -> int:
    """The multiple of 8 (and of the heads, where values are as wide) that comes closest to 12 d^2 a layer."""
    step = 8
    if isinstance(spec, RetNetSpec) and spec.variant == "torchscale":
        step = math.lcm(step, _retention_heads(spec, size))
    budget = 12 * size.d_model**2
    widths = range(step, 8 * size.d_model, step)
    return min(widths, key=lambda width: abs(costs.layer_params(_with_ffn(spec, size, width)) - budget))


@dataclass(frozen=True)
class Match:
    """How two models are matched.

    Attributes:
        mismatch_ratio: |difference| of the non-embedding parameters over the larger of the two.
    """

    names: tuple[str, ...]
    num_params: tuple[int, ...]
    num_params_nonembedding: tuple[int, ...]
    mismatch_ratio: float


def match_models(models: dict[str, ModelConfig], *, allow_mismatch: bool, where: str) -> Match:
    """The matching report of an experiment's models.

    Raises:
        ConfigError: non-embedding parameters differ by more than 1 % and `allow_mismatch` is false.
    """
    sizes = tuple(costs.num_params_nonembedding(config) for config in models.values())
    mismatch = 1 - min(sizes) / max(sizes)
    if mismatch > MAX_MISMATCH and not allow_mismatch:
        listed = ", ".join(f"{name} {count:,}" for name, count in zip(models, sizes, strict=True))
        raise ConfigError(
            f"{where}: the models are not matched: non-embedding parameters are {listed}, "
            f"{100 * mismatch:.1f} % apart (at most 1 %). "
            'Use ffn_dim = "matched", or set allow_mismatch = true in the profile.'
        )
    return Match(
        tuple(models), tuple(costs.num_params(config) for config in models.values()), sizes, mismatch
    )
