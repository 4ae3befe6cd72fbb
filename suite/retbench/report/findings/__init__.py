"""Sentences computed from records, and the answer of a report."""
