"""Linear attention: sizes, forms, state and costs."""

import math
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from retbench.mixers.linear_operator import LinearOperator
from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, Form, KeptValues, SizeFields, StateTensor
from retbench.ops import FLA_CHUNK_SIZE

FeatureMap = Literal["elu", "identity", "performer", "taylor"]

TAYLOR_KEY_WIDTH = 16
"""Width of a query or key head of Based: `feature_dim` in its configurations."""


class LinearAttention(LinearOperator):
    """Causal linear attention without positions.

    elu: phi(x) = elu(x) + 1 of queries and keys, the output divided by the sum of its weights
    (Katharopoulos et al., arXiv:2006.16236, Eq. 7). performer and taylor likewise, with positive random features
    (Choromanski et al., arXiv:2009.14794, Lemma 1; the maximum that is subtracted from keys is that of those so far)
    and with the terms of exp up to the second order (Arora et al., arXiv:2402.18668, Sec. 3). identity: queries scaled
    by K^(-1/2), no division, and an RMSNorm of each head with one weight for all heads, as in flash-linear-attention
    (`fla/layers/linear_attn.py`).
    """

    mixer: Literal["linear_attention"] = "linear_attention"
    feature_map: FeatureMap = "elu"
    key_width: int | None = Field(default=None, ge=1)
    """Width of a query or key head before the feature map; d_model / num_heads when absent."""
    norm_eps: float = 1e-6
    """Epsilon of the head norm; the normaliser adds it to the sum of the weights."""

    title: ClassVar[str] = "linear attention"
    forms: ClassVar = {**LinearOperator.forms, "fla": Form("kernel")}
    implementation: ClassVar[str] = "retbench.mixers.linear_attention.module:LinearAttentionModule"

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> Self:
        """Return linear attention at a size, with the heads of its attention; narrow keys for the Taylor map."""
        usual = {"d_model": size.d_model, "num_heads": size.attention_heads}
        if fields.get("feature_map") == "taylor":
            usual["key_width"] = TAYLOR_KEY_WIDTH
        return cls.model_validate({**usual, **fields})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} must be a multiple of {self.num_heads} heads")
        return self

    @property
    def projected_width(self) -> int:
        """Width of a query or key head before the feature map."""
        return self.key_width or self.d_model // self.num_heads

    @property
    def key_dim(self) -> int:
        """Width of all query or key heads together, before the feature map."""
        return self.num_heads * self.projected_width

    @property
    def head_dim(self) -> int:
        """K, the number of features of a query or key head.

        performer: K log K of K channels, as in `performer_pytorch`. taylor: one, the channels, and their products.
        """
        width = self.projected_width
        match self.feature_map:
            case "performer":
                return max(1, int(width * math.log(width)))
            case "taylor":
                return 1 + width + width**2
        return width

    @property
    def is_normalised(self) -> bool:
        """True if outputs are divided by the sum of their weights."""
        return self.feature_map != "identity"

    @property
    def value_head_dim(self) -> int:
        """V, one more than that of the values where the sum of the weights is a column of the state."""
        return self.d_model // self.num_heads + self.is_normalised

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """S, and of performer the largest exponent of the keys of each head, with a 1 where there are tokens."""
        if self.feature_map != "performer":
            return super().state
        return (*super().state, StateTensor("largest", (2, self.num_heads), wide=True))

    @property
    def streamed_params(self) -> int:
        """Parameters of the products that give keys and values."""
        return self.d_model * (self.key_dim + self.d_model)

    @property
    def local_params(self) -> int:
        """Parameters of the products that give queries and output."""
        return self.d_model * (self.key_dim + self.d_model)

    @property
    def other_params(self) -> int:
        """The weight of the head norm."""
        return 0 if self.is_normalised else self.value_head_dim

    def chunk_size(self, form: str, asked: int | None) -> int | None:
        """Return the chunk of the chunkwise form; that of fla's kernels is their own."""
        return FLA_CHUNK_SIZE if form == "fla" else super().chunk_size(form, asked)

    def decode_flops(self, context_len: int) -> int:
        """Return the operations of one token, with those of random features, without which nothing decays."""
        undecayed = (
            0 if self.feature_map == "performer" else self.num_heads * self.head_dim * self.value_head_dim
        )
        return super().decode_flops(context_len) - undecayed + 2 * self._feature_flops

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the products of a form, with those of random features."""
        return super().training_flops(context_len, form, chunk_size) + self.constant_flops(context_len)

    def constant_flops(self, context_len: int) -> int:
        """Return the products with random features, which are drawn once and not trained."""
        return 2 * context_len * self._feature_flops

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the products of one prompt, with those of random features."""
        mapped = context_len + (1 if last_only else context_len)
        flops = super().prefill_flops(context_len, form, chunk_size, last_only=last_only)
        return flops + mapped * self._feature_flops

    @property
    def _feature_flops(self) -> int:
        """Operations of the products that map the heads of one query or key."""
        return 2 * self.key_dim * self.head_dim if self.feature_map == "performer" else 0

    def decode_workspace(self, dtype: str) -> int:
        """Return the products, and the features of a query and a key; where nothing is mapped, what the step needs."""
        d, keys, wide = self.d_model, self.key_dim, WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        projected = 2 * keys + d
        if not self.is_normalised:
            # Scaled queries; then all in the state's dtype, where that is a wider one, or the norm and its product.
            return projected + keys + (wide * (2 * keys + 2 * d) + d if wide > 1 else 3 * d)
        features, values = self.num_heads * self.head_dim, self.num_heads * self.value_head_dim
        # Two or three steps of a map, with what it maps where that is a copy: of a query while the products are there,
        # or of a key beside the features of the query, when of the products its own is all that is left.
        steps = (3 if self.feature_map == "elu" else 2) * features + (keys if wide > 1 else 0)
        of_query = projected + wide * (self.num_heads + values + steps)
        of_key = (projected if wide == 1 else 0) + wide * (values + features + steps)
        return max(of_query, of_key)

    def prefill_workspace(self) -> int:
        """Return queries, keys and values, and their features, twice."""
        return 2 * (2 * self.num_heads * self.head_dim + 2 * self.d_model)

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again; the parallel form keeps the mask of all pairs beside the scores."""
        values, features = self.num_heads * self.value_head_dim, self.num_heads * self.head_dim
        narrow = 2 * self.d_model + 4 * self.key_dim
        return KeptValues(narrow, 3 * features + 2 * values, 2 if self.forms[form].quadratic else 0)
