"""Linear attention: sizes, forms, state and costs."""

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from retbench.mixers.linear_operator import LinearOperator
from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, KeptValues, SizeFields


class LinearAttention(LinearOperator):
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
    implementation: ClassVar[str] = "retbench.mixers.linear_attention.module:LinearAttentionModule"

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> Self:
        """Return linear attention at a size, with the heads of its attention."""
        return cls.model_validate({"d_model": size.d_model, "num_heads": size.attention_heads, **fields})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} must be a multiple of {self.num_heads} heads")
        return self

    @property
    def value_head_dim(self) -> int:
        """V, one more than that of the values where the sum of the weights is a column of the state."""
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

    def decode_workspace(self, dtype: str) -> int:
        """Return the projections, the features, and what is widened for the state."""
        d, wide = self.d_model, WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        return 3 * d + 2 * wide * (d + self.num_heads * self.value_head_dim) + 2 * wide * d

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again; the parallel form keeps the mask of all pairs beside the scores."""
        values = self.num_heads * self.value_head_dim
        return KeptValues(
            6 * self.d_model, 3 * self.d_model + 2 * values, 2 if self.forms[form].quadratic else 0
        )
