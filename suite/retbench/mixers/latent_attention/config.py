"""Multi-head latent attention: sizes, forms, cache and costs."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from retbench.mixers.linear_operator import SEGMENT
from retbench.mixers.mixer import (
    DTYPE_BYTES,
    WIDE_BYTES,
    Form,
    KeptValues,
    Mixer,
    SizeFields,
    StateTensor,
    causal_pairs,
)
from retbench.ops import ROTARY_BASE

QUERY_RANK_FACTOR = 3
"""Width of the queries' latent over that of the keys and values: 1536 over 512 in DeepSeek-V2 and V3."""


class LatentAttention(Mixer):
    """Causal softmax attention whose keys and values are products of one latent vector per token.

    The latent is c = RMSNorm(x W), of `kv_rank` values. A head's key is c W_key, of `nope_head_dim` values without a
    position, followed by a rotated key of `rope_head_dim` values that all heads share. A head's value is c W_value.
    The cache holds c and the rotated key only (DeepSeek-V2, arXiv:2405.04434, Sec. 2.1, Eq. 9 to 19). Rotary pairs are
    half-split; DeepSeek's are interleaved, which is the same model with the columns of two weights in another order.
    """

    mixer: Literal["latent_attention"] = "latent_attention"
    kv_rank: int = Field(ge=1)
    """Width of the latent of keys and values, R."""
    query_rank: int | None = Field(default=None, ge=1)
    """Width of the latent of queries; None computes queries from x directly, as DeepSeek-V2-Lite does."""
    nope_head_dim: int = Field(ge=1)
    """Width of the part of a query or key head that is not rotated."""
    rope_head_dim: int = Field(ge=2, multiple_of=2)
    """Width of the rotated part, which consists of pairs."""
    value_head_dim: int = Field(ge=1)
    """Width of a value head."""
    rotary_base: float = Field(default=ROTARY_BASE, gt=1)
    norm_eps: float = 1e-6
    """Epsilon of the norms of latents."""

    title: ClassVar[str] = "latent attention"
    forms: ClassVar = {
        "sdpa": Form("kernel"),
        "reference": Form("parallel", quadratic=True),
        "absorbed": Form("parallel", quadratic=True),
    }
    default_form: ClassVar[str] = "sdpa"
    implementation: ClassVar[str] = "retbench.mixers.latent_attention.module:LatentAttentionModule"

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> Self:
        """Return latent attention at a size, in the proportions of DeepSeek-V2 (arXiv:2405.04434, Sec. 3.1.2).

        A head of d / H values has as many in its value and in its key before rotation, and half as many in its rotated
        key. The latent has 4 heads' width, and at most d / 2: with fewer than 8 heads it would hold as much as the keys
        and values that it replaces.
        """
        heads = fields.get("num_heads", size.attention_heads)
        # A number that is no count of heads is refused below.
        width = size.d_model // heads if isinstance(heads, int) and heads > 0 else size.d_model
        usual = {
            "d_model": size.d_model,
            "num_heads": heads,
            "kv_rank": min(4 * width, size.d_model // 2),
            "nope_head_dim": width,
            "rope_head_dim": width // 2,
            "value_head_dim": width,
        }
        return cls.model_validate({**usual, **fields})

    @property
    def head_dim(self) -> int:
        """Width of one query or key head: without a position, then rotated."""
        return self.nope_head_dim + self.rope_head_dim

    @property
    def entry_width(self) -> int:
        """Values that the cache holds per token: the latent, then the rotated key."""
        return self.kv_rank + self.rope_head_dim

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def up_params(self) -> int:
        """Parameters of the products that give keys and values of a latent; absorbed, they take as many operations."""
        return self.kv_rank * self.num_heads * (self.nope_head_dim + self.value_head_dim)

    @property
    def streamed_params(self) -> int:
        """Parameters of the product that gives what is cached."""
        return self.d_model * self.entry_width

    @property
    def local_params(self) -> int:
        """Parameters of the products that give queries, keys and values of latents, and output."""
        queries = self.d_model * self.query_width
        if self.query_rank is not None:
            queries = self.query_rank * (self.d_model + self.query_width)
        return queries + self.up_params + self.num_heads * self.value_head_dim * self.d_model

    @property
    def other_params(self) -> int:
        """Weights of the norms of latents."""
        return self.kv_rank + (self.query_rank or 0)

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The cache of latents and rotated keys, which all heads share."""
        return (StateTensor("latents", (1, self.entry_width), "per_token"),)

    def _pair_flops(self, form: str) -> int:
        """Return the operations of a query and a key of all heads: the score, and the sum of values or latents.

        Absorbed, the module sums whole entries, in one product: the sums of rotated keys, which nothing reads, are left
        out, so torch's counter finds rope_head_dim / (2 * kv_rank + rope_head_dim) more of these operations.
        """
        widths = (
            self.kv_rank + self.entry_width if form == "absorbed" else self.value_head_dim + self.head_dim
        )
        return 2 * self.num_heads * widths

    def decode_flops(self, context_len: int) -> int:
        """Return the scores of all latents and the sum of them; steps are absorbed in every form."""
        return self._pair_flops("absorbed") * (context_len + 1)

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the products of causal attention; zeros that a kernel pads values with are left out."""
        return self._pair_flops(form) * causal_pairs(context_len) // 2

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the products of causal attention; the last token alone is a step, and so absorbed.

        A form that is not absorbed computes keys and values of all earlier latents again for each segment of a prompt.
        """
        if last_only:
            return self.decode_flops(context_len - 1)
        flops = self.training_flops(context_len, form, chunk_size)
        whole, rest = divmod(context_len, SEGMENT)
        again = SEGMENT * (whole * (whole - 1) // 2 + (whole if rest > 1 else 0))
        return flops + (0 if form == "absorbed" else 2 * self.up_params * again)

    @property
    def projected_width(self) -> int:
        """Outputs of the first product: queries or their latent, then what is cached."""
        return (self.query_rank or self.query_width) + self.entry_width

    def decode_workspace(self, dtype: str) -> int:
        """Return the products and norms of a token, or queries of latents with their result, whichever are more.

        Scores are left out, as those of all attention: see `costs.decode_workspace_bytes`.
        """
        wide = WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        queries, rank = self.query_width, self.query_rank or 0
        rotated = (2 if rank else 1) * queries + self.rope_head_dim
        normed = max(3 * wide * rank, rotated + 3 * wide * self.kv_rank)
        return max(self.projected_width + normed, 2 * queries + 2 * self.num_heads * self.entry_width)

    def prefill_workspace(self) -> int:
        """Return what is projected, and queries, keys, values and output of all heads, each as wide as keys."""
        return self.projected_width + 5 * self.query_width

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return the input, what is projected and cached, the operands of the operator, and its output."""
        values = self.num_heads * self.value_head_dim
        operands = {
            "sdpa": 4 * self.query_width,
            "reference": 2 * self.query_width + values,
            "absorbed": self.query_width + 2 * self.num_heads * self.entry_width,
        }[form]
        queries = 0 if self.query_rank is None else self.query_width
        cached = self.entry_width + self.rope_head_dim
        narrow = self.d_model + self.projected_width + queries + cached + operands + values
        return KeptValues(narrow, scores=1 if self.forms[form].quadratic else 0)
