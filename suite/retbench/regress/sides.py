"""A side of a comparison: the newest comparable records of a file or folder, as values by place and round."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from retbench.errors import RecordError
from retbench.records.record import Record, Status
from retbench.regress.items import Place, Values
from retbench.report.frames import load_results, started
from retbench.report.points import lineup
from retbench.report.selection import select
from retbench.workloads.workload import find_workload

COMPARED = frozenset({"decode", "prefill", "training", "memory"})
"""Workloads that are compared by a cost, of which less is better."""
TIMED = COMPARED - {"memory"}
_EXPECTED: frozenset[Status] = frozenset({"oom", "unsupported"})
"""Outcomes that a machine has every time, and that no run can do without."""


@dataclass(frozen=True)
class Attempts:
    """What came of one place.

    Attributes:
        num_rounds: Rounds in which it was tried.
        failures: The record of each that gave no value, by round.
    """

    num_rounds: int
    failures: Mapping[int, Record]

    @property
    def has_value(self) -> bool:
        """Whether a round gave one."""
        return len(self.failures) < self.num_rounds

    @property
    def is_expected(self) -> bool:
        """Whether every round gave a value, or the machine has none to give."""
        if self.has_value:
            return not self.failures
        return all(record.status in _EXPECTED for record in self.failures.values())

    def __str__(self) -> str:
        last = self.failures[max(self.failures)]
        reason = f"{last.status} ({last.error or 'no reason was recorded'})"
        share = f"failed in {len(self.failures)} of {self.num_rounds} rounds: "
        return f"{share}{reason}" if self.has_value else reason


@dataclass(frozen=True)
class Side:
    """The records of one side.

    Attributes:
        name: Where they were read from.
        records: One a (cell, round), of the workloads that are compared.
        notes: A sentence for everything that was found there and is not among them.
    """

    name: str
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()

    @property
    def revisions(self) -> str:
        """The code that was measured."""
        found = {str(record.environment.get("code_revision", "unknown")) for record in self.records}
        return ", ".join(sorted(found))

    @property
    def reference(self) -> str | None:
        """The Transformer that other models are put in ratio to."""
        return lineup(self.records).reference

    @property
    def ratio_notes(self) -> list[str]:
        """A sentence on the other Transformers, where there are any: nothing is put in ratio to them."""
        known = {record.model.name for record in self.records if record.model.architecture == "transformer"}
        others = ", ".join(sorted(known - {self.reference}))
        return [f"ratios are to {self.reference}, and none is to {others}."] if others else []

    def attempts(self) -> dict[Place, Attempts]:
        """What came of every place that was tried."""
        tried: dict[Place, dict[int, Record]] = {}
        for record in self.records:
            tried.setdefault(place_of(record), {})[record.round] = record
        return {
            place: Attempts(
                len(rounds), {number: one for number, one in rounds.items() if one.status != "ok"}
            )
            for place, rounds in tried.items()
        }

    def values(self) -> dict[int, dict[Place, float]]:
        """The values of every round."""
        rounds: dict[int, dict[Place, float]] = {}
        for record in self.records:
            if record.status == "ok":
                rounds.setdefault(record.round, {})[place_of(record)] = value_of(record)
        return dict(sorted(rounds.items()))

    def places(self, *, measured: bool) -> set[Place]:
        """Places that have a value in some round, or those that have a record at all."""
        return {place_of(record) for record in self.records if record.status == "ok" or not measured}


def load_side(path: Path) -> Side:
    """The newest comparable records below a path.

    Raises:
        RecordError: there are none, or none that is compared by a cost.
    """
    results = load_results(path)
    compared = [record for record in results.records if record.workload in COMPARED]
    if not compared:
        found = ", ".join(sorted({record.workload for record in results.records}))
        raise RecordError(
            f"'{path}' holds records of {found} alone, and what is compared is the cost of "
            f"{', '.join(sorted(COMPARED))}. Measure first: `retbench run latency`."
        )
    chosen = select(compared)
    notes = [*results.problems, *chosen.left_out]
    if len(compared) < len(results.records):
        others = {record.workload for record in results.records} - COMPARED
        notes.append(f"not compared: records of {', '.join(sorted(others))}.")
    return Side(str(path), chosen.records, tuple(notes))


def place_of(record: Record) -> Place:
    """Where a record lies in its sweep."""
    point = record.point
    return Place(record.experiment, record.workload, record.model.name, point.batch_size, point.context_len)


def value_of(record: Record) -> float:
    """What a record is compared by.

    Raises:
        RecordError: it has no such metric, or one that is no cost.
    """
    name = find_workload(record.workload).primary.name
    metric = record.metrics.get(name)
    if metric is None or metric.value <= 0:
        found = "missing" if metric is None else str(metric.value)
        raise RecordError(
            f"{place_of(record)}, round {record.round} of run {record.run_id}: {name} is {found}, and a cost is "
            "positive. Measure it again."
        )
    return metric.value


def are_interleaved(first: Side, second: Side) -> bool:
    """Whether each round of both sides was measured before the next round of either: then rounds are pairs."""
    spans: dict[int, list[tuple[float, float]]] = {}
    for side in (first, second):
        for number, records in _by_round(side.records).items():
            moments = [started(record).timestamp() for record in records]
            spans.setdefault(number, []).append((min(moments), max(moments)))
    ordered = [both for _, both in sorted(spans.items())]
    if any(len(both) != 2 for both in ordered) or len(ordered) < 2:
        return False
    ends = [(min(start for start, _ in both), max(end for _, end in both)) for both in ordered]
    return all(earlier[1] < later[0] for earlier, later in pairwise(ends))


def _by_round(records: Iterable[Record]) -> dict[int, list[Record]]:
    """The records of each round."""
    rounds: dict[int, list[Record]] = {}
    for record in records:
        rounds.setdefault(record.round, []).append(record)
    return rounds


def typical(rounds: Sequence[Values]) -> dict[Place, float]:
    """A value of each place: that of the first round that has one."""
    found: dict[Place, float] = {}
    for values in rounds:
        for place, value in values.items():
            found.setdefault(place, value)
    return found


def middle(rounds: Sequence[Values], place: Place) -> float:
    """Geometric mean of a place's values."""
    logs = [math.log(values[place]) for values in rounds if place in values]
    return math.exp(math.fsum(logs) / len(logs))
