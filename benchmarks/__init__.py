"""Benchmarks that need other projects; not part of the installed package."""
