"""Sliding-window attention: sizes, forms, ring buffer and costs."""

from typing import ClassVar, Literal

from pydantic import Field

from retbench.mixers.mixer import Form, StateTensor
from retbench.mixers.softmax_attention import SoftmaxAttention


class WindowAttention(SoftmaxAttention):
    """Causal softmax attention to the last `window` tokens, the own one included, and to the first `sinks`.

    Query i attends to key j <= i where j > i - window or j < sinks. Keys are cached as they are rotated at their own
    positions, as in Mistral; StreamingLLM, which rotates them by their place in the cache, does so to go beyond the
    trained length (arXiv:2309.17453, Sec. 3.2).
    """

    mixer: Literal["window_attention"] = "window_attention"
    window: int = Field(default=1024, ge=1)
    sinks: int = Field(default=4, ge=0)

    title: ClassVar[str] = "window attention"
    forms: ClassVar = {
        "auto": Form("chunkwise", reads_as="blocks"),
        "blocks": Form("chunkwise"),
        "products": Form("chunkwise", reads_as="blocks"),
        "reference": Form("parallel", quadratic=True),
    }
    default_form: ClassVar[str] = "auto"
    implementation: ClassVar[str] = "retbench.mixers.window_attention.module:WindowAttentionModule"

    @property
    def slots(self) -> int:
        """Tokens that the cache holds."""
        return self.sinks + self.window

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The sinks, then the ring buffer."""
        return self.cached(window=self.slots)

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
