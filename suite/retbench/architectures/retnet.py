"""RetNet: multi-scale retention, a swish gate, and a feed-forward (arXiv:2307.08621), in the variants of its codes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.matching import check_divides, choose_width, swiglu_width, width_step
from retbench.architectures.sizes import Size
from retbench.mixers.feed_forward import FeedForward
from retbench.mixers.retention.config import Decay, Retention
from retbench.ops import ROTARY_BASE, Layout

Variant = Literal["fla", "torchscale", "paper", "yoco"]
Backend = Literal["parallel", "chunkwise", "chunkwise_fp32", "recurrent", "fla"]


@dataclass(frozen=True)
class Traits:
    """Parts of a variant's blocks, by the rules of the code that published it.

    Attributes:
        norm: Norm of the blocks; see `ModelConfig.norm`.
        ffn: Kind of the feed-forward.
        layout: Pairs and frequencies of the rotary positions.
        head_norm: See `Retention.head_norm`.
        row_norm: See `Retention.row_norm`.
        decay: See `Retention.decay`; an experiment may replace it.
    """

    norm: Literal["rms", "layer"]
    ffn: Literal["swiglu", "gelu"]
    layout: Layout
    head_norm: Literal["rms", "rms_affine", "layer"]
    row_norm: bool
    decay: Decay


TRAITS: Mapping[Variant, Traits] = {
    "fla": Traits("rms", "swiglu", "half", "rms_affine", False, "eq8"),
    "torchscale": Traits("rms", "swiglu", "interleaved", "rms", True, "eq8"),
    "paper": Traits("layer", "gelu", "interleaved", "layer", True, "paper"),
    "yoco": Traits("rms", "swiglu", "interleaved", "rms", False, "gated"),
}

TORCHSCALE_FFN = {512: 864, 1024: 1728, 2048: 3456, 2560: 4280, 4096: 6912, 5120: 8560, 8192: 13824}
"""Feed-forward and value width by d_model: examples/fairseq/models/retnet.py of torchscale."""


class RetNetSpec(ModelSpec):
    """A `[models.NAME]` table with architecture = "retnet"."""

    architecture: Literal["retnet"]
    variant: Variant = "fla"
    """fla: SwiGLU, per-head RMSNorm with weights, value 2d. torchscale: SwiGLU with values as wide as it. paper:
    LayerNorm, GELU feed-forward, GroupNorm, value 2d. yoco: SwiGLU, value d, gated decay."""
    ffn_dim: FfnWidth = "matched"
    decay: Decay | None = None
    """See `Retention.decay`. The variant's own when absent: paper for paper, gated for yoco, eq8 for the others."""
    head_dim: int | None = Field(default=None, ge=2)
    """Width of a query and key head; that of the size (256, or 64 in the smallest) when absent."""
    num_heads: int | None = Field(default=None, ge=1)
    """Retention heads, in place of `head_dim`."""
    swish_gate: bool = True
    """false: without the gate swish(x W_G)."""
    head_norm: bool = True
    """false: without the norm of each head."""
    backend: Backend = "chunkwise"
    """chunkwise: products in the model's dtype. chunkwise_fp32: in float32 or wider. fla: chunkwise by
    flash-linear-attention's kernels, on CUDA; their chunk is fixed (see `FLA_CHUNK_SIZE`)."""
    chunk_size: int | None = Field(default=128, ge=1)
    """Tokens of a chunk of the chunkwise form."""

    @model_validator(mode="after")
    def _heads_are_given_once(self) -> Self:
        if self.head_dim is not None and self.num_heads is not None:
            raise ValueError(
                f"head_dim is {self.head_dim} and num_heads is {self.num_heads}, and one follows from the other and "
                "the width of the model; remove one"
            )
        return self


def retnet_config(
    *,
    d_model: int,
    num_layers: int,
    num_heads: int,
    vocab_size: int,
    ffn_dim: int,
    value_dim: int,
    variant: Variant = "fla",
    decay: Decay = "eq8",
    swish_gate: bool = True,
    head_norm: bool = True,
    norm_eps: float = 1e-6,
    rotary_base: float = ROTARY_BASE,
) -> ModelConfig:
    """Return a RetNet of given sizes; pydantic's ValidationError where they do not go together.

    Args:
        d_model: Width of the model.
        num_layers: Blocks.
        num_heads: Retention heads.
        vocab_size: Rows of the embedding table.
        ffn_dim: Width of the feed-forward.
        value_dim: Width of all value heads together.
        variant: See `RetNetSpec.variant`.
        decay: See `Retention.decay`.
        swish_gate: Whether retention is gated.
        head_norm: Whether each head is normalised.
        norm_eps: Of all norms.
        rotary_base: Of the rotary positions.
    """
    traits = TRAITS[variant]
    mixer = Retention(
        d_model=d_model,
        num_heads=num_heads,
        value_dim=value_dim,
        decay=decay,
        swish_gate=swish_gate,
        head_norm=traits.head_norm if head_norm else "none",
        row_norm=traits.row_norm,
        layout=traits.layout,
        rotary_base=rotary_base,
        norm_eps=norm_eps,
    )
    ffn = FeedForward(kind=traits.ffn, d_model=d_model, ffn_dim=ffn_dim)
    return ModelConfig(
        architecture="retnet",
        variant=variant,
        d_model=d_model,
        vocab_size=vocab_size,
        norm=traits.norm,
        norm_eps=norm_eps,
        blocks=(BlockConfig(count=num_layers, mixer=mixer, ffn=ffn),),
    )


def _resolve(spec: RetNetSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size."""
    if spec.head_dim:
        check_divides("head_dim", spec.head_dim, f"d_model {size.d_model}", size.d_model)
    if spec.num_heads:
        check_divides("num_heads", spec.num_heads, f"d_model {size.d_model}", size.d_model)
    heads = size.d_model // spec.head_dim if spec.head_dim else spec.num_heads or size.retention_heads
    shares_width = spec.variant == "torchscale"  # of values and feed-forward

    def make(ffn_dim: int) -> ModelConfig:
        own_value_dim = size.d_model if spec.variant == "yoco" else 2 * size.d_model
        return retnet_config(
            variant=spec.variant,
            d_model=size.d_model,
            num_layers=size.num_layers,
            num_heads=heads,
            vocab_size=size.vocab_size,
            ffn_dim=ffn_dim,
            value_dim=ffn_dim if shares_width else own_value_dim,
            decay=spec.decay or TRAITS[spec.variant].decay,
            swish_gate=spec.swish_gate,
            head_norm=spec.head_norm,
        )

    step = math.lcm(width_step(size), heads) if shares_width else None
    return choose_width(make, spec.ffn_dim, size, _published_ffn(spec.variant, size.d_model), step=step)


def _published_ffn(variant: Variant, d_model: int) -> int | str:
    """Return the feed-forward width by the rule of the variant's own code, or in words why there is none."""
    widths: Mapping[Variant, int | str] = {
        "fla": swiglu_width(d_model, ratio=2),  # fla RetNetConfig: hidden_ratio 2
        "paper": 2 * d_model,  # Sec. 3.1
        "yoco": 3 * d_model,  # arXiv:2405.05254, scaling curves
        "torchscale": TORCHSCALE_FFN.get(d_model, f"torchscale publishes no width for d_model {d_model}"),
    }
    return widths[variant]


def _is_standard(config: ModelConfig) -> bool:
    """Return whether decays are fixed and of several scales, and the swish gate and the head norms are there."""
    mixer = config.mixers[-1]
    if not isinstance(mixer, Retention):  # a record may say anything; then nothing is known to be missing
        return True
    return mixer.swish_gate and mixer.head_norm != "none" and mixer.decay in ("eq8", "paper")


def _unusual(config: ModelConfig) -> list[str]:
    """Return what differs from fla's RetNet, in words."""
    mixer = config.mixers[-1]
    if not isinstance(mixer, Retention):
        return []
    words = {
        f"variant {config.variant}": config.variant != "fla",
        f"decay {mixer.decay}": mixer.decay != "eq8",
        "no swish gate": not mixer.swish_gate,
        "no head norm": mixer.head_norm == "none",
    }
    return [word for word, applies in words.items() if applies]


ARCHITECTURE = Architecture(
    name="retnet",
    title="RetNet",
    reference="arXiv:2307.08621",
    spec=RetNetSpec,
    resolve=_resolve,
    presets={variant: {"variant": variant} for variant in TRAITS},
    order=0,
    upgrade=retnet_config,
    formats=("retbench.checkpoints.fla", "retbench.checkpoints.torchscale"),
    is_standard=_is_standard,
    unusual=_unusual,
)
