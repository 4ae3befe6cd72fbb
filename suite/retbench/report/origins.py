"""Selections by the origin of their records: the reader's own runs, and the published ones by machine and models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from retbench.records.dates import started
from retbench.records.record import Record
from retbench.report.points import group
from retbench.report.results import ComparableSet, Results, set_of
from retbench.report.selection import Selection, choose_conditions, describe_count, select
from retbench.workloads.workload import Replicate, measures_cost, replicate_of


def select_by_origin(results: Results) -> list[Selection]:
    """Return the newest comparable records of the reader's own runs, then those of the published ones.

    The two are never pooled. Of the published records those of a workload that the reader's own runs measured in the
    same experiment are left out, and the others are one selection for each comparable set that is the newest of an
    experiment, and for each list of models: they come from several machines and times. The results of a machine stay
    beside newer ones of another machine that lack some of their models.

    Raises:
        RecordError: there are no records.
    """
    published = [record for record in results.records if results.source_of(record).is_published]
    own = [record for record in results.records if not results.source_of(record).is_published]
    if not own or not published:
        return _select_published(published, results) or [select(own, folders=results.folders)]
    measured = {(record.experiment, record.workload) for record in own if record.status == "ok"}
    others = [record for record in published if (record.experiment, record.workload) not in measured]
    first = replace(select(own, folders=results.folders), everything=results.records)
    hidden = [record for record in published if (record.experiment, record.workload) in measured]
    notes = [
        f"{experiment}: {describe_count(found)} that are published, since {experiment} was measured on this machine."
        for experiment, found in group(hidden, lambda record: record.experiment).items()
    ]
    return [replace(first, left_out=(*first.left_out, *notes)), *_select_published(others, results)]


def _select_published(records: Sequence[Record], results: Results) -> list[Selection]:
    """Return a selection for each comparable set and models of published records, that of most experiments first.

    With each set of costs is one of evaluations and trainings of its models: that of most models, then of most records.
    """
    costs = _newest_sets([record for record in records if measures_cost(record)])
    others = _newest_sets([record for record in records if not measures_cost(record)])
    joined = []
    for part in costs:
        of_same_models = [one for one in others if _models(one) <= _models(part)]
        fitting = max(of_same_models, key=lambda one: (len(_models(one)), len(one)), default=[])
        others = [one for one in others if one is not fitting]
        joined.append([*part, *fitting])
    found: list[Selection] = []
    for part in (*joined, *others):
        name = ", ".join(sorted({record.experiment for record in part})) if found else ""
        if any(one.part == name for one in found):
            name += f", {part[0].environment.get('machine')}"
        chosen = select(part, folders=results.folders)
        found.append(replace(chosen, everything=tuple(results.records), is_published=True, part=name))
    return found


def _newest_sets(records: Sequence[Record]) -> list[list[Record]]:
    """Group records of experiments with the same models and newest comparable sets.

    Those of most experiments come first, and of equals those of most models.
    Evaluations and trainings of one experiment have a set each.
    """
    parts: list[tuple[dict[Replicate, ComparableSet], list[Record]]] = []
    for of_one in _by_machine(records):
        families = group(of_one, replicate_of)
        sets = {name: set_of(choose_conditions(found)[0][0]) for name, found in families.items()}
        alike = (one for one in parts if _agree(one[0], sets) and _models(one[1]) == _models(of_one))
        known, part = next(alike, ({}, []))
        if not part:
            parts.append((known, part))
        known.update(sets)
        part.extend(of_one)
    return sorted(
        (part for _, part in parts),
        key=lambda part: (len({record.experiment for record in part}), len(_models(part))),
        reverse=True,
    )


def _by_machine(records: Sequence[Record]) -> list[list[Record]]:
    """Group records by experiment and machine; those whose models a newer machine has all are with that one's."""
    found: list[list[Record]] = []
    for of_one in group(records, lambda record: record.experiment).values():
        machines = group(of_one, lambda record: record.environment.get("machine")).values()
        parts: list[list[Record]] = []
        for part in sorted(machines, key=_newest, reverse=True):
            newer = next((one for one in parts if _models(part) <= _models(one)), None)
            if newer is None:
                parts.append([*part])
            else:
                newer.extend(part)
        found += parts
    return found


def _newest(records: Sequence[Record]) -> tuple[bool, datetime]:
    """Return the rank of the records of a machine: those with a value first, then the latest."""
    return any(record.status == "ok" for record in records), max(map(started, records))


def _agree(known: Mapping[Replicate, ComparableSet], sets: Mapping[Replicate, ComparableSet]) -> bool:
    """Return whether two experiments have a family of records in common, and the same sets in all of these."""
    shared = known.keys() & sets.keys()
    return bool(shared) and all(known[name] == sets[name] for name in shared)


def _models(records: Sequence[Record]) -> set[str]:
    return {record.model.name for record in records}
