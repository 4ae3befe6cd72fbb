"""Linear attention: a feature map instead of the softmax, so that the state has a fixed size (arXiv:2006.16236)."""

from retbench.mixers.linear_attention.config import LinearAttention

MIXER = LinearAttention
