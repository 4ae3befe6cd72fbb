"""Multi-scale retention with fixed or data-dependent decays (arXiv:2307.08621; arXiv:2405.05254, Sec. 3.3)."""

from retbench.mixers.retention.config import Retention

MIXER = Retention
