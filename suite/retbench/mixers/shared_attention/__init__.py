"""Causal softmax attention to the key-value cache of an earlier layer, as in YOCO's upper half (arXiv:2405.05254)."""

from retbench.mixers.shared_attention.config import SharedAttention

MIXER = SharedAttention
