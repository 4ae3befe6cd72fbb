"""Runs: the runner, its worker processes and their protocol, locks, resuming, events.

`retbench.running.runner` is the entry point; `retbench.running.worker` is the process that measures. Only the worker's
tasks import torch.
"""
