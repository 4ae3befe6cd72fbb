"""Time mix and channel mix of RWKV-5 and RWKV-6 (arXiv:2404.05892)."""

from retbench.mixers.rwkv.config import RwkvChannelMix, RwkvTimeMix

MIXER = RwkvTimeMix
CHANNEL_MIXER = RwkvChannelMix
