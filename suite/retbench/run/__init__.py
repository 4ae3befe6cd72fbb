"""Runs: the runner, its worker processes and their protocol, locks, resuming, events.

`retbench.run.runner` is the entry point; `retbench.run.worker` is the process that measures. Only the worker's
tasks import torch.
"""
