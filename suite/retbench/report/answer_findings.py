"""Findings on answers to questions and to needles: accuracies of two models, with the test of their difference."""

from collections.abc import Mapping, Sequence

from retbench.records.record import Record
from retbench.report.document_comparisons import DocumentComparison
from retbench.report.evaluations import Evaluations, chance, paper_average
from retbench.report.findings import KeyFinding
from retbench.report.points import TaskPoint, accuracy, group
from retbench.report.wording import POINTS, describe_p, join_words
from retbench.stats.paired import SIGNIFICANT, proportion_interval
from retbench.units import format_percent, format_tokens


def find_answers(evaluations: Evaluations, points: Sequence[TaskPoint], model: str) -> list[KeyFinding]:
    """State per seed of the largest size the tasks with a difference, those at chance, and the paper's average."""
    every, largest = _by_instance(evaluations, points, model)
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
    """State the outcome of one model instance on all tasks with the same number of examples."""
    model, reference, instance = made[0].model, made[0].reference, made[0].instance
    label, other = evaluations.models.labels[model], evaluations.models.labels[reference]
    differ: dict[bool, list[str]] = {True: [], False: []}
    records = {}
    for c in made:
        pair, task = c.accuracies["acc"], str(c.point.task)
        records[task] = evaluations.sides(c)
        if pair.is_significant:
            words = f"{task} ({POINTS * pair.difference:+.1f} points, {describe_p(pair.p_value)})"
            differ[pair.difference > 0].append(words)
    at_chance = [task for task, sides in records.items() if all(map(_guesses, sides))]
    parts = [
        f"{words} {join_words(differ[is_better])}"
        for words, is_better in ((f"{label} is better at", True), (f"the {other} is better at", False))
        if differ[is_better]
    ]
    count = len(made)
    tasks = "task" if count == 1 else "tasks"
    lead, verdict = (
        f"no significant difference on {count} {tasks}",
        "McNemar's exact test shows no significant difference",
    )
    if parts:
        lead = f"better at {len(differ[True])}, worse at {len(differ[False])} of {count} {tasks}"
        verdict = "; ".join(parts)
        if count > 1:
            verdict += f" ({count} tests; about {SIGNIFICANT * count:.1f} are expected by chance)"
    shots = made[0].point.num_fewshot or 0
    text = f"{shots}-shot, {count} {tasks} at {instance.title}: {verdict}."
    if at_chance:
        text += f" Both models are at chance on {join_words(at_chance)}."
    return KeyFinding(lead, text + _average(records, {model: label, reference: other}))


def _guesses(record: Record) -> bool:
    """Return whether the interval of an accuracy holds that of guessing."""
    level, found = chance(record.point.task, "acc"), accuracy(record)
    if level is None or found is None:
        return False
    value, count = found
    low, high = proportion_interval(round(value * count), count)
    return low <= level <= high


def _average(records: Mapping[str, Sequence[Record]], labels: Mapping[str, str]) -> str:
    """State the paper's average over those of its tasks that both models have."""
    found = paper_average(
        {
            task: {side.model.name: side.metrics["acc"].value for side in sides}
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
