"""Sliding-window attention with sinks: a cache of fixed size, a ring buffer (arXiv:2004.05150; arXiv:2309.17453)."""

from retbench.mixers.window_attention.config import WindowAttention

MIXER = WindowAttention
