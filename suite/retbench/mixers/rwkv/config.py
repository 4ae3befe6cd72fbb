"""RWKV-5 and RWKV-6: sizes, forms, state and costs of the time mix and of the channel mix."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from retbench.mixers.feed_forward import ChannelMixer
from retbench.mixers.linear_operator import ChannelDecayOperator
from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, Form, KeptValues, SizeFields, StateTensor
from retbench.ops import FLA_CHUNK_SIZE

if TYPE_CHECKING:
    from torch import nn

HEAD_WIDTH = 64
"""Width of a head in every published model."""
_IMPLEMENTATION = "retbench.mixers.rwkv.module"
"""Module of the torch modules, imported when a model is built."""


class RwkvTimeMix(ChannelDecayOperator):
    """The time mix of RWKV-6, and of RWKV-5 if both ranks are 0 (Peng et al., arXiv:2404.05892, Sec. 4).

        x_j = x + (x_previous - x) * (mix_j + tanh((x + (x_previous - x) * mix_x) A_j) B_j)      j = w, k, v, r, g
        r, k, v, g = x_r W_r, x_k W_k, x_v W_v, x_g W_g      decay = exp(-exp(w + tanh(x_w C) D))
        o_t = r_t (S_{t-1} + diag(u) k_t^T v_t)      S_t = diag(decay_t) S_{t-1} + k_t^T v_t
        out = (silu(g) * GroupNorm(o)) W_o

    x_previous is the input of the token before. Nothing is scaled by the width of a head.
    """

    mixer: Literal["rwkv"] = "rwkv"
    mix_rank: int = Field(default=32, ge=0)
    """Rank of A_j B_j. 0: the weights of the interpolation are fixed, as in RWKV-5."""
    decay_rank: int = Field(default=64, ge=0)
    """Rank of C D. 0: the decay is fixed, as in RWKV-5."""
    norm_eps: float = 64e-5
    """Epsilon of the head norm. The published code adds 1e-5 after dividing the input by 8, which is the same."""

    title: ClassVar[str] = "RWKV time mix"
    forms: ClassVar = {**ChannelDecayOperator.forms, "fla": Form("kernel"), "fla_recurrent": Form("kernel")}
    published_init: ClassVar[bool] = True
    implementation: ClassVar[str] = f"{_IMPLEMENTATION}:RwkvTimeMixModule"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} must be a multiple of {self.num_heads} heads")
        return self

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> Self:
        """Return the published layer at a size: heads of 64 channels, and ranks of 32 and 64, or twice that from 4096.

        In models narrower than 512, which nobody published, the ranks shrink with the width: they would otherwise take
        most of the layer. A width that is no multiple of 64 has the size's attention heads.
        """
        d = size.d_model
        rank = 64 if d >= 4096 else max(1, min(32, d // 16))
        heads = size.attention_heads if d % HEAD_WIDTH else d // HEAD_WIDTH
        usual = {"d_model": d, "num_heads": heads, "mix_rank": rank, "decay_rank": 2 * rank}
        return cls.model_validate({**usual, **fields})

    @property
    def num_streamed_inputs(self) -> int:
        """Inputs x_j that later tokens need: those of keys and values and, if it depends on the data, of the decay."""
        return 3 if self.decay_rank else 2

    @property
    def num_inputs(self) -> int:
        """Inputs x_j."""
        return self.num_streamed_inputs + 2

    @property
    def streamed_params(self) -> int:
        """Parameters of the products that give keys, values and decays, and of the interpolation of their inputs."""
        interpolation = 2 * self.num_streamed_inputs * self.mix_rank * self.d_model
        return 2 * self.d_model**2 + 2 * self.decay_rank * self.d_model + interpolation

    @property
    def local_params(self) -> int:
        """Parameters of the products that give r, the gate and the output, and of the interpolation of their inputs."""
        return 3 * self.d_model**2 + 2 * 2 * self.mix_rank * self.d_model

    @property
    def other_params(self) -> int:
        """Vectors of the interpolation, w, u, and weight and bias of the head norm."""
        return (self.num_inputs + (1 if self.mix_rank else 0) + 4) * self.d_model

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """S, (H, K, V), and the last input."""
        return (*super().state, StateTensor("time_shift", (1, self.d_model)))

    def chunk_size(self, form: str, asked: int | None) -> int | None:
        """Return the chunk of the chunkwise form; that of fla's chunkwise kernels is their own."""
        return FLA_CHUNK_SIZE if form == "fla" else super().chunk_size(form, asked)

    def decode_flops(self, context_len: int) -> int:
        """Return the operations of one token: those of the operator, and the read-out of its value by the bonus."""
        return super().decode_flops(context_len) + 5 * self.d_model

    def decode_workspace(self, dtype: str) -> int:
        """Return the values alive at once: in the interpolation, in the products, or in the step of the operator."""
        d, inputs, wide = self.d_model, self.num_inputs, WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        decays = 1 if self.decay_rank else 0  # a fixed decay is the same for all sequences
        # The difference from the token before, weights and results.
        interpolating = (2 * inputs + 1) * d if self.mix_rank else 0
        # The difference and the inputs; r, k, v and the gate before and after its activation; the decay.
        projecting = (inputs + 6 + wide * decays) * d
        # r, k, v and the gate; both forms of the decay, the read-out and the bonus; r, k and v widened.
        stepping = (4 + wide * (2 * decays + 3) + (3 * wide if wide > 1 else 0)) * d
        return max(interpolating, projecting, stepping)

    def prefill_workspace(self) -> int:
        """Return the weights of the interpolation, its inputs, and twice what the products give."""
        return (2 * self.num_inputs + 2 * 5) * self.d_model

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again; a chunk keeps its keys and queries once per halving of its tokens."""
        halvings = 6  # log2 of the usual chunk of 64 tokens
        narrow = (2 * self.num_inputs + 10) * self.d_model
        wide = (2 * halvings + 8) * self.d_model
        return KeptValues(narrow, wide, 1 if self.forms[form].quadratic else 0)


class RwkvChannelMix(ChannelMixer):
    """The channel mix of RWKV-5 and RWKV-6 (Peng et al., arXiv:2404.05892, Sec. 4).

    x_j = x + (x_previous - x) * mix_j      j = k, r
    out = sigmoid(x_r W_r) * (relu(x_k W_k)^2 W_v)
    """

    kind: Literal["rwkv"] = "rwkv"

    published_init: ClassVar[bool] = True

    @property
    def num_params(self) -> int:
        """Parameters of W_k, W_v and W_r."""
        return 2 * self.d_model * self.ffn_dim + self.d_model**2

    @property
    def other_params(self) -> int:
        """Vectors of the interpolation."""
        return 2 * self.d_model

    @property
    def last_product_params(self) -> int:
        """Parameters of the last product, that of W_v; its result is multiplied, so the gradients need it again."""
        return 0

    @property
    def activated_values(self) -> int:
        """Values for each token between the first product and the last, activations included."""
        return 2 * self.ffn_dim + 2 * self.d_model

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The last input."""
        return (StateTensor("channel_shift", (1, self.d_model)),)

    @property
    def modules(self) -> tuple[str, ...]:
        """Full names of the modules that hold it."""
        return (*super().modules, _IMPLEMENTATION)

    def build(self) -> "nn.Module":
        """Build the torch module on torch's default device in its default dtype."""
        module: nn.Module = import_module(_IMPLEMENTATION).RwkvChannelMixModule(self)
        return module
