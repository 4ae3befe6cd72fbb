"""Findings on answers to questions and to needles: accuracies of two models, with the test of their difference."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from retbench.papers.tasks import chance, paper_average
from retbench.records.record import Record
from retbench.report.document_comparisons import DocumentComparison
from retbench.report.evaluations import Evaluations
from retbench.report.findings.costs import KeyFinding
from retbench.report.points import TaskPoint, accuracy, group
from retbench.report.wording import POINTS, describe_p, join_words
from retbench.stats.paired import (
    MIN_SEEDS,
    SIGNIFICANT,
    PairedAccuracy,
    difference_over_seeds,
    proportion_interval,
)
from retbench.units import format_percent, format_size, format_tokens


def find_answers(evaluations: Evaluations, points: Sequence[TaskPoint], model: str) -> list[KeyFinding]:
    """State for the largest size the tasks with a difference, those at chance, and the paper's average.

    Context lengths stand apart. So do seeds where they are too few for an interval over them, or did not answer the
    same tasks.
    """
    by_length = group(points, lambda point: point.context_len).values()
    return [finding for mine in by_length for finding in _of_one_length(evaluations, mine, model)]


def _of_one_length(evaluations: Evaluations, points: Sequence[TaskPoint], model: str) -> list[KeyFinding]:
    every, largest = _by_instance(evaluations, points, model)
    tasks = {frozenset(c.point for c in mine) for mine in largest}
    if len(largest) >= MIN_SEEDS and len(tasks) == 1:
        return [_task_finding(evaluations, [c for mine in largest for c in mine])]
    return [_task_finding(evaluations, made) for made in largest or every[-1:]]


def find_needles(evaluations: Evaluations, points: Sequence[TaskPoint], model: str) -> list[KeyFinding]:
    """State the exact answers of a model and the reference by context length, seeds apart.

    It is for the largest size, and for all sizes where nothing is compared at the largest.
    """
    every, largest = _by_instance(evaluations, points, model)
    return [_needle_finding(evaluations, made) for made in largest or every]


def _by_instance(
    evaluations: Evaluations, points: Sequence[TaskPoint], model: str
) -> tuple[list[list[DocumentComparison]], list[list[DocumentComparison]]]:
    """Return the comparisons of accuracies per model instance: all of them, and those of the largest size."""
    made = [c for point in points for c in evaluations.compared(point, model) if "acc" in c.accuracies]
    sizes = evaluations.sizes([record for point in points for record in evaluations.at(point)])
    every = list(group(made, lambda c: c.instance).values())
    return every, [mine for mine in every if mine[0].instance.size == sizes[-1]]


def _task_finding(evaluations: Evaluations, made: Sequence[DocumentComparison]) -> KeyFinding:
    """State the outcome of one size, of one seed or of all, on all tasks of one length and number of examples."""
    model, reference, size = made[0].model, made[0].reference, made[0].instance.size
    label, other = evaluations.models.labels[model], evaluations.models.labels[reference]
    by_task = group(made, lambda c: str(c.point.task))
    records = {task: [side for c in mine for side in evaluations.sides(c)] for task, mine in by_task.items()}
    differ: dict[bool, list[str]] = {True: [], False: []}
    for task, mine in by_task.items():
        found = _significant([c.accuracies["acc"] for c in mine])
        if found is not None:
            difference, note = found
            differ[difference > 0].append(f"{task} ({POINTS * difference:+.1f} points{note})")
    at_chance = [task for task, sides in records.items() if all(map(_guesses, sides))]
    parts = [
        f"{words} {join_words(differ[is_better])}"
        for words, is_better in ((f"{label} is better at", True), (f"the {other} is better at", False))
        if differ[is_better]
    ]
    count, seeds = len(by_task), [str(c.instance.seed) for c in next(iter(by_task.values()))]
    tasks = "task" if count == 1 else "tasks"
    where = made[0].instance.title if len(seeds) == 1 else f"{format_size(size)}, seeds {join_words(seeds)}"
    test = "McNemar's exact test shows" if len(seeds) == 1 else "the 95 % intervals over seeds show"
    lead, verdict = f"no significant difference on {count} {tasks}", f"{test} no significant difference"
    if parts:
        lead = f"better at {len(differ[True])}, worse at {len(differ[False])} of {count} {tasks}"
        verdict = "; ".join(parts)
        if count > 1:
            verdict += f" ({count} tests; about {SIGNIFICANT * count:.1f} are expected by chance)"
    shots, context = made[0].point.num_fewshot or 0, format_tokens(made[0].point.context_len)
    text = f"{shots}-shot, {count} {tasks} at {where}, contexts of {context} tokens: {verdict}."
    if at_chance:
        text += f" Both models are at chance on {join_words(at_chance)}."
    return KeyFinding(lead, text + _average(records, {model: label, reference: other}))


def _significant(pairs: Sequence[PairedAccuracy]) -> tuple[float, str] | None:
    """Return a significant difference of accuracies, with its interval over the seeds or its p-value; else None."""
    together = difference_over_seeds(pairs)
    if together is None:
        return (pairs[0].difference, f", {describe_p(pairs[0].p_value)}") if pairs[0].is_significant else None
    if together.low is None or together.high is None or together.low <= 0 <= together.high:
        return None
    ends = ", ".join(f"{POINTS * end:+.1f}" for end in (together.low, together.high))
    return together.value, f" [{ends}], 95 % CI over seeds"


def _guesses(record: Record) -> bool:
    """Return whether the interval of an accuracy holds that of guessing."""
    level, found = chance(record.point.task), accuracy(record)
    if level is None or found is None:
        return False
    value, count = found
    low, high = proportion_interval(round(value * count), count)
    return low <= level <= high


def _average(records: Mapping[str, Sequence[Record]], labels: Mapping[str, str]) -> str:
    """State the paper's average over those of its tasks that both models have."""
    found = paper_average(
        {
            task: {
                model: fmean(record.metrics["acc"].value for record in mine)
                for model, mine in group(sides, lambda record: record.model.name).items()
            }
            for task, sides in records.items()
        }
    )
    if found is None:
        return ""
    tasks, means = found
    values = ", ".join(f"{label} {format_percent(means[model])}" for model, label in labels.items())
    return f" Mean over the paper's tasks that both have ({', '.join(tasks)}): {values}."


def _needle_finding(evaluations: Evaluations, made: Sequence[DocumentComparison]) -> KeyFinding:
    label, other = (evaluations.models.labels[name] for name in (made[0].model, made[0].reference))
    parts, shares = [], []
    for c in made:
        mine, theirs = (format_percent(side.metrics["acc"].value) for side in evaluations.sides(c))
        p_value = describe_p(c.accuracies["acc"].p_value)
        shares.append(f"{mine} vs {theirs}")
        parts.append(f"{mine} and {theirs} at {format_tokens(c.point.context_len)} ({p_value})")
    text = (
        f"Of the numbers hidden in {made[0].point.task}, {label} of {made[0].instance.title} and the {other} answer "
        f"exactly {join_words(parts)}, over all depths; p-values of McNemar's exact test."
    )
    trained = evaluations.trained_length([evaluations.sides(c)[0] for c in made])
    if trained is not None and any(c.point.context_len > trained for c in made):
        text += f" Contexts beyond {format_tokens(trained)} are longer than those of the training."
    return KeyFinding(f"{shares[-1]} of the needles in {format_tokens(made[-1].point.context_len)}", text)
