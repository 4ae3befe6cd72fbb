"""Zero-shot tasks: how many answers each has to choose from, and those that RetNet's paper averages."""

from collections.abc import Mapping

_CHOICES = {
    **dict.fromkeys(("arc_challenge", "arc_easy", "hellaswag", "openbookqa", "sciq"), 4),
    **dict.fromkeys(
        ("boolq", "copa", "piqa", "storycloze_2016", "storycloze_2018", "winogrande", "wsc273"), 2
    ),
}
"""Number of answers to choose from; the few ARC questions with three or five count as four."""

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
"""Tasks that RetNet (arXiv:2307.08621) averages in Table 3: seven, with StoryCloze of either year."""


def chance(task: str | None) -> float | None:
    """Return the accuracy of guessing; None where it is not known."""
    choices = _CHOICES.get(task or "")
    return 1 / choices if choices else None


def paper_average(accuracies: Mapping[str, Mapping[str, float]]) -> tuple[list[str], dict[str, float]] | None:
    """Return each model's mean accuracy over the paper's tasks that all models have, with those tasks in its order.

    Args:
        accuracies: By task and model.

    Returns:
        None with fewer than two such tasks.
    """
    models = dict.fromkeys(model for by_model in accuracies.values() for model in by_model)
    tasks = [task for task in PAPER_TASKS if accuracies.get(task, {}).keys() == models.keys()]
    if len(tasks) < 2 or not models:
        return None
    return tasks, {model: sum(accuracies[task][model] for task in tasks) / len(tasks) for model in models}
