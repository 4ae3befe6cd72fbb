"""Gated linear attention: a data-dependent decay per channel of the keys (arXiv:2312.06635)."""

from retbench.mixers.gated_linear_attention.config import GatedLinearAttention

MIXER = GatedLinearAttention
