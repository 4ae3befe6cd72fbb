"""Workloads: one file per workload, and what they share. See `workload` for the objects that describe them."""
