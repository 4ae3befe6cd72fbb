"""Figures: which are drawn from which records, each kind in its module, and what they share."""
