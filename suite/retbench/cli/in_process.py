"""Shared by the commands that build or measure a model in their own process instead of a worker."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import typer

from retbench.architectures import costs
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.errors import UnsupportedError, unknown_name
from retbench.measure import environment
from retbench.measure.devices import default_threads
from retbench.measure.limits import is_out_of_memory
from retbench.measure.machine import BUSY_RATIO
from retbench.running.locks import timing_lock
from retbench.units import format_bytes, format_percent

LOCK_POLL_S = 1.0


def find_named_model(name: str) -> ModelSpec:
    """Return a model by its name; ConfigError for an unknown one."""
    models = named_specs()
    if name not in models:
        raise unknown_name("model", name, models)
    return models[name]


def backends_of(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of the forms of a model."""
    return tuple(resolve_model(spec, "1m").forms)


def warn_if_busy(busy: float, consequence: str) -> None:
    """Print a warning on stderr if other processes keep the machine busy.

    Args:
        busy: The share of the processors that they use.
        consequence: The fault of what is measured now, as a clause.
    """
    if busy > BUSY_RATIO:
        typer.echo(f"retbench: {describe_busy(busy)}. {consequence}; end those processes first.", err=True)


def describe_busy(busy: float) -> str:
    """Return which share of the processors other processes use, as a clause."""
    return f"other processes use {format_percent(busy)} of the processors"


def describe_waiting(holder: str) -> str:
    """Return that a command waits for the one that holds a lock."""
    return f"waiting: another run is timing on this machine ({holder})"


def become_worker(device: str) -> int:
    """Give this process the threads of a worker on `device`, and its GPU or cores; return the number of threads."""
    threads = default_threads(device)
    environment.become_worker(threads, device)
    environment.use_device(device)
    return threads


@contextmanager
def alone_on_machine(command: str, device: str) -> Iterator[None]:
    """Hold the locks of a device, and wait for them with a message on stderr."""

    def wait(holder: str) -> None:
        typer.echo(describe_waiting(holder), err=True)
        time.sleep(LOCK_POLL_S)

    with timing_lock(command, device, wait=wait):
        yield


@contextmanager
def within_memory(named: str, config: ModelConfig, dtype: str, device: str, advice: str) -> Iterator[None]:
    """Raise UnsupportedError if a model does not fit in memory, before it is built or while the block runs.

    On a CPU the weights are compared with the free memory first: the kernel would end some process otherwise.

    Args:
        named: The model, as the message names it.
        config: The model.
        dtype: Dtype of its weights.
        device: Device that it is built on.
        advice: Remedy, as a sentence.
    """
    needed, free = costs.weight_bytes(config, dtype), psutil.virtual_memory().available
    if device == "cpu" and needed > free:
        raise UnsupportedError(
            f"{named} has {format_bytes(needed)} of weights, and {format_bytes(free)} of memory are free. {advice}"
        )
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UnsupportedError(f"{named} does not fit in the memory of {device}. {advice}") from error
