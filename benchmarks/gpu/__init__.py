"""Measurements on a new GPU before the experiments: its facts, the layout of weights, the kernels of a step."""
