"""Regression checks: machine-independent quantities, interleaved measurement of two revisions, and baselines."""
