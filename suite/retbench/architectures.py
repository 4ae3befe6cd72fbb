"""Full configurations of models: all that fixes shapes and arithmetic, nothing about how they are run."""

import hashlib
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator

from retbench.config import DecaySchedule, Strict


class _DecoderConfig(Strict):
    """What every decoder has."""

    d_model: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    ffn_dim: int = Field(ge=1)
    norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Width of one query or key head."""
        return self.d_model // self.num_heads

    @property
    def fingerprint(self) -> str:
        """Short hash of every field: two models with one fingerprint have the same shapes and arithmetic."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


class RetNetConfig(_DecoderConfig):
    """A RetNet: multi-scale retention, a swish gate, and a gated feed-forward (arXiv:2307.08621, Sec. 2)."""

    architecture: Literal["retnet"] = "retnet"
    variant: Literal["fla", "torchscale"] = "fla"
    value_dim: int = Field(ge=1)
    """Width of all value heads together: 2d (fla), the FFN width (torchscale)."""
    decay: DecaySchedule = "eq8"

    @model_validator(mode="after")
    def _widths_fit_heads(self) -> "RetNetConfig":
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model {self.d_model} must be a multiple of 2 * {self.num_heads} heads (rotary pairs)"
            )
        if self.value_dim % self.num_heads:
            raise ValueError(f"value_dim {self.value_dim} must be a multiple of num_heads {self.num_heads}")
        return self

    @property
    def value_head_dim(self) -> int:
        """Width of one value head."""
        return self.value_dim // self.num_heads


class TransformerConfig(_DecoderConfig):
    """A Llama-style Transformer: RMSNorm, SwiGLU, rotary positions, grouped-query attention as an option."""

    architecture: Literal["transformer"] = "transformer"
    variant: Literal["llama"] = "llama"
    num_kv_heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _widths_fit_heads(self) -> "TransformerConfig":
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model {self.d_model} must be a multiple of 2 * {self.num_heads} heads (rotary pairs)"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        return self


ModelConfig = RetNetConfig | TransformerConfig

_ADAPTER: TypeAdapter[ModelConfig] = TypeAdapter(Annotated[ModelConfig, Field(discriminator="architecture")])


def parse_model_config(raw: dict[str, object]) -> ModelConfig:
    """The configuration that `model_dump()` wrote; pydantic's ValidationError when it is none."""
    return _ADAPTER.validate_python(raw)
