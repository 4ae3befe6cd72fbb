"""Sizes that all mixers of softmax attention share: heads of keys and values, rotary positions, projections."""

from typing import Any, Self

from pydantic import Field, model_validator

from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, KeptValues, Mixer, Projection, SizeFields
from retbench.ops import ROTARY_BASE


class SoftmaxAttention(Mixer):
    """Causal softmax attention with half-split rotary positions and without biases, as in Llama."""

    num_kv_heads: int = Field(ge=1)
    """Key and value heads; fewer than query heads is grouped-query attention (arXiv:2305.13245)."""
    rotary_base: float = Field(default=ROTARY_BASE, gt=1)

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
