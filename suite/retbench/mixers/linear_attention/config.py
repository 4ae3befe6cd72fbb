"""Linear attention: sizes, forms, state and costs."""

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from retbench.mixers import linear_operator
from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, Form, KeptValues, Mixer, SizeFields, StateTensor


class LinearAttention(Mixer):
    """Causal linear attention without positions.

    elu: phi(x) = elu(x) + 1 of queries and keys, the output divided by the sum of its weights
    (Katharopoulos et al., arXiv:2006.16236, Eq. 7). identity: queries scaled by K^(-1/2), no division, and an RMSNorm
    of each head with one weight for all heads, as in flash-linear-attention (`fla/layers/linear_attn.py`).
    """

    mixer: Literal["linear_attention"] = "linear_attention"
    feature_map: Literal["elu", "identity"] = "elu"
    norm_eps: float = 1e-6
    """Epsilon of the head norm; the normaliser adds it to the sum of the weights."""

    title: ClassVar[str] = "linear attention"
    forms: ClassVar = {
        "parallel": Form("parallel", quadratic=True),
        "chunkwise": Form("chunkwise"),
        "recurrent": Form("recurrent"),
    }
    default_form: ClassVar[str] = "chunkwise"
    default_chunk_size: ClassVar[int | None] = 128
    implementation: ClassVar[str] = "retbench.mixers.linear_attention.module:LinearAttentionModule"

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> "LinearAttention":
        """Return linear attention at a size, with the heads of its attention."""
        return cls.model_validate({"d_model": size.d_model, "num_heads": size.attention_heads, **fields})

    @model_validator(mode="after")
    def _fits(self) -> "LinearAttention":
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} must be a multiple of {self.num_heads} heads")
        return self

    @property
    def state_width(self) -> int:
        """Width of a value head in the state: one more where the sum of the weights is a column of it."""
        return self.head_dim + (self.feature_map == "elu")

    @property
    def streamed_params(self) -> int:
        """Parameters of the products that give keys and values."""
        return 2 * self.d_model * self.d_model

    @property
    def local_params(self) -> int:
        """Parameters of the products that give queries and output."""
        return 2 * self.d_model * self.d_model

    @property
    def other_params(self) -> int:
        """The weight of the head norm."""
        return self.head_dim if self.feature_map == "identity" else 0

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The sum of the outer products of keys and values, (H, K, V)."""
        return (StateTensor("values", (self.num_heads, self.head_dim, self.state_width), wide=True),)

    def chunk_size(self, form: str, asked: int | None) -> int | None:
        """Return the chunk of the chunkwise form."""
        return asked or self.default_chunk_size

    def decode_flops(self, context_len: int) -> int:
        """Return the operations of one token, the same at every depth, with the decay of 1 that is applied."""
        return linear_operator.step_flops(self.num_heads, self.head_dim, self.state_width)

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the products of a form."""
        chunk = linear_operator.counted_chunk(form, self.chunk_size(form, chunk_size))
        sizes = self.num_heads, self.head_dim, self.state_width
        return linear_operator.training_flops(*sizes, context_len, chunk)

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the products of a prompt."""
        chunk = linear_operator.counted_chunk(form, self.chunk_size(form, chunk_size))
        sizes = self.num_heads, self.head_dim, self.state_width
        return linear_operator.prefill_flops(*sizes, context_len, chunk, last_only=last_only)

    def decode_workspace(self, dtype: str) -> int:
        """Return the projections, the features, and what is widened for the state."""
        d, wide = self.d_model, WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        return 3 * d + 2 * wide * (d + self.num_heads * self.state_width) + 2 * wide * d

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again; the parallel form keeps the mask of all pairs beside the scores."""
        values = self.num_heads * self.state_width
        return KeptValues(
            6 * self.d_model, 3 * self.d_model + 2 * values, 2 if self.forms[form].quadratic else 0
        )

    def narrowed(self, head_dim: int) -> "LinearAttention":
        """Return the same mixer with heads of `head_dim`."""
        return self.model_copy(update={"d_model": head_dim * self.num_heads})
