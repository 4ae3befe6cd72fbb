"""Attention: sizes, backends, cache and costs."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from retbench.mixers.mixer import (
    DTYPE_BYTES,
    WIDE_BYTES,
    Form,
    KeptValues,
    Mixer,
    Projection,
    SizeFields,
    StateTensor,
    causal_pairs,
)
from retbench.ops import ROTARY_BASE


class Attention(Mixer):
    """Causal softmax attention with half-split rotary positions and without biases, as in Llama."""

    mixer: Literal["attention"] = "attention"
    num_kv_heads: int = Field(ge=1)
    """Key and value heads; fewer than query heads is grouped-query attention (arXiv:2305.13245)."""
    rotary_base: float = Field(default=ROTARY_BASE, gt=1)

    title: ClassVar[str] = "attention"
    forms: ClassVar = {
        "reference": Form("parallel", quadratic=True),
        "sdpa": Form("kernel"),
        "products": Form("kernel"),
        "flash": Form("kernel"),
    }
    default_form: ClassVar[str] = "sdpa"
    implementation: ClassVar[str] = "retbench.mixers.attention.module:AttentionModule"

    @model_validator(mode="after")
    def _fits(self) -> "Attention":
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model {self.d_model} must be a multiple of 2 * {self.num_heads} heads (rotary pairs)"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        return self

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> "Attention":
        """Return multi-head attention at a size."""
        heads = fields.get("num_heads", size.attention_heads)
        usual = {"d_model": size.d_model, "num_heads": heads, "num_kv_heads": heads}
        return cls.model_validate({**usual, **fields})

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, which is that of the value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def streamed_params(self) -> int:
        """Parameters of the products that give keys and values."""
        return 2 * self.d_model * self.kv_width

    @property
    def local_params(self) -> int:
        """Parameters of the products that give queries and output."""
        return 2 * self.d_model * self.d_model

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The key-value cache."""
        shape = (self.num_kv_heads, self.head_dim)
        return StateTensor("keys", shape, "per_token"), StateTensor("values", shape, "per_token")

    def decode_flops(self, context_len: int) -> int:
        """Return the scores of all keys and the sum of their values."""
        return 4 * self.d_model * (context_len + 1)

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the products of causal attention; its scores are counted once, though fused kernels repeat them."""
        return 2 * self.d_model * causal_pairs(context_len)

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the products of causal attention."""
        return 4 * self.d_model * context_len if last_only else 2 * self.d_model * causal_pairs(context_len)

    def decode_workspace(self, dtype: str) -> int:
        """Return the projections, and queries and keys as they are rotated, in halves and joined."""
        d, kv, wide = self.d_model, self.kv_width, WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        return d + 2 * kv + 2 * wide * (d + kv)

    def prefill_workspace(self) -> int:
        """Return queries, keys and values, twice."""
        return 2 * 3 * self.d_model

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again."""
        return KeptValues(10 * self.d_model, scores=1 if self.forms[form].quadratic else 0)

    def projection(self) -> Projection:
        """Return queries, keys and values."""
        heads = (self.num_heads, self.num_kv_heads, None)
        return Projection("qkv_proj", (self.d_model, self.kv_width, self.kv_width), heads, self.d_model)

    def narrowed(self, head_dim: int) -> "Attention":
        """Return the same mixer with heads of `head_dim`."""
        return self.model_copy(update={"d_model": head_dim * self.num_heads})
