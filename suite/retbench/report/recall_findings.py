"""Findings on recall: accuracy and bytes of the state beside those of the reference, if the reference has learnt it."""

from collections.abc import Sequence

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.findings import KeyFinding
from retbench.report.points import TaskPoint
from retbench.report.wording import join_words
from retbench.units import format_bytes, format_percent, format_size

SOLVED = 0.99
"""Accuracy that the reference must reach with the fewest pairs; below it the recipe of training is under test."""


def find_recall(evaluations: Evaluations, points: Sequence[TaskPoint], model: str) -> list[KeyFinding]:
    """State the accuracies of a model and the reference at the largest size that both have; seeds are never pooled."""
    sides = largest_sides(evaluations, points, model)
    if sides is None:
        return []
    mine, theirs = sides
    label, other = (evaluations.models.labels[side[0].model.name] for side in sides)
    shared = [point for point in points if _at(mine, point) and _at(theirs, point)]
    if not shared:
        return []
    easiest = _at(theirs, min(shared, key=lambda point: point.num_pairs or 0))
    if max(accuracies(easiest)) < SOLVED:
        size = format_size(mine[0].model.size)
        return [no_verdict(f"{label} at {size}", other, easiest, "with the fewest pairs")]
    parts = [
        f"{range_of(_at(mine, point))} with {point.title} ({format_bytes(_num_bytes(_at(mine, point)))} of state; the "
        f"{other}: {range_of(_at(theirs, point))}, {format_bytes(_num_bytes(_at(theirs, point)))})"
        for point in shared
    ]
    hardest = shared[-1]
    lead = f"{range_of(_at(mine, hardest))} vs {range_of(_at(theirs, hardest))} with {hardest.title}"
    return [KeyFinding(lead, f"{label} of {format_size(mine[0].model.size)} recalls {join_words(parts)}.")]


def largest_sides(
    evaluations: Evaluations, points: Sequence[TaskPoint], model: str
) -> tuple[list[Record], list[Record]] | None:
    """Return the records of a model and of the reference at the largest size that both have; None without one."""
    mine, theirs = (
        [record for point in points for record in evaluations.measured(point) if record.model.name == name]
        for name in (model, str(evaluations.models.reference))
    )
    sizes = [size for size in evaluations.sizes(mine) if size in evaluations.sizes(theirs)]
    if not sizes:
        return None
    largest = ([record for record in side if record.model.size == sizes[-1]] for side in (mine, theirs))
    return next(largest), next(largest)


def no_verdict(subject: str, reference: str, records: Sequence[Record], where: str) -> KeyFinding:
    """Return the finding that the reference has not learnt the task, so that nothing follows."""
    text = (
        f"No verdict on {subject}: the {reference} reaches {range_of(records)} {where}, less than "
        f"{format_percent(SOLVED)}, so the training is at fault, or too short."
    )
    return KeyFinding("no verdict", text)


def _at(records: Sequence[Record], point: TaskPoint) -> list[Record]:
    place = (point.context_len, point.num_pairs)
    return [record for record in records if (record.point.context_len, record.point.num_pairs) == place]


def accuracies(records: Sequence[Record]) -> list[float]:
    """Return the accuracy of each record."""
    return [record.metrics["acc"].value for record in records]


def _num_bytes(records: Sequence[Record]) -> float:
    return records[0].metrics["state_bytes"].value


def range_of(records: Sequence[Record]) -> str:
    """Return the accuracies of the seeds, from the lowest to the highest."""
    values = accuracies(records)
    return "–".join(dict.fromkeys(format_percent(value) for value in (min(values), max(values))))
