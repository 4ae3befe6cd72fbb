"""Attention: sizes, backends, cache and costs."""

from typing import ClassVar, Literal

from retbench.mixers.mixer import Form, StateTensor, causal_pairs
from retbench.mixers.softmax_attention import SoftmaxAttention

Cache = Literal["preallocated", "concat"]
"""Growth of a key-value cache. preallocated: it has room for a capacity, and a token is written in place. concat: each
token is concatenated to a copy of the whole cache, as transformers' dynamic cache does."""


class Attention(SoftmaxAttention):
    """Causal softmax attention to the whole context."""

    mixer: Literal["attention"] = "attention"
    cache: Cache = "preallocated"

    added_later: ClassVar[frozenset[str]] = SoftmaxAttention.added_later | {"cache"}
    title: ClassVar[str] = "attention"
    forms: ClassVar = {
        "auto": Form("kernel", reads_as="sdpa"),
        "reference": Form("parallel", quadratic=True),
        "sdpa": Form("kernel"),
        "products": Form("kernel", reads_as="sdpa"),
        "flash": Form("kernel"),
        "flash3": Form("kernel"),
        "flash4": Form("kernel"),
    }
    default_form: ClassVar[str] = "auto"
    implementation: ClassVar[str] = "retbench.mixers.attention.module:AttentionModule"

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The key-value cache."""
        return self.cached(concatenated=self.cache == "concat")

    def decode_flops(self, context_len: int) -> int:
        """Return the scores of all keys and the sum of their values."""
        return 4 * self.d_model * (context_len + 1)

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the products of causal attention; its scores are counted once, though fused kernels repeat them."""
        return 2 * self.d_model * causal_pairs(context_len)

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the products of causal attention."""
        return 4 * self.d_model * context_len if last_only else 2 * self.d_model * causal_pairs(context_len)

    def append_workspace(self, context_len: int) -> int:
        """Return the projections, queries and keys rotated, and the earlier copy of the keys or of the values."""
        if self.cache == "preallocated":
            return 0
        return 2 * self.d_model + (3 + context_len) * self.kv_width

    def prefill_workspace(self) -> int:
        """Return queries, keys and values, twice."""
        return 2 * 3 * self.d_model
