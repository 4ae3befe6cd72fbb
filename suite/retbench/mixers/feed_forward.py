"""Channel mixers: what a block does to the channels of its tokens, after its sequence mixer. Without torch."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from retbench.mixers.mixer import StateTensor
from retbench.strict import Strict

if TYPE_CHECKING:
    from torch import nn


class ChannelMixer(Strict):
    """A channel mixer with its width. A subclass is one kind of channel mixer, or several of one structure.

    One with a `state` reads earlier tokens too, and builds a `retbench.mixers.module.ChannelMixerModule`.
    """

    kind: str
    """Name of the kind, as configurations store it."""
    d_model: int = Field(ge=1)
    ffn_dim: int = Field(ge=1)

    published_init: ClassVar[bool] = False
    """True if training can start from projections as published; see `Mixer`."""

    @property
    def num_params(self) -> int:
        """Parameters that take part in a product with every token."""
        raise NotImplementedError

    @property
    def other_params(self) -> int:
        """Parameters outside of products."""
        return 0

    @property
    def last_product_params(self) -> int:
        """Parameters of the last product, which no gradient needs again."""
        return self.d_model * self.ffn_dim

    @property
    def activated_values(self) -> int:
        """Values for each token between the first product and the last, activations included."""
        raise NotImplementedError

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The tensors that it carries from token to token; none where it sees one token at a time."""
        return ()

    @property
    def modules(self) -> tuple[str, ...]:
        """Full names of the modules that hold it, for the identity of a model's code."""
        return (type(self).__module__,)

    def build(self) -> "nn.Module":
        """Build the torch module on torch's default device in its default dtype."""
        raise NotImplementedError


class FeedForward(ChannelMixer):
    """A feed-forward, which sees one token at a time.

    swiglu: (silu(x W_gate) * x W_up) W_down (arXiv:2002.05202). gelu: gelu(x W_up) W_down (GPT-2; arXiv:2307.08621,
    Sec. 2.3).
    """

    kind: Literal["swiglu", "gelu"] = "swiglu"

    @property
    def num_params(self) -> int:
        """Parameters; all of them take part in a product with every token."""
        return (3 if self.kind == "swiglu" else 2) * self.d_model * self.ffn_dim

    @property
    def activated_values(self) -> int:
        """Values for each token between the first product and the last, activations included."""
        return (4 if self.kind == "swiglu" else 2) * self.ffn_dim

    def build(self) -> "nn.Module":
        """Build the torch module on torch's default device in its default dtype."""
        from retbench.ops.layers import GeluFeedForward, SwigluFeedForward

        kind = SwigluFeedForward if self.kind == "swiglu" else GeluFeedForward
        return kind(self.d_model, self.ffn_dim)
