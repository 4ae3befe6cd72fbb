"""Attention to the cache of an earlier layer: sizes, backends and costs."""

from typing import ClassVar, Literal

from retbench.mixers.attention.config import Attention
from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, KeptValues, StateTensor
from retbench.mixers.softmax_attention import SoftmaxAttention


class SharedAttention(SoftmaxAttention):
    """Causal attention whose keys and values are those of the nearest earlier layer of attention with the same sizes.

    The cross-decoder of YOCO (arXiv:2405.05254) is one layer of attention with layers of this mixer above it: keys and
    values are projected from the normed input of the lowest layer, which also gives the queries of that layer.
    """

    mixer: Literal["shared_attention"] = "shared_attention"

    title: ClassVar[str] = "shared attention"
    forms: ClassVar = Attention.forms
    default_form: ClassVar[str] = Attention.default_form
    implementation: ClassVar[str] = "retbench.mixers.shared_attention.module:SharedAttentionModule"

    @property
    def source(self) -> Attention:
        """Attention with the same heads and positions."""
        return Attention(
            d_model=self.d_model,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            rotary_base=self.rotary_base,
            rotary_scaling=self.rotary_scaling,
        )

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """Nothing: the cache belongs to the source."""
        return ()

    @property
    def streamed_params(self) -> int:
        """No parameters: keys and values are the source's."""
        return 0

    def decode_flops(self, context_len: int) -> int:
        """Return the products of the source's attention."""
        return self.source.decode_flops(context_len)

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the products of the source's attention."""
        return self.source.training_flops(context_len, form, chunk_size)

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the products of the source's attention."""
        return self.source.prefill_flops(context_len, form, chunk_size, last_only=last_only)

    def decode_workspace(self, dtype: str) -> int:
        """Return the queries, and the same as they are rotated: times cosines, their partners, the sum."""
        return 2 * self.d_model * (1 + WIDE_BYTES[dtype] // DTYPE_BYTES[dtype])

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again beside keys and values, which the source keeps."""
        return KeptValues(7 * self.d_model, scores=1 if self.forms[form].quadratic else 0)
