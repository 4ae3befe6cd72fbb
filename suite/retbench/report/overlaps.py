"""Where a model was scored on text that it may have been trained on, according to the records.

Corpora are told apart by name and fingerprint. Whether two different ones share a passage, no record says.
"""

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.points import fact, instance_of, task_point_of

LEARNED_FROM = frozenset({"train", "all"})
"""Splits that hold what models are trained on; `validation` decides between learning rates, `test` is unseen."""


def overlap_sentences(scores: Evaluations) -> list[str]:
    """A sentence for each question that was asked of a corpus which models were trained on, or on another state of."""
    places: dict[tuple[str, str], list[str]] = {}
    for record in scores.records:
        doubt = _doubt(record, scores) if record.workload == "perplexity" and record.status == "ok" else None
        if doubt is not None:
            question = task_point_of(record)
            where = f"{question.experiment}: {question.title}"
            name = f"{scores.models.labels[record.model.name]} {instance_of(record).title}"
            places.setdefault((where, doubt), []).append(name)
    return [f"{where}, read by {', '.join(names)}: {doubt}." for (where, doubt), names in places.items()]


def _doubt(record: Record, scores: Evaluations) -> str | None:
    """What may be wrong with the text that a record scored; None where nothing is known to be."""
    weights = record.model.weights
    if weights is None or weights.corpus is None:
        return None
    then, now = _trained_on(record, scores), fact(record, "corpus_fingerprint")
    if then != now and None not in (then, now) and weights.corpus == record.point.task:
        return (
            f"'{weights.corpus}' has changed since the training (fingerprint {then} then, {now} when it was scored), "
            "so what is held out of it now may have been learned from"
        )
    split = fact(record, "split")
    if split in LEARNED_FROM and (weights.corpus == record.point.task or (then is not None and then == now)):
        return (
            f"its split '{split}' holds the text of the training, so the loss says how well that is remembered, not "
            "how well language is predicted"
        )
    return None


def _trained_on(record: Record, scores: Evaluations) -> object:
    """Fingerprint of the corpus that the weights of a record learned from; None where their training left no record."""
    assert record.model.weights is not None
    found = {
        fact(training, "corpus_fingerprint")
        for training in scores.trainings
        if training.model.weights and training.model.weights.fingerprint == record.model.weights.fingerprint
    }
    return found.pop() if len(found) == 1 else None
