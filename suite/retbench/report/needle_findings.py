"""Findings on needles: the share that each model finds at every context length, with the test of the difference."""

from collections.abc import Sequence

from retbench.records.record import Record
from retbench.report.document_comparisons import DocumentComparison
from retbench.report.evaluations import Evaluations
from retbench.report.findings import KeyFinding
from retbench.report.points import TaskPoint
from retbench.report.wording import format_p, join_words
from retbench.units import format_percent, format_tokens


def find_needles(evaluations: Evaluations, points: Sequence[TaskPoint], model: str) -> list[KeyFinding]:
    """State the exact answers of a model and the reference by context length, for the largest size; seeds apart."""
    made = [c for point in points for c in evaluations.compared(point, model) if "acc" in c.accuracies]
    if not made:
        return []
    sizes = evaluations.sizes([record for point in points for record in evaluations.at(point)])
    largest = [c for c in made if c.instance.size == sizes[-1]] or made
    return [
        _finding(evaluations, [c for c in largest if c.instance == instance])
        for instance in dict.fromkeys(c.instance for c in largest)
    ]


def _finding(evaluations: Evaluations, made: Sequence[DocumentComparison]) -> KeyFinding:
    label, other = (evaluations.models.labels[name] for name in (made[0].model, made[0].reference))
    parts, shares = [], []
    for c in made:
        sides = [evaluations.find(c.point, name, c.instance) for name in (c.model, c.reference)]
        mine, theirs = (format_percent(_exact(side)) for side in sides if side)
        p_value = format_p(c.accuracies["acc"].p_value)
        sign = "" if p_value.startswith("<") else "= "
        shares.append(f"{mine} vs {theirs}")
        parts.append(f"{mine} and {theirs} at {format_tokens(c.point.context_len)} (p {sign}{p_value})")
    text = (
        f"Of the numbers hidden in {made[0].point.task}, {label} of {made[0].instance.title} and the {other} answer "
        f"exactly {join_words(parts)}, over all depths; p-values of McNemar's exact test."
    )
    trained = evaluations.trained_length(
        [side for c in made if (side := evaluations.find(c.point, c.model, c.instance))]
    )
    if trained is not None and any(c.point.context_len > trained for c in made):
        text += f" Contexts beyond {format_tokens(trained)} are longer than those of the training."
    return KeyFinding(f"{shares[-1]} of the needles in {format_tokens(made[-1].point.context_len)}", text)


def _exact(record: Record) -> float:
    return record.metrics["acc"].value
