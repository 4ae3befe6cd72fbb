"""Evaluations on text that a model may have been trained on, as far as the records show it.

Corpora are identified by name and fingerprint. Records do not show whether two different corpora share a passage.
"""

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.points import fact, instance_of, task_point_of

LEARNED_FROM = frozenset({"train", "all"})
"""Splits that hold training text; `validation` decides between learning rates, `test` is unseen."""


def overlap_sentences(scores: Evaluations) -> list[str]:
    """Return a sentence for each evaluation on a corpus that models were trained on, or on another state of it."""
    places: dict[tuple[str, str], list[str]] = {}
    for record in scores.records:
        doubt = _doubt(record, scores) if record.workload == "perplexity" and record.status == "ok" else None
        if doubt is not None:
            task_point = task_point_of(record)
            where = f"{task_point.experiment}: {task_point.title}"
            name = f"{scores.models.labels[record.model.name]} {instance_of(record).title}"
            places.setdefault((where, doubt), []).append(name)
    return [
        f"{where}, evaluated with {', '.join(names)}: {doubt}." for (where, doubt), names in places.items()
    ]


def _doubt(record: Record, scores: Evaluations) -> str | None:
    """Return what may be wrong with the text that a record was evaluated on; None if nothing is known."""
    weights, split = record.model.weights, fact(record, "split")
    if weights is None or weights.corpus is None:
        return None
    then, now = _training_fingerprint(record, scores), fact(record, "corpus_fingerprint")
    is_same_name = weights.corpus == record.point.task
    if then != now and None not in (then, now) and is_same_name:
        return (
            f"'{weights.corpus}' has changed since the training (fingerprint {then} then, {now} now), so text that is "
            "held out now may have been training text"
        )
    if split in LEARNED_FROM and (is_same_name or (then is not None and then == now)):
        return (
            f"its split '{split}' holds the training text, so the loss measures how well that is remembered, not how "
            "well language is predicted"
        )
    return None


def _training_fingerprint(record: Record, scores: Evaluations) -> object:
    """Return the fingerprint of the corpus that the weights were trained on; None if no training record shows it."""
    assert record.model.weights is not None
    found = {
        fact(training, "corpus_fingerprint")
        for training in scores.trainings
        if training.model.weights and training.model.weights.fingerprint == record.model.weights.fingerprint
    }
    return found.pop() if len(found) == 1 else None
