"""What the runner is made of: the worker's process and protocol, locks, resuming, causes of death, events.

`retbench.runner` puts it together; `retbench.worker` is the other end of the pipe. Nothing here imports
torch.
"""
