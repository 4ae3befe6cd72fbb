"""Comparability keys and confounders: what two records must share, and what may explain a difference.

Comparability keys must be equal, or nothing is compared: the records would be of different things. Where confounders
differ, a time that has moved is inconclusive, because they may have moved it.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

from retbench.records.dates import recorded_start
from retbench.records.environment import computing_versions, conditions, excessive_load
from retbench.records.record import SAME_MEANING_SINCE, Record
from retbench.regress.items import MeasurementPoint
from retbench.regress.record_sets import RecordSet, point_of
from retbench.report.diagnostics import has_company, number_at, was_held_down
from retbench.report.provenance import flatten

CLOCK_TOLERANCE = 0.03
"""Mean clocks that differ by at most this share count as equal."""
SESSION = "measurement session"
"""The confounder of two sides that were not measured in turn."""

_FOUND_BY_TRIAL = frozenset({"ran.weight_product", "ran.weight_layout", "ran.decode"})
"""Facts that a run finds out by itself: the fastest methods to multiply and to attend."""
_COUNTS = frozenset(
    {"timed_steps", "timed_calls", "energy_steps", "compile_s", "compile_error", "cuda_graph_error"}
)
_STATISTIC = re.compile("kv_fill_[a-z0-9_]+_std")
"""Entries of `backend` that describe a run, like the counts, and select no backend: by the name of what is cached."""
_KEYS = ("machine", "cpu_model", "physical_cores", "text")
_GPU_KEYS = ("name", "memory_bytes", "capability", "mig_mode", "cudnn_attention")
_CONFOUNDERS = (
    "node_id",  # equal machines and equal GPUs differ
    "gpu_uuid",
    "os",
    "governor",
    "transparent_huge_pages",
    "keeps_freed_memory",
    "uses_huge_pages",
    "memory_bytes",
    "allowed_cpus",
)
_GPU_CONFOUNDERS = ("driver_version", "power_limit_w", "persistence_mode", "ecc_mode", "max_sm_clock_hz")


@dataclass(frozen=True)
class FactDifference:
    """A fact in which two sides differ; "–" where a side does not state it."""

    fact: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.fact}: {self.first} | {self.second}"


def comparability_keys(record: Record) -> dict[str, str]:
    """Return everything that must be equal, by dotted name."""
    environment = record.environment
    gpu = _mapping(environment.get("gpu"))
    tree: dict[str, Any] = {
        "schema": min(record.schema_version, SAME_MEANING_SINCE),
        "settings": record.settings,
        "ran": {
            key: value
            for key, value in record.backend.items()
            if key not in _COUNTS and not _STATISTIC.fullmatch(key)
        },
        "model": {"architecture": record.model.architecture, **record.model.config},
        "weights": record.model.weights.fingerprint if record.model.weights else "drawn from the seed",
        **{name: environment[name] for name in _KEYS if name in environment},
        "versions": computing_versions(environment),
        **conditions(environment),
        "gpu": {name: gpu[name] for name in _GPU_KEYS if name in gpu},
    }
    return {name: _text(value) for name, value in flatten(tree)}


def confounders(records: Sequence[Record]) -> dict[str, str]:
    """Return what may explain a difference, over all records of a side."""
    facts: dict[str, str] = {}
    trees = [dict(flatten(record.environment)) for record in records]
    for name in (*_CONFOUNDERS, *(f"gpu.{name}" for name in _GPU_CONFOUNDERS)):
        found = {_text(value) for tree in trees if (value := tree.get(name)) is not None}
        if found:
            facts[name] = ", ".join(sorted(found))
    facts["busy when a worker started"] = _any(records, lambda facts: excessive_load(facts) is not None)
    if any("gpu" in record.environment for record in records):
        facts["other processes on the GPU"] = _any(records, has_company)
        facts["clocks held down"] = _any(records, was_held_down)
    return facts


def sm_clock_hz(records: Sequence[Record]) -> float | None:
    """Return the median SM clock of a side's cells, measured during the steps or else after; None if unknown."""
    clocks = [_sm_clock_hz(record) for record in records]
    known = [clock for clock in clocks if clock is not None]
    return median(known) if known else None


def _sm_clock_hz(record: Record) -> float | None:
    """Return the SM clock of one record during its steps; after them where it was not sampled."""
    during = number_at(record.environment, "gpu_state", "during", "sm_clock_hz")
    return during or number_at(record.environment, "gpu_state", "after", "sm_clock_hz")


def compare_facts(first: Mapping[str, str], second: Mapping[str, str]) -> list[FactDifference]:
    """Return every fact in which two sides differ, by name."""
    return [
        FactDifference(name, first.get(name, "–"), second.get(name, "–"))
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]


def compare_clocks(first_hz: float | None, second_hz: float | None) -> list[FactDifference]:
    """Return the difference of two GPU clocks beyond the tolerance; none where a clock is not known."""
    if not first_hz or not second_hz or abs(second_hz / first_hz - 1) <= CLOCK_TOLERANCE:
        return []
    return [FactDifference("SM clock", *(f"{clock / 1e6:.0f} MHz" for clock in (first_hz, second_hz)))]


def key_differences(first: Sequence[Record], second: Sequence[Record]) -> list[FactDifference]:
    """Return the comparability keys that differ at a point that both sides have, each once."""
    groups: tuple[dict[MeasurementPoint, list[Record]], ...] = ({}, {})
    for records, group in zip((first, second), groups, strict=True):
        for record in records:
            group.setdefault(point_of(record), []).append(record)
    found: dict[FactDifference, None] = {}
    for point in sorted(groups[0].keys() & groups[1].keys()):
        sides = [group[point] for group in groups]
        both_ok = all(any(record.status == "ok" for record in side) for side in sides)
        one, other = (_distinct_keys(side, only_ok=both_ok) for side in sides)
        alone = [facts for facts in one if facts not in other], [facts for facts in other if facts not in one]
        if any(alone):
            for mine, theirs in product(alone[0] or one, alone[1] or other):
                found |= dict.fromkeys(compare_facts(mine, theirs))
    return sorted(found, key=lambda difference: difference.fact)


def _distinct_keys(records: Sequence[Record], *, only_ok: bool) -> list[dict[str, str]]:
    """Return the distinct comparability keys of a point's rounds.

    Unless `only_ok`, the keys lack the executed backend, which a failed round cannot state.
    """
    found: list[dict[str, str]] = []
    for record in records:
        keys = comparability_keys(record)
        if not only_ok:
            keys = {name: text for name, text in keys.items() if not name.startswith("ran.")}
        if (record.status == "ok" or not only_ok) and keys not in found:
            found.append(keys)
    return found


def trial_notes(differences: Iterable[FactDifference]) -> tuple[str, ...]:
    """Return what to do about differences between methods that each run into another folder tries anew."""
    if not any(one.fact in _FOUND_BY_TRIAL for one in differences):
        return ()
    return (
        "runs into different folders try anew which methods multiply and attend fastest. Measure both sides into one "
        "--out, the second with --fresh, and compare their two files; or ask for one method (backend).",
    )


def confounder_differences(first: RecordSet, second: RecordSet, *, interleaved: bool) -> list[FactDifference]:
    """Return the confounders that differ, the measurement session included unless the sides are interleaved."""
    found = compare_facts(confounders(first.records), confounders(second.records))
    found += compare_clocks(sm_clock_hz(first.records), sm_clock_hz(second.records))
    if not interleaved:
        found.append(FactDifference(SESSION, *(_first_start(side.records) for side in (first, second))))
    return found


def _first_start(records: Sequence[Record]) -> str:
    """Return when the first of some records began; what is recorded if none of them has a time."""
    moments = [moment for record in records if (moment := recorded_start(record))]
    return f"{min(moments):%Y-%m-%d %H:%M:%S}" if moments else min(record.started_at for record in records)


def _any(records: Sequence[Record], holds: Callable[[Mapping[str, Any]], bool]) -> str:
    return "yes" if any(holds(record.environment) for record in records) else "no"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
