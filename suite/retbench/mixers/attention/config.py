"""Attention: sizes, backends, cache and costs."""

from typing import ClassVar, Literal

from retbench.mixers.mixer import Form, Projection, StateTensor, causal_pairs
from retbench.mixers.softmax_attention import SoftmaxAttention


class Attention(SoftmaxAttention):
    """Causal softmax attention to the whole context."""

    mixer: Literal["attention"] = "attention"

    title: ClassVar[str] = "attention"
    forms: ClassVar = {
        "reference": Form("parallel", quadratic=True),
        "sdpa": Form("kernel"),
        "products": Form("kernel"),
        "flash": Form("kernel"),
        "flash3": Form("kernel"),
        "flash4": Form("kernel"),
    }
    default_form: ClassVar[str] = "sdpa"
    implementation: ClassVar[str] = "retbench.mixers.attention.module:AttentionModule"

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

    def prefill_workspace(self) -> int:
        """Return queries, keys and values, twice."""
        return 2 * 3 * self.d_model

    def projection(self) -> Projection:
        """Return queries, keys and values."""
        heads = (self.num_heads, self.num_kv_heads, None)
        return Projection("qkv_proj", (self.d_model, self.kv_width, self.kv_width), heads, self.d_model)
