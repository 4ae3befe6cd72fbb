"""Record sets: the newest comparable records of a file or folder, as values by point and round."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from retbench.architectures.registry import is_baseline
from retbench.errors import RecordError
from retbench.records.dates import started
from retbench.records.record import Record, Status
from retbench.regress.items import MeasurementPoint, is_compared
from retbench.report.results import load_results
from retbench.report.selection import select
from retbench.workloads.workload import WORKLOADS, find_workload

_EXPECTED: frozenset[Status] = frozenset({"oom", "unsupported"})
"""Outcomes that a machine has in every run."""


@dataclass(frozen=True)
class PointAttempts:
    """The outcome of one point: the number of tried rounds, and the record of each round without a value."""

    num_rounds: int
    failures: Mapping[int, Record]

    @property
    def has_value(self) -> bool:
        """True if some round gave a value."""
        return len(self.failures) < self.num_rounds

    @property
    def is_expected(self) -> bool:
        """True if every round gave a value, or the machine cannot give any."""
        if self.has_value:
            return not self.failures
        return all(record.status in _EXPECTED for record in self.failures.values())

    def __str__(self) -> str:
        last = self.failures[max(self.failures)]
        reason = f"{last.status} ({last.error or 'no reason was recorded'})"
        share = f"failed in {len(self.failures)} of {self.num_rounds} rounds: "
        return f"{share}{reason}" if self.has_value else reason


@dataclass(frozen=True)
class RecordSet:
    """The records of one side, one per (cell, round) of the compared workloads, with notes on what was left out."""

    name: str
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()

    @property
    def revisions(self) -> str:
        """The measured code revisions."""
        found = {str(record.environment.get("code_revision", "unknown")) for record in self.records}
        return ", ".join(sorted(found))

    @property
    def _baselines(self) -> list[str]:
        return sorted(
            {one.name for one in (record.model for record in self.records) if is_baseline(one.architecture)}
        )

    @property
    def reference(self) -> str | None:
        """The baseline model that the others are divided by."""
        return next(iter(self._baselines), None)

    @property
    def ratio_notes(self) -> list[str]:
        """A sentence on further baseline models, to which no ratios are formed."""
        reference, *others = self._baselines or [""]
        return [f"ratios are to {reference}, and none is to {', '.join(others)}."] if others else []

    def attempts(self) -> dict[MeasurementPoint, PointAttempts]:
        """Return the outcome of every point that was tried."""
        tried: dict[MeasurementPoint, dict[int, Record]] = {}
        for record in self.records:
            tried.setdefault(point_of(record), {})[record.round] = record
        return {
            point: PointAttempts(
                len(rounds), {number: one for number, one in rounds.items() if one.status != "ok"}
            )
            for point, rounds in tried.items()
        }

    def values(self) -> dict[int, dict[MeasurementPoint, float]]:
        """Return the values of every round."""
        rounds: dict[int, dict[MeasurementPoint, float]] = {}
        for record in self.records:
            if record.status == "ok":
                rounds.setdefault(record.round, {})[point_of(record)] = value_of(record)
        return dict(sorted(rounds.items()))


def load_record_set(path: Path) -> RecordSet:
    """Load the newest comparable records below a path.

    Raises:
        RecordError: there are none, or none of a workload that is compared.
    """
    results = load_results(path)
    compared = [record for record in results.records if is_compared(record.workload)]
    others = sorted({record.workload for record in results.records if not is_compared(record.workload)})
    if not compared:
        raise RecordError(
            f"'{path}' holds only records of {', '.join(others)}, and the compared costs are those of "
            f"{', '.join(sorted(filter(is_compared, WORKLOADS)))}. Measure first: `retbench run latency`."
        )
    chosen = select(compared)
    notes = [*results.problems, *chosen.left_out]
    if others:
        notes.append(f"not compared: records of {', '.join(others)}.")
    return RecordSet(str(path), chosen.records, tuple(notes))


def point_of(record: Record) -> MeasurementPoint:
    """Return the point that a record measured."""
    point = record.point
    return MeasurementPoint(
        record.experiment, record.workload, record.model.name, point.batch_size, point.context_len
    )


def value_of(record: Record) -> float:
    """Return the primary metric of a record."""
    name = find_workload(record.workload).primary.name
    metric = record.metrics.get(name)
    if metric is None or metric.value <= 0:
        found = "missing" if metric is None else str(metric.value)
        raise RecordError(
            f"{point_of(record)}, round {record.round} of run {record.run_id}: {name} is {found}, and a cost is "
            "positive. Measure it again."
        )
    return metric.value


def are_interleaved(first: RecordSet, second: RecordSet) -> bool:
    """Return whether each round of both sides was measured before the next of either, so that rounds are pairs."""
    starts: dict[int, list[datetime]] = {}
    for record in (*first.records, *second.records):
        starts.setdefault(record.round, []).append(started(record))
    numbers = [{record.round for record in side.records} for side in (first, second)]
    ordered = [found for _, found in sorted(starts.items())]
    is_ordered = all(max(earlier) < min(later) for earlier, later in pairwise(ordered))
    return numbers[0] == numbers[1] and len(ordered) > 1 and is_ordered
