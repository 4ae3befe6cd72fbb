"""Sliding-window attention: sizes, forms, ring buffer and costs."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, Form, KeptValues, Mixer, SizeFields, StateTensor
from retbench.ops import ROTARY_BASE


class WindowAttention(Mixer):
    """Causal softmax attention to the last `window` tokens, the own one included, and to the first `sinks`.

    Query i attends to key j <= i where j > i - window or j < sinks. Keys are cached as they are rotated at their own
    positions, as in Mistral; StreamingLLM, which rotates them by their place in the cache, does so to go beyond the
    trained length (arXiv:2309.17453, Sec. 3.2).
    """

    mixer: Literal["window_attention"] = "window_attention"
    num_kv_heads: int = Field(ge=1)
    """Key and value heads; fewer than query heads is grouped-query attention (arXiv:2305.13245)."""
    window: int = Field(default=1024, ge=1)
    sinks: int = Field(default=4, ge=0)
    rotary_base: float = Field(default=ROTARY_BASE, gt=1)

    title: ClassVar[str] = "window attention"
    forms: ClassVar = {"blocks": Form("chunkwise"), "reference": Form("parallel", quadratic=True)}
    default_form: ClassVar[str] = "blocks"
    implementation: ClassVar[str] = "retbench.mixers.window_attention.module:WindowAttentionModule"

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> "WindowAttention":
        """Return multi-head window attention at a size."""
        heads = fields.get("num_heads", size.attention_heads)
        return cls.model_validate(
            {"d_model": size.d_model, "num_heads": heads, "num_kv_heads": heads, **fields}
        )

    @model_validator(mode="after")
    def _fits(self) -> "WindowAttention":
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model {self.d_model} must be a multiple of 2 * {self.num_heads} heads (rotary pairs)"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        return self

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, which is that of the value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def slots(self) -> int:
        """Tokens that the cache holds."""
        return self.sinks + self.window

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
        """The sinks, then the ring buffer."""
        shape = (self.num_kv_heads, self.head_dim)
        return (
            StateTensor("keys", shape, "window", window=self.slots),
            StateTensor("values", shape, "window", window=self.slots),
        )

    def num_visible(self, position: int) -> int:
        """Return the keys that the query at a position attends to."""
        return min(position + 1, self.window + min(self.sinks, max(0, position + 1 - self.window)))

    def decode_flops(self, context_len: int) -> int:
        """Return the scores of the visible keys and the sum of their values."""
        return 4 * self.d_model * self.num_visible(context_len)

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the products with the visible keys of every query."""
        ramp, beyond = min(context_len, self.window), max(0, context_len - self.window)
        growing = min(beyond, self.sinks)  # queries that leave one sink more behind their window
        sinks = growing * (growing + 1) // 2 + (beyond - growing) * self.sinks
        return 4 * self.d_model * (ramp * (ramp + 1) // 2 + beyond * self.window + sinks)

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the products with the visible keys."""
        if last_only:
            return 4 * self.d_model * self.num_visible(context_len - 1)
        return self.training_flops(context_len, form, chunk_size)

    def decode_workspace(self, dtype: str) -> int:
        """Return the projections, and queries and keys as they are rotated, in halves and joined."""
        d, kv, wide = self.d_model, self.kv_width, WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        return d + 2 * kv + 2 * wide * (d + kv)

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again."""
        return KeptValues(10 * self.d_model, scores=1 if self.forms[form].quadratic else 0)

    def narrowed(self, head_dim: int) -> "WindowAttention":
        """Return the same mixer with heads of `head_dim`."""
        return self.model_copy(update={"d_model": head_dim * self.num_heads})
