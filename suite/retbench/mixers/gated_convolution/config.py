"""Gated convolution: sizes, form, state and costs."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from retbench.mixers.mixer import DTYPE_BYTES, WIDE_BYTES, Form, KeptValues, Mixer, SizeFields, StateTensor


class GatedConvolution(Mixer):
    """A short causal convolution of each channel with a gate: (silu(conv(x W_1)) * x W_2) W_3.

    Source: arXiv:2402.18668; `BaseConv` in `based/models/mixers/base_conv.py` of HazyResearch/based, here without the
    biases of its products. There are no heads and no positions.
    """

    mixer: Literal["gated_convolution"] = "gated_convolution"
    num_heads: int = Field(default=1, ge=1, le=1)
    inner_width: int = Field(ge=1)
    """Channels of the convolution."""
    kernel_size: int = Field(default=3, ge=2)
    """Tokens that a channel sums, the own one included."""

    title: ClassVar[str] = "gated convolution"
    forms: ClassVar = {"convolution": Form("parallel"), "recurrent": Form("recurrent")}
    default_form: ClassVar[str] = "convolution"
    implementation: ClassVar[str] = "retbench.mixers.gated_convolution.module:GatedConvolutionModule"

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> Self:
        """Return the layer of Based at a size: twice as many channels as the model is wide (`expand_proj` 4)."""
        return cls.model_validate({"d_model": size.d_model, "inner_width": 2 * size.d_model, **fields})

    @property
    def streamed_params(self) -> int:
        """Parameters of the product that gives what is convolved."""
        return self.d_model * self.inner_width

    @property
    def local_params(self) -> int:
        """Parameters of the products that give gate and output."""
        return 2 * self.d_model * self.inner_width

    @property
    def other_params(self) -> int:
        """The weights of the convolution."""
        return self.inner_width * self.kernel_size

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The last inputs of the convolution, the oldest first."""
        return (StateTensor("inputs", (self.kernel_size - 1, self.inner_width)),)

    def decode_flops(self, context_len: int) -> int:
        """Return the operations of the convolution at one token."""
        return 2 * self.inner_width * self.kernel_size

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the operations of the convolution."""
        return context_len * self.decode_flops(0)

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the operations of the convolution, at the last token alone with `last_only`."""
        return (1 if last_only else context_len) * self.decode_flops(0)

    def decode_workspace(self, dtype: str) -> int:
        """Return the products, the inputs of the convolution, and what is summed."""
        width, wide = self.inner_width, WIDE_BYTES[dtype] // DTYPE_BYTES[dtype]
        inputs = self.kernel_size * width
        # The inputs times the weights, and the inputs themselves in the wide dtype or the sum.
        return 2 * width + inputs + wide * (inputs + (inputs if wide > 1 else width))

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what the operators need again."""
        return KeptValues(self.d_model + 4 * self.inner_width, 2 * self.inner_width)
