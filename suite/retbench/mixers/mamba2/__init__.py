"""Mamba-2: a state space model with one data-dependent decay per head (arXiv:2405.21060)."""

from retbench.mixers.mamba2.config import Mamba2

MIXER = Mamba2
