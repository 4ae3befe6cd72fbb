"""Sizes that all mixers of softmax attention share: heads of keys and values, rotary positions, projections."""

from dataclasses import replace
from typing import Any, ClassVar, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from retbench.mixers.mixer import (
    DTYPE_BYTES,
    WIDE_BYTES,
    KeptValues,
    Mixer,
    Projection,
    SizeFields,
    StateTensor,
)
from retbench.ops import ROTARY_BASE
from retbench.strict import Strict


class RotaryScaling(Strict):
    """Slower rotary frequencies for contexts longer than the original one; see `ops.position.scale_frequencies`."""

    factor: float = Field(ge=1)
    """The longest wavelengths become so many times as long."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """Pairs that turn at most so often within the original length are slowed down by the whole factor."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """Pairs that turn at least so often are kept."""
    original_len: int | None = Field(default=None, ge=1)
    """Tokens of the original context, as of Llama 3.1; None slows down all pairs, which is linear scaling."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} must be below high_freq_factor {self.high_freq_factor}"
            )
        return self


class SoftmaxAttention(Mixer):
    """Causal softmax attention with half-split rotary positions and without biases, as in Llama."""

    num_kv_heads: int = Field(ge=1)
    """Key and value heads; fewer than query heads is grouped-query attention (arXiv:2305.13245)."""
    rotary_base: float = Field(default=ROTARY_BASE, gt=1)
    rotary_scaling: RotaryScaling | None = None

    added_later: ClassVar[frozenset[str]] = frozenset({"rotary_scaling"})
    """Fields that configurations did not state before they could be chosen."""

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields without those of `added_later` that have their default, as in the ids of older records."""
        fields: dict[str, Any] = dump(self)
        for name in self.added_later:
            if getattr(self, name) == type(self).model_fields[name].default:
                fields.pop(name, None)
        return fields

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.check_rotary_heads()
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        return self

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> Self:
        """Return multi-head attention at a size."""
        heads = fields.get("num_heads", size.attention_heads)
        usual = {"d_model": size.d_model, "num_heads": heads, "num_kv_heads": heads}
        return cls.model_validate({**usual, **fields})

    @property
    def kv_width(self) -> int:
        """Width of the key heads together; the value heads have the same width."""
        return self.num_kv_heads * self.head_dim

    def cached(self, *, window: int = 0, concatenated: bool = False) -> tuple[StateTensor, StateTensor]:
        """Return the keys and values of a cache; its arguments are fields of `StateTensor`."""
        shape = (self.num_kv_heads, self.head_dim)
        keys = StateTensor("keys", shape, "per_token", window=window, concatenated=concatenated)
        # Values that several queries share are summed faster by a product, which reads them once for all.
        by_value = self.num_kv_heads == self.num_heads and not concatenated
        return keys, replace(keys, name="values", by_value=by_value)

    @property
    def streamed_params(self) -> int:
        """Parameters of the products that give keys and values."""
        return 2 * self.d_model * self.kv_width

    @property
    def local_params(self) -> int:
        """Parameters of the products that give queries and output."""
        return 2 * self.d_model * self.d_model

    def decode_workspace(self, dtype: str) -> int:
        """Return the projections, and queries and keys as they are rotated: times cosines, their partners, the sum."""
        d, kv, wide = self.d_model, self.kv_width, WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        return d + 2 * kv + (1 + 2 * wide) * (d + kv)

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again."""
        return KeptValues(10 * self.d_model, scores=1 if self.forms[form].quadratic else 0)

    def projection(self) -> Projection:
        """Return queries, keys and values."""
        heads = (self.num_heads, self.num_kv_heads, None)
        return Projection("qkv_proj", (self.d_model, self.kv_width, self.kv_width), heads, self.d_model)
