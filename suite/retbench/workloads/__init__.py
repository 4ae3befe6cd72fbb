"""The workloads by name: each a module whose `measure` times or weighs one cell. None is imported here."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retbench.workloads.context import Context, Measurement

WORKLOADS: dict[str, str] = {
    "decode": "retbench.workloads.decode",
    "prefill": "retbench.workloads.prefill",
    "memory": "retbench.workloads.memory",
    "training": "retbench.workloads.training",
    "largest_batch": "retbench.workloads.largest_batch",
    "perplexity": "retbench.workloads.perplexity",
    "zeroshot": "retbench.workloads.zeroshot",
}

STREAMED: frozenset[str] = frozenset({"decode"})
"""Workloads whose cells start from a state that real text has left, where a model's state can be streamed."""

FINDS_BATCH: frozenset[str] = frozenset({"largest_batch"})
"""Workloads that find a batch size instead of being given one; the batch size of their points is 1.

They fill the memory to the brim, so each cell has a worker of its own; they count, so one round is enough.
"""

EVALUATES: frozenset[str] = frozenset({"perplexity", "zeroshot"})
"""Workloads that measure quality: what they give is the same each time, so one round is enough."""

ONE_ROUND = FINDS_BATCH | EVALUATES


def load_workload(name: str) -> "Callable[[Context], Measurement]":
    """The `measure` function of a workload; this imports torch."""
    measure: Callable[[Context], Measurement] = import_module(WORKLOADS[name]).measure
    return measure
