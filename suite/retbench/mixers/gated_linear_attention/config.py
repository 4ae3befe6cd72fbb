"""Gated linear attention: sizes, forms, state and costs."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from retbench.mixers.linear_operator import ChannelDecayOperator
from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, Form, KeptValues, Projection, SizeFields
from retbench.ops import FLA_CHUNK_SIZE


class GatedLinearAttention(ChannelDecayOperator):
    """Linear attention whose state decays per channel, by a gate of the data (arXiv:2312.06635, Sec. 4.4).

    The logarithm of the decay is logsigmoid(x W_1 W_2 + b) / 16, with W_1 of a low rank. Queries are scaled by
    K^(-1/2). Each head is normalised by an RMSNorm with one weight for all heads, and multiplied by swish(x W_G). There
    are no positions.
    """

    mixer: Literal["gated_linear_attention"] = "gated_linear_attention"
    key_dim: int = Field(ge=1)
    """Width of all query or key heads together."""
    value_dim: int = Field(ge=1)
    """Width of all value heads together."""
    gate_rank: int = Field(default=16, ge=1)
    """Rank of the projection that gives the decay."""
    norm_eps: float = 1e-6

    title: ClassVar[str] = "GLA"
    forms: ClassVar = {
        **ChannelDecayOperator.forms,
        "fla": Form("kernel"),
        "fla_recurrent": Form("kernel"),
    }
    implementation: ClassVar[str] = "retbench.mixers.gated_linear_attention.module:GatedLinearAttentionModule"

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> Self:
        """Return the published layer at a size: four heads, keys of half the width, values of the width."""
        usual = {
            "d_model": size.d_model,
            "num_heads": 4,
            "key_dim": size.d_model // 2,
            "value_dim": size.d_model,
        }
        return cls.model_validate({**usual, **fields})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, width in (("key_dim", self.key_dim), ("value_dim", self.value_dim)):
            if width % self.num_heads:
                raise ValueError(f"{name} {width} must be a multiple of num_heads {self.num_heads}")
        return self

    @property
    def head_dim(self) -> int:
        """K, the width of one query or key head."""
        return self.key_dim // self.num_heads

    @property
    def value_head_dim(self) -> int:
        """V, the width of one value head."""
        return self.value_dim // self.num_heads

    @property
    def streamed_params(self) -> int:
        """Parameters of the products that give keys, values and decays."""
        joined = self.d_model * (self.key_dim + self.value_dim + self.gate_rank)
        return joined + self.gate_rank * self.key_dim

    @property
    def local_params(self) -> int:
        """Parameters of the products that give queries, gate and output."""
        return self.d_model * (self.key_dim + 2 * self.value_dim)

    @property
    def other_params(self) -> int:
        """The bias of the decay, and the weight of the head norm."""
        return self.key_dim + self.value_head_dim

    def chunk_size(self, form: str, asked: int | None) -> int | None:
        """Return the chunk of the chunkwise form; that of fla's chunkwise kernels is their own."""
        return FLA_CHUNK_SIZE if form == "fla" else super().chunk_size(form, asked)

    def decode_workspace(self, dtype: str) -> int:
        """Return the values alive at once in a decode step."""
        keys, values, wide = self.key_dim, self.value_dim, WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        # The products, the scaled queries, the logarithm of the decay and the decay live as long as the mixer runs.
        projected = 3 * keys + 2 * values + self.gate_rank + 2 * wide * keys
        # Queries, keys, values and the read-out in the state's dtype, where that is a wider one, and the rounded one.
        widened = values + (wide * (2 * keys + 2 * values) if wide > 1 else 0)
        # The normed read-out, the open gate, and their product.
        return projected + max(widened, 3 * values)

    def prefill_workspace(self) -> int:
        """Return queries, keys, values, gate and decay, twice."""
        return 2 * (3 * self.key_dim + 2 * self.value_dim)

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again; a chunk keeps its keys and queries once per halving of its tokens."""
        halvings = 7  # log2 of the usual chunk of 128 tokens
        operator = 2 * halvings * self.key_dim + 2 * self.value_dim
        narrow = 5 * self.key_dim + 4 * self.value_dim + self.gate_rank
        return KeptValues(narrow, 4 * self.key_dim + operator, 1 if self.forms[form].quadratic else 0)

    def projection(self) -> Projection:
        """Return queries, gate, keys, values, and the first factor of the decay."""
        widths = (self.key_dim, self.value_dim, self.key_dim, self.value_dim, self.gate_rank)
        return Projection("qgkvd_proj", widths, (None,) * len(widths), self.value_dim)
