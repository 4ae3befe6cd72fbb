"""The workloads by name: each a module whose `measure` times or weighs one cell. None is imported here."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from retbench.errors import unknown_name

if TYPE_CHECKING:
    from retbench.workloads.context import Context, Measurement

WORKLOADS: dict[str, str] = {
    "decode": "retbench.workloads.decode",
    "prefill": "retbench.workloads.prefill",
    "memory": "retbench.workloads.memory",
    "training": "retbench.workloads.training",
}

STREAMED: frozenset[str] = frozenset({"decode"})
"""Workloads whose cells start from a state that real text has left, where a model's state can be streamed."""


def check_workload(name: str, *, where: str) -> None:
    """ConfigError with a suggestion when there is no workload called `name`."""
    if name not in WORKLOADS:
        raise unknown_name("workload", name, WORKLOADS, where=where)


def load_workload(name: str) -> "Callable[[Context], Measurement]":
    """The `measure` function of a workload; this imports torch."""
    measure: Callable[[Context], Measurement] = import_module(WORKLOADS[name]).measure
    return measure
