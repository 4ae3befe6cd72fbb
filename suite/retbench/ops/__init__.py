"""Tensor operators: retention, attention, rotary positions, decays."""
