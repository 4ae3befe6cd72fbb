"""For commands that measure the machine in their own process: run as a worker would, while no run is timing."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from retbench.measure import environment, machine
from retbench.run.locks import timing_lock

WAIT_S = 1.0
"""Between two looks at the lock of another run."""


def become_worker() -> int:
    """Bind and pin this process as a worker's is, on every core that it may use; how many threads it has then."""
    threads = machine.usable_cores()
    os.environ.update(environment.worker_environment(threads))  # before torch, and OpenMP with it, is loaded
    environment.pin_process(threads)
    return threads


@contextmanager
def alone_on_machine(command: str) -> Iterator[None]:
    """Hold the lock of timing runs, and wait for it with a word on stderr."""

    def wait(holder: str) -> None:
        typer.echo(f"waiting: another run is timing on this machine ({holder})", err=True)
        time.sleep(WAIT_S)

    with timing_lock(command, wait=wait):
        yield
