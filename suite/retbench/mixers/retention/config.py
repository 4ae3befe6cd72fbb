"""Retention: sizes, forms, state and costs."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from retbench.mixers.linear_operator import LinearOperator
from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, Form, KeptValues, Projection, SizeFields
from retbench.ops import FLA_CHUNK_SIZE, ROTARY_BASE, Layout

Decay = Literal["eq8", "paper", "single", "none", "gated"]


class Retention(LinearOperator):
    """Multi-scale retention with a swish gate (arXiv:2307.08621, Sec. 2.2).

    Gated retention (arXiv:2405.05254, Sec. 3.3) is the decay `gated`.
    """

    mixer: Literal["retention"] = "retention"
    value_dim: int = Field(ge=1)
    """Width of all value heads together."""
    decay: Decay = "eq8"
    """eq8: 1 - 2^(-5-h). paper: 1 - exp(linspace(log 1/32, log 1/512, H)). single: 127/128. none: 1. gated:
    sigmoid(x W)^(1/16)."""
    swish_gate: bool = True
    """True if the retention is multiplied by swish(x W_G) (Eq. 8)."""
    head_norm: Literal["none", "rms", "rms_affine", "layer"] = "rms"
    """Norm of each head (GroupNorm in Eq. 8). rms_affine: one weight for all heads. layer: without weights."""
    row_norm: bool = False
    """True if retention is divided by the square root of the row sum of D (arXiv:2307.08621, Sec. 2.4)."""
    layout: Layout = "half"
    rotary_base: float = Field(default=ROTARY_BASE, gt=1)
    norm_eps: float = 1e-6

    published_init: ClassVar[bool] = True
    title: ClassVar[str] = "retention"
    forms: ClassVar = {**LinearOperator.forms, "fla": Form("kernel")}
    implementation: ClassVar[str] = "retbench.mixers.retention.module:RetentionModule"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.check_rotary_heads()
        if self.value_dim % self.num_heads:
            raise ValueError(f"value_dim {self.value_dim} must be a multiple of num_heads {self.num_heads}")
        if self.decay == "gated" and self.row_norm:
            raise ValueError(
                "decay 'gated' depends on the data, and this variant divides by the row sums of a fixed decay; the "
                "variants 'yoco' and 'fla' do not"
            )
        return self

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> Self:
        """Return fla's retention at a size: values of twice the width."""
        usual = {
            "d_model": size.d_model,
            "num_heads": size.retention_heads,
            "value_dim": 2 * size.d_model,
            "head_norm": "rms_affine",
        }
        return cls.model_validate({**usual, **fields})

    @property
    def value_head_dim(self) -> int:
        """V, the width of one value head."""
        return self.value_dim // self.num_heads

    @property
    def streamed_params(self) -> int:
        """Parameters of the products that give keys, values and a gated decay."""
        decay = self.d_model * self.num_heads if self.decay == "gated" else 0
        return self.d_model * self.d_model + self.d_model * self.value_dim + decay

    @property
    def local_params(self) -> int:
        """Parameters of the products that give queries, gate and output."""
        return self.d_model * self.d_model + (2 if self.swish_gate else 1) * self.d_model * self.value_dim

    @property
    def other_params(self) -> int:
        """The weight of the head norm."""
        return self.value_head_dim if self.head_norm == "rms_affine" else 0

    def chunk_size(self, form: str, asked: int | None) -> int | None:
        """Return the chunk of the chunkwise form; that of fla's kernels is their own."""
        return FLA_CHUNK_SIZE if form == "fla" else asked or self.default_chunk_size

    def decode_workspace(self, dtype: str) -> int:
        """Return the values alive at once in a decode step."""
        d, values, wide = self.d_model, self.value_dim, WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        projected = 2 * d + (2 if self.swish_gate else 1) * values
        # Queries and keys times cosines, their partners, and the sum.
        rotation = (1 + 2 * wide) * 2 * d
        # Queries, keys, values and the read-out in the state's dtype, where that is a wider one.
        widened = 2 * wide * (d + values) if wide > 1 else 0
        # The read-out after its norm; what the gate makes of it.
        gating = 3 if self.swish_gate else 1 if self.head_norm == "none" else 2
        return projected + max(rotation, 2 * d + max(values + widened, gating * values))

    def prefill_workspace(self) -> int:
        """Return queries, keys, values and gate, twice."""
        return 2 * (2 * self.value_dim + 2 * self.d_model)

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again; the parallel form keeps the decays of all pairs beside the scores."""
        # Queries, keys and values as they enter, and the output.
        retained = 3 * self.d_model + 2 * self.value_dim
        scores = 2 if self.forms[form].quadratic else 0
        return KeptValues(7 * self.d_model + 4 * self.value_dim, retained, scores)

    def projection(self) -> Projection:
        """Return queries, keys, values and, where there is one, the gate."""
        values = [self.value_dim] * (2 if self.swish_gate else 1)
        heads = [self.num_heads, self.num_heads, *(None for _ in values)]
        return Projection("qkvg_proj", (self.d_model, self.d_model, *values), tuple(heads), self.value_dim)
