"""What two records must share before a difference of their times means anything, and what may explain one.

Hard facts say that two times are of the same thing: where they differ, nothing is compared. Soft facts say that they
were taken alike: where they differ, a time that has moved is inconclusive, for it may be they that moved it.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from retbench.records.record import Record
from retbench.records.versions import computing_versions
from retbench.report.diagnostics import excessive_load, has_company, number_at, was_held_down
from retbench.report.provenance import flatten

CLOCK_TOLERANCE = 0.03
"""Mean clocks that differ by no more than this share are the same."""

_COUNTED_WHILE_RUNNING = frozenset(
    {
        "timed_steps",
        "timed_calls",
        "energy_steps",
        "compile_s",
        "compile_error",
        "kv_fill_key_std",
        "kv_fill_value_std",
    }
)
"""What a record says of its run under `backend`, and no choice of what runs."""
_HARD_ENVIRONMENT = (
    "machine",
    "cpu_model",
    "physical_cores",
    "cpu_quota",
    "flush_denormal",
    "text",
    "torch_build",
)
_WHERE = frozenset({"OMP_PLACES", "CUDA_VISIBLE_DEVICES"})
"""Variables that say which of several like cores or GPUs were taken, which a scheduler does anew for each job."""
_HARD_GPU = ("name", "memory_bytes", "capability", "mig_mode", "cudnn_attention")
_SOFT_ENVIRONMENT = ("os", "governor", "transparent_huge_pages", "memory_bytes", "allowed_cpus")
_SOFT_GPU = ("driver_version", "power_limit_w", "persistence_mode", "ecc_mode", "max_sm_clock_hz")


@dataclass(frozen=True)
class Difference:
    """A fact in which two sides differ; "–" where a side does not state it."""

    fact: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.fact}: {self.first} | {self.second}"


def hard_facts(record: Record) -> dict[str, str]:
    """Everything that must be the same, by dotted name."""
    environment = record.environment
    tree: dict[str, Any] = {
        "schema": record.schema_version,
        "settings": record.settings,
        "ran": {name: value for name, value in record.backend.items() if name not in _COUNTED_WHILE_RUNNING},
        "model": {"architecture": record.model.architecture, **record.model.config},
        "weights": record.model.weights.fingerprint if record.model.weights else "drawn from the seed",
        **{name: environment[name] for name in _HARD_ENVIRONMENT if name in environment},
        "versions": computing_versions(environment),
        "variables": {
            name: value
            for name, value in _mapping(environment.get("variables")).items()
            if name not in _WHERE
        },
        "gpu": _chosen(environment.get("gpu"), _HARD_GPU),
    }
    return {name: _text(value) for name, value in flatten(tree)}


def soft_facts(records: Sequence[Record]) -> dict[str, str]:
    """What may explain a difference, of all records of a side together."""
    facts: dict[str, str] = {}
    for name in (*_SOFT_ENVIRONMENT, *(f"gpu.{name}" for name in _SOFT_GPU)):
        seen = {_text(value) for record in records if (value := _at(record.environment, name)) is not None}
        if seen:
            facts[name] = ", ".join(sorted(seen))
    facts["busy when a worker started"] = _any(records, lambda facts: excessive_load(facts) is not None)
    if any("gpu" in record.environment for record in records):
        facts["other processes on the GPU"] = _any(records, has_company)
        facts["clocks held down"] = _any(records, was_held_down)
    return facts


def compare_facts(first: Mapping[str, str], second: Mapping[str, str]) -> list[Difference]:
    """Every fact in which two sides differ, by name."""
    return [
        Difference(name, first.get(name, "–"), second.get(name, "–"))
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]


def compare_clocks(first_hz: float | None, second_hz: float | None) -> list[Difference]:
    """The GPU's clocks on two sides where they are further apart than what is the same; none where one is not known."""
    if not first_hz or not second_hz or abs(second_hz / first_hz - 1) <= CLOCK_TOLERANCE:
        return []
    return [Difference("SM clock", *(f"{clock / 1e6:.0f} MHz" for clock in (first_hz, second_hz)))]


def sm_clock_hz(records: Sequence[Record]) -> float | None:
    """Median SM clock after the cells of a side; None where it is not known."""
    clocks = [number_at(record.environment, "gpu_state", "after", "sm_clock_hz") for record in records]
    known = [clock for clock in clocks if clock is not None]
    return median(known) if known else None


def _any(records: Sequence[Record], holds: Callable[[Mapping[str, Any]], bool]) -> str:
    """Whether something holds of any of the records."""
    return "yes" if any(holds(record.environment) for record in records) else "no"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _chosen(value: object, names: Iterable[str]) -> dict[str, Any]:
    """Some entries of what may be a mapping."""
    mapping = _mapping(value)
    return {name: mapping[name] for name in names if name in mapping}


def _at(tree: Mapping[str, Any], name: str) -> object:
    """The value at a dotted name; None where there is none."""
    value: object = tree
    for part in name.split("."):
        value = _mapping(value).get(part)
    return value


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
