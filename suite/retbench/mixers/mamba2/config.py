"""Mamba-2: sizes, forms, state and costs."""

from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from retbench.mixers.linear_operator import LinearOperator
from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, Form, KeptValues, SizeFields, StateTensor
from retbench.ops import FLA_CHUNK_SIZE

MAMBA_CHUNK_SIZE = 256
"""Tokens per chunk of the chunk scan of mamba-ssm, as its layer calls it (`mamba_ssm/modules/mamba2.py`)."""
STATE_SIZE = 128
"""N of every published model."""
HEAD_WIDTH = 64
"""P of every published model, whose inner width is twice that of the model."""


class Mamba2(LinearOperator):
    """The layer of Mamba-2, which has no feed-forward (Dao and Gu, arXiv:2405.21060, Sec. 7.1).

        z, x, B, C, dt = in_proj(u)      x, B, C = silu(short convolution(x, B, C))      dt = softplus(dt + dt_bias)
        S_t = exp(-dt exp(A_log)) S_{t-1} + B_t^T dt x_t      y_t = C_t S_t + D x_t
        out_proj(RMSNorm(y * silu(z)))

    In the linear operator C are the queries and B the keys, of `num_groups` heads and `state_size` columns, and dt x
    are the values, of `num_heads` heads. The norm is over the channels of each group, after the gate.
    """

    mixer: Literal["mamba2"] = "mamba2"
    inner_dim: int = Field(ge=1)
    """Width of x and z: that of all value heads together."""
    state_size: int = Field(default=STATE_SIZE, ge=1)
    """N, the width of B and C of one group."""
    num_groups: int = Field(default=1, ge=1)
    """Heads of B and C, each of which serves num_heads / num_groups neighbouring heads of x."""
    conv_width: int = Field(default=4, ge=2)
    """Tokens that the short convolution sees, the own one included."""
    norm_eps: float = 1e-5

    title: ClassVar[str] = "Mamba-2"
    forms: ClassVar = {**LinearOperator.forms, "fla": Form("kernel"), "mamba_ssm": Form("kernel")}
    default_chunk_size: ClassVar[int | None] = 64
    published_init: ClassVar[bool] = True
    implementation: ClassVar[str] = "retbench.mixers.mamba2.module:Mamba2Module"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.inner_dim % self.num_heads:
            raise ValueError(f"inner_dim {self.inner_dim} must be a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_groups:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_groups {self.num_groups}")
        return self

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> Self:
        """Return the published layer at a size: an inner width of 2 d_model in heads of 64, and a state of 128.

        In models narrower than 512, which nobody published, the state is a quarter of the width: the projections to B
        and C would otherwise take most of the layer.
        """
        usual = {
            "d_model": size.d_model,
            "num_heads": max(1, 2 * size.d_model // HEAD_WIDTH),
            "inner_dim": 2 * size.d_model,
            "state_size": max(1, min(STATE_SIZE, size.d_model // 4)),
        }
        return cls.model_validate({**usual, **fields})

    @property
    def head_dim(self) -> int:
        """K, the width of B and C of one group."""
        return self.state_size

    @property
    def num_key_heads(self) -> int:
        """Heads of B and C."""
        return self.num_groups

    @property
    def value_head_dim(self) -> int:
        """V, the width of one head of x."""
        return self.inner_dim // self.num_heads

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution: x, B and C."""
        return self.inner_dim + 2 * self.num_groups * self.state_size

    @property
    def streamed_params(self) -> int:
        """Parameters of the products that give x, B, C and dt.

        C is among them, since the convolution of later tokens needs it.
        """
        return self.d_model * (self.conv_channels + self.num_heads)

    @property
    def local_params(self) -> int:
        """Parameters of the products that give z and the output."""
        return 2 * self.d_model * self.inner_dim

    @property
    def other_params(self) -> int:
        """The convolution with its bias, A_log, D and dt_bias of each head, and the weight of the norm."""
        return self.conv_channels * (self.conv_width + 1) + 3 * self.num_heads + self.inner_dim

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """S, (H, N, P), and the last inputs of the convolution, (W - 1, channels).

        S is not by value: compiled steps of 25M took 1.2 times as long, and of eight sequences in bfloat16 1.9 times.
        """
        values = replace(super().state[0], by_value=False)
        return values, StateTensor("convolution", (self.conv_width - 1, self.conv_channels))

    @property
    def _conv_flops(self) -> int:
        """Operations of the convolution of one token."""
        return 2 * self.conv_width * self.conv_channels

    def chunk_size(self, form: str, asked: int | None) -> int | None:
        """Return the chunk of the chunkwise form; those of the kernels are their own."""
        own = {"fla": FLA_CHUNK_SIZE, "mamba_ssm": MAMBA_CHUNK_SIZE}
        return own.get(form) or super().chunk_size(form, asked)

    def decode_flops(self, context_len: int) -> int:
        """Return the operations of one token: those of the operator, and the convolution."""
        return super().decode_flops(context_len) + self._conv_flops

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the operations of a form, and of the convolution."""
        return super().training_flops(context_len, form, chunk_size) + context_len * self._conv_flops

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the operations of one prompt; every token goes through the convolution."""
        operator = super().prefill_flops(context_len, form, chunk_size, last_only=last_only)
        return operator + context_len * self._conv_flops

    def decode_workspace(self, dtype: str) -> int:
        """Return the values alive at once in the convolution, which takes more than the operator.

        They are the projections, the inputs that the convolution sees, these times its weights, and their sum; in a
        16-bit dtype the inputs once more in float32, without the sum, which follows.
        """
        wide = WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        projected = self.inner_dim + self.conv_channels + self.num_heads
        inputs = self.conv_width * self.conv_channels
        return projected + (2 * inputs + self.conv_channels if wide == 1 else (1 + 2 * wide) * inputs)

    def prefill_workspace(self) -> int:
        """Return the projections, the convolution's inputs, sum and output, dt x, the read-out, and the result."""
        return 2 * self.inner_dim + 4 * self.conv_channels + 3 * self.inner_dim

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again; the parallel form keeps the decays of all pairs beside the scores."""
        narrow = self.d_model + 4 * self.inner_dim + 2 * self.conv_channels
        return KeptValues(narrow, 3 * self.inner_dim, 2 if self.forms[form].quadratic else 0)
