"""Causal softmax attention with rotary positions; grouped-query where there are fewer key heads (arXiv:2305.13245)."""

from retbench.mixers.attention.config import Attention

MIXER = Attention
