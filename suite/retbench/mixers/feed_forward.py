"""Feed-forwards: what a block does to each token by itself, after its mixer. Without torch."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from retbench.strict import Strict

if TYPE_CHECKING:
    from torch import nn


class FeedForward(Strict):
    """A feed-forward with its width.

    swiglu: (silu(x W_gate) * x W_up) W_down (arXiv:2002.05202). gelu: gelu(x W_up) W_down (GPT-2; arXiv:2307.08621,
    Sec. 2.3).
    """

    kind: Literal["swiglu", "gelu"] = "swiglu"
    d_model: int = Field(ge=1)
    ffn_dim: int = Field(ge=1)

    @property
    def num_params(self) -> int:
        """Parameters; all of them take part in a product with every token."""
        return (3 if self.kind == "swiglu" else 2) * self.d_model * self.ffn_dim

    @property
    def last_product_params(self) -> int:
        """Parameters of the last product, which no gradient needs again."""
        return self.d_model * self.ffn_dim

    @property
    def activated_values(self) -> int:
        """Values for each token between the first product and the last, activations included."""
        return (4 if self.kind == "swiglu" else 2) * self.ffn_dim

    def build(self) -> "nn.Module":
        """Build the torch module on torch's default device in its default dtype."""
        from retbench.ops.layers import GeluFeedForward, SwigluFeedForward

        kind = SwigluFeedForward if self.kind == "swiglu" else GeluFeedForward
        return kind(self.d_model, self.ffn_dim)
