"""What is known of zero-shot tasks by lm-eval's names: what guessing reaches, and which the paper averages."""

from collections.abc import Mapping

_CHOICES = {
    "arc_challenge": 4,
    "arc_easy": 4,
    "boolq": 2,
    "copa": 2,
    "hellaswag": 4,
    "openbookqa": 4,
    "piqa": 2,
    "sciq": 4,
    "storycloze_2016": 2,
    "storycloze_2018": 2,
    "winogrande": 2,
    "wsc273": 2,
}
"""Answers to choose from; of the few ARC questions with three or five, four."""

PAPER_TASKS = (
    "hellaswag",
    "boolq",
    "copa",
    "piqa",
    "wsc273",
    "winogrande",
    "storycloze_2016",
    "storycloze_2018",
)
"""The tasks whose accuracy RetNet (arXiv:2307.08621) averages in Table 3: seven, StoryCloze in either of its years."""

ACCURACIES = ("acc", "acc_norm")
"""Metrics that are the share of right answers."""


def chance(task: str | None, metric: str) -> float | None:
    """The share of right answers that guessing reaches; None where it is not known."""
    choices = _CHOICES.get(task or "")
    return 1 / choices if choices and metric in ACCURACIES else None


def paper_average(accuracies: Mapping[str, Mapping[str, float]]) -> tuple[list[str], dict[str, float]] | None:
    """Each model's mean accuracy over the paper's tasks.

    Args:
        accuracies: By task and model.

    Returns:
        The tasks for which every model has a value, in the paper's order, and the means over them; None where there are
        fewer than two such tasks.
    """
    models = dict.fromkeys(model for by_model in accuracies.values() for model in by_model)
    tasks = [task for task in PAPER_TASKS if accuracies.get(task, {}).keys() == models.keys()]
    if len(tasks) < 2 or not models:
        return None
    return tasks, {model: sum(accuracies[task][model] for task in tasks) / len(tasks) for model in models}
