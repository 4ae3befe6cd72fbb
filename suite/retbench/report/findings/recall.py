"""Findings on recall: accuracies beside those of the reference, if the reference has learnt the task.

The accuracies of the seeds stand side by side: seeds are never pooled.
"""

from collections.abc import Callable, Sequence

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.findings.costs import KeyFinding
from retbench.report.points import Key, TaskPoint, group, length_ratio, task_point_of
from retbench.report.wording import join_words, range_of
from retbench.units import format_bytes, format_percent, format_size

SOLVED = 0.99
"""Accuracy that the reference must reach in the easiest examples; below it the recipe of training is under test."""


def find_recall(evaluations: Evaluations, points: Sequence[TaskPoint], model: str) -> list[KeyFinding]:
    """State accuracy and bytes of the state by number of pairs, at the largest size that both models have."""
    mine, theirs = _largest_sides(evaluations, points, model, task_point_of)
    shared = [point for point in points if point in mine and point in theirs]
    if not shared:
        return []
    easiest = min(shared, key=lambda point: point.num_pairs or 0)
    label, other, size = _names(evaluations, model, mine[easiest])
    if _best(theirs[easiest]) < SOLVED:
        return [_no_verdict(f"{label} at {size}", other, theirs[easiest], "with the fewest pairs")]
    parts = [
        f"{_range(mine[point])} with {point.title} ({_state(mine[point])} of state; the {other}: "
        f"{_range(theirs[point])}, {_state(theirs[point])})"
        for point in shared
    ]
    hardest = shared[-1]
    lead = f"{_range(mine[hardest])} vs {_range(theirs[hardest])} with {hardest.title}"
    return [KeyFinding(lead, f"{label} of {size} recalls {join_words(parts)}.")]


def find_lengths(evaluations: Evaluations, points: Sequence[TaskPoint], model: str) -> list[KeyFinding]:
    """State the accuracies in each task at the trained length and beyond it."""
    tasks = group(points, lambda point: point.task).values()
    return [finding for same_task in tasks for finding in _find_lengths(evaluations, same_task, model)]


def _find_lengths(evaluations: Evaluations, points: Sequence[TaskPoint], model: str) -> list[KeyFinding]:
    mine, theirs = _largest_sides(evaluations, points, model, length_ratio)
    shared = sorted((mine.keys() & theirs.keys()) - {0})
    if 1 not in shared:
        return []
    label, other, size = _names(evaluations, model, mine[1])
    task = str(points[0].task).replace("_", " ")
    if _best(theirs[1]) < SOLVED:
        return [_no_verdict(f"{label} at {size} in {task}", other, theirs[1], "at the trained length")]
    parts = [
        f"{_range(mine[ratio])} (the {other}: {_range(theirs[ratio])}) at "
        + ("the trained length" if ratio == 1 else f"{ratio:g} times it")
        for ratio in shared
    ]
    # A model that has not learnt the task says nothing about length: its lead is the accuracy where it was trained.
    ratio = shared[-1] if _best(mine[1]) >= SOLVED else 1
    where = "the trained length" if ratio == 1 else f"{ratio:g} times the trained length"
    lead = f"{_range(mine[ratio])} vs {_range(theirs[ratio])} in {task} at {where}"
    return [KeyFinding(lead, f"{label} of {size} answers in {task} {join_words(parts)}.")]


def _largest_sides(
    evaluations: Evaluations, points: Sequence[TaskPoint], model: str, key: Callable[[Record], Key]
) -> tuple[dict[Key, list[Record]], dict[Key, list[Record]]]:
    """Return the records of a model and of the reference at the largest size that both have, by a key."""
    mine, theirs = (
        [record for point in points for record in evaluations.measured(point) if record.model.name == name]
        for name in (model, str(evaluations.models.reference))
    )
    sizes = [size for size in evaluations.sizes(mine) if size in evaluations.sizes(theirs)]
    largest = ([record for record in side if record.model.size in sizes[-1:]] for side in (mine, theirs))
    return group(next(largest), key), group(next(largest), key)


def _names(evaluations: Evaluations, model: str, records: Sequence[Record]) -> tuple[str, str, str]:
    """Return the label of a model, that of the reference, and the size of the model's records."""
    labels = evaluations.models.labels
    return labels[model], labels[str(evaluations.models.reference)], format_size(records[0].model.size)


def _no_verdict(subject: str, reference: str, records: Sequence[Record], where: str) -> KeyFinding:
    """Return the finding that the reference has not learnt the task, so that nothing follows."""
    text = (
        f"No verdict on {subject}: the {reference} reaches {_range(records)} {where}, less than "
        f"{format_percent(SOLVED)}, so the training is at fault, or too short."
    )
    return KeyFinding("no verdict", text)


def _state(records: Sequence[Record]) -> str:
    return format_bytes(records[0].metrics["state_bytes"].value)


def _best(records: Sequence[Record]) -> float:
    return max(record.metrics["acc"].value for record in records)


def _range(records: Sequence[Record]) -> str:
    """Return the accuracies of the seeds, from the lowest to the highest."""
    return range_of((record.metrics["acc"].value for record in records), format_percent, "–")
