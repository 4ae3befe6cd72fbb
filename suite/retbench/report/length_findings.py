"""Findings on recall beyond the trained length, of each task that the reference has learnt at that length."""

from collections.abc import Sequence

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.findings import KeyFinding
from retbench.report.points import TaskPoint, group, length_ratio
from retbench.report.recall_findings import SOLVED, accuracies, largest_sides, no_verdict, range_of
from retbench.report.wording import join_words
from retbench.units import format_size


def find_lengths(evaluations: Evaluations, points: Sequence[TaskPoint], model: str) -> list[KeyFinding]:
    """State the accuracies of a model and the reference in each task; seeds are never pooled."""
    found = []
    for same_task in group(points, lambda point: point.task).values():
        sides = largest_sides(evaluations, same_task, model)
        if sides is not None:
            found += _find(evaluations, str(same_task[0].task).replace("_", " "), sides)
    return found


def _find(evaluations: Evaluations, task: str, sides: tuple[list[Record], list[Record]]) -> list[KeyFinding]:
    mine, theirs = (group(side, length_ratio) for side in sides)
    shared = sorted((mine.keys() & theirs.keys()) - {0})
    if not shared or 1 not in shared:
        return []
    label, other = (evaluations.models.labels[side[0].model.name] for side in sides)
    size = format_size(sides[0][0].model.size)
    if max(accuracies(theirs[1])) < SOLVED:
        return [no_verdict(f"{label} at {size} in {task}", other, theirs[1], "at the trained length")]
    parts = [
        f"{range_of(mine[ratio])} (the {other}: {range_of(theirs[ratio])}) at "
        + ("the trained length" if ratio == 1 else f"{ratio:g} times it")
        for ratio in shared
    ]
    # A model that has not learnt the task says nothing about length: its lead is the accuracy where it was trained.
    lead_ratio = shared[-1] if max(accuracies(mine[1])) >= SOLVED else 1
    where = "the trained length" if lead_ratio == 1 else f"{lead_ratio:g} times the trained length"
    lead = f"{range_of(mine[lead_ratio])} vs {range_of(theirs[lead_ratio])} in {task} at {where}"
    return [KeyFinding(lead, f"{label} of {size} answers in {task} {join_words(parts)}.")]
