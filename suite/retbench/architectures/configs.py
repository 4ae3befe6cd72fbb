"""Full configurations of models: all that fixes shapes and arithmetic, nothing about how they are run."""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, model_serializer, model_validator

from retbench.config.experiment import Decay, RetNetVariant, TransformerVariant
from retbench.strict import Strict

ROTARY_BASE = 10_000.0
"""Of the rotary positions, in every paper's and every named model."""
Layout = Literal["half", "interleaved"]
"""Which values of a head are the pairs that a rotary position turns; see `models.position`."""


@dataclass(frozen=True)
class Traits:
    """What a variant's blocks are made of.

    Attributes:
        block_norm: rms: RMSNorm. layer: LayerNorm with weight and bias.
        ffn: swiglu: two matrices in, one out. gelu: one in, one out.
        layout: Pairs and frequencies of the rotary positions.
        head_norm: Norm of each retention head: rms, rms_affine (one weight for all heads), layer (GroupNorm with a
            group a head, without weights).
        row_norm: Whether retention is divided by the square root of the row sum of D (arXiv:2307.08621, Sec. 2.4).
    """

    block_norm: Literal["rms", "layer"]
    ffn: Literal["swiglu", "gelu"]
    layout: Layout
    head_norm: Literal["rms", "rms_affine", "layer"] = "rms"
    row_norm: bool = False


RETNET_TRAITS: dict[RetNetVariant, Traits] = {
    "fla": Traits("rms", "swiglu", "half", head_norm="rms_affine"),
    "torchscale": Traits("rms", "swiglu", "interleaved", row_norm=True),
    "paper": Traits("layer", "gelu", "interleaved", head_norm="layer", row_norm=True),
    "yoco": Traits("rms", "swiglu", "interleaved"),
}
TRANSFORMER_TRAITS: dict[TransformerVariant, Traits] = {
    "llama": Traits("rms", "swiglu", "half"),
    "gpt": Traits("layer", "gelu", "half"),
}


class _DecoderConfig(Strict):
    """What every decoder has."""

    d_model: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    ffn_dim: int = Field(ge=1)
    norm_eps: float = 1e-6
    rotary_base: float = Field(default=ROTARY_BASE, gt=1)
    """Written only where it is another than the usual one, which only checkpoints from elsewhere have."""

    @property
    def head_dim(self) -> int:
        """Width of one query or key head."""
        return self.d_model // self.num_heads

    @property
    def fingerprint(self) -> str:
        """Short hash of every field: two models with one fingerprint have the same shapes and arithmetic."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @model_serializer(mode="wrap")
    def _leave_out_the_usual_base(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = dump(self)
        if self.rotary_base == ROTARY_BASE:
            dumped.pop("rotary_base", None)
        return dumped

    @model_validator(mode="after")
    def _heads_fit(self) -> "_DecoderConfig":
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model {self.d_model} must be a multiple of 2 * {self.num_heads} heads (rotary pairs)"
            )
        return self


class RetNetConfig(_DecoderConfig):
    """A RetNet: multi-scale retention, a swish gate, and a feed-forward (arXiv:2307.08621, Sec. 2).

    Gated retention (arXiv:2405.05254, Sec. 3.3) is the decay `gated`, in YOCO's own models with the variant `yoco`.
    """

    architecture: Literal["retnet"] = "retnet"
    variant: RetNetVariant = "fla"
    value_dim: int = Field(ge=1)
    """Width of all value heads together: 2d (fla, paper), the FFN width (torchscale), d (yoco)."""
    decay: Decay = "eq8"
    swish_gate: bool = True
    """Whether the retention is multiplied by swish(x W_G) (Eq. 8)."""
    head_norm: bool = True
    """Whether each head is normalised (GroupNorm in Eq. 8)."""

    @model_validator(mode="after")
    def _retention_fits(self) -> "RetNetConfig":
        if self.value_dim % self.num_heads:
            raise ValueError(f"value_dim {self.value_dim} must be a multiple of num_heads {self.num_heads}")
        if self.decay == "gated" and self.traits.row_norm:
            raise ValueError(
                f"decay 'gated' depends on the data, and the variant '{self.variant}' divides by the row sums of a "
                "fixed decay; the variants 'yoco' and 'fla' do not"
            )
        return self

    @property
    def value_head_dim(self) -> int:
        """Width of one value head."""
        return self.value_dim // self.num_heads

    @property
    def traits(self) -> Traits:
        """What the variant's blocks are made of."""
        return RETNET_TRAITS[self.variant]


class TransformerConfig(_DecoderConfig):
    """A Transformer with rotary positions and without biases; grouped-query attention as an option.

    llama: RMSNorm and SwiGLU. gpt: LayerNorm and a GELU feed-forward, the block of GPT-2 and GPT-3.
    """

    architecture: Literal["transformer"] = "transformer"
    variant: TransformerVariant = "llama"
    num_kv_heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _kv_heads_fit(self) -> "TransformerConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        return self

    @property
    def traits(self) -> Traits:
        """What the variant's blocks are made of."""
        return TRANSFORMER_TRAITS[self.variant]


ModelConfig = RetNetConfig | TransformerConfig

_ADAPTER: TypeAdapter[ModelConfig] = TypeAdapter(Annotated[ModelConfig, Field(discriminator="architecture")])


def parse_model_config(raw: dict[str, object]) -> ModelConfig:
    """The configuration that `model_dump()` wrote; pydantic's ValidationError when it is none."""
    return _ADAPTER.validate_python(raw)
