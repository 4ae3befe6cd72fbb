"""Sequence mixers, one folder each: `config.py` (sizes, forms, state, costs; no torch) and `module.py` (torch).

A folder's `MIXER` is its class of configurations, and its `CHANNEL_MIXER` that of a channel mixer, if it has one.
Nothing outside this package and `retbench.architectures` compares a mixer's name or type: everything else asks the
object (see `retbench.mixers.mixer.Mixer`).
"""
