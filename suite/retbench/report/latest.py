"""The record that counts of several of the same cell and round: the latest, and of costs those of one node and GPU."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from retbench.records.dates import started
from retbench.records.record import Record
from retbench.report.results import ComparableSet, hardware_of, set_of
from retbench.workloads.workload import measures_cost


def keep_latest(records: Iterable[Record]) -> list[Record]:
    """Return one record per (set, experiment, cell, round): the latest with a result, else the latest failure.

    Results are values and failed equivalence checks: a model whose forms disagree has no times that count.

    Of one run the record that was written last is the latest, whatever its clock said. Of several runs it is that of
    the run which was started last. The models of a point have the rounds of one node and GPU, of that with the most
    measured rounds and of such ones of the latest; a model that was not measured there has those of another.
    """
    records = on_one_node(records)
    begun: dict[str, datetime] = {}
    for record in records:
        start = started(record)
        begun[record.run_id] = max(start, begun.get(record.run_id, start))
    kept: dict[tuple[ComparableSet, str, str, int], Record] = {}
    for record in records:
        key = (set_of(record), record.experiment, record.cell_id, record.round)
        other = kept.get(key)
        if other is None or _rank(record, begun) >= _rank(other, begun):
            kept[key] = record
    return list(kept.values())


def on_one_node(records: Iterable[Record]) -> list[Record]:
    """Return the costs of each cell that are of one node and GPU, which the models of a point share if they can.

    Quality does not depend on the node: its records are all returned.
    """
    records = list(records)
    points = [_compared_at(record) if measures_cost(record) else None for record in records]
    places = list(zip(points, map(hardware_of, records), strict=True))
    if len(set(places)) == len(set(points)):
        return records
    measured: dict[tuple[object, ...], set[tuple[str, int]]] = {}
    latest: dict[tuple[object, ...], datetime] = {}
    for record, place in zip(records, places, strict=True):
        start = started(record)
        latest[place] = max(start, latest.get(place, start))
        found = measured.setdefault(place, set())
        if record.status == "ok":
            found.add((record.cell_id, record.round))
    chosen: dict[tuple[object, str], tuple[int, datetime, tuple[str, str]]] = {}
    for record, (point, hardware) in zip(records, places, strict=True):
        rank = (len(measured[point, hardware]), latest[point, hardware], hardware)
        cell = (point, record.cell_id)
        chosen[cell] = max(rank, chosen.get(cell, rank))
    return [
        record
        for record, (point, hardware) in zip(records, places, strict=True)
        if point is None or hardware == chosen[point, record.cell_id][2]
    ]


def _compared_at(record: Record) -> tuple[object, ...]:
    """Return what the records have in common whose models are compared."""
    return set_of(record), record.experiment, record.model.size, record.workload, record.point


def _rank(record: Record, begun: Mapping[str, datetime]) -> tuple[bool, datetime]:
    return record.status in ("ok", "gate_failed"), begun[record.run_id]
