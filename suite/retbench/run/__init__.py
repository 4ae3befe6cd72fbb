"""What the runner is made of: the worker's process and protocol, locks, resuming, causes of death, events.

`retbench.run.runner` puts it together; `retbench.run.worker` is the other end of the pipe. Nothing here imports
torch.
"""
