"""Short causal convolutions with a gate, the local layers of Based (arXiv:2402.18668)."""

from retbench.mixers.gated_convolution.config import GatedConvolution

MIXER = GatedConvolution
