"""Multi-head latent attention: a cache of one compressed vector per token (DeepSeek-V2, arXiv:2405.04434)."""

from retbench.mixers.latent_attention.config import LatentAttention

MIXER = LatentAttention
