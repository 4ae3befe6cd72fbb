"""Findings on recall in text: how losses on repeated and on new pairs of words differ from the reference's."""

from retbench.report.document_comparisons import DocumentComparison
from retbench.report.evaluations import Evaluations
from retbench.report.findings import KeyFinding
from retbench.report.points import TaskPoint
from retbench.stats.paired import Estimate
from retbench.units import format_tokens


def find_slices(evaluations: Evaluations, point: TaskPoint, model: str) -> list[KeyFinding]:
    """State per size and seed by how much a model's losses on repeated and on new pairs differ from the reference's."""
    found = []
    for made in evaluations.compared(point, model):
        if not {"hit_nats", "first_nats"} <= made.slices.keys():
            continue
        label, other = (evaluations.models.labels[name] for name in (model, made.reference))
        hits, new, gain = (made.slices[name] for name in ("hit_nats", "first_nats", "hit_gain_nats"))
        text = (
            f"On {point.title}, {label} of {made.instance.title} loses {difference_words(hits)} nats per word to the "
            f"{other} on words that complete a rare pair seen earlier in the document, and {difference_words(new)} on "
            f"those of new pairs (95 % CI over {hits.num_documents} documents; below 0 it is ahead). Its gain of a "
            f"repeated pair is {difference_words(gain)} above the {other}'s: {_verdict(gain, label, other)}."
        )
        if "second_copy_bits_per_byte" in made.slices:
            copy = difference_words(made.slices["second_copy_bits_per_byte"])
            text += f" On the second copy of a text it loses {copy} bits per byte."
        text += _beyond_training(evaluations, made)
        found.append(KeyFinding(f"{hits.value:+.2f} vs {new.value:+.2f} nats on repeated vs new pairs", text))
    return found


def difference_words(difference: Estimate) -> str:
    """Return a difference with its interval, or that there are too few documents for one."""
    if difference.low is None or difference.high is None:
        return f"{difference.value:+.3f} (no interval: {difference.num_documents} documents)"
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _beyond_training(evaluations: Evaluations, made: DocumentComparison) -> str:
    """State that the documents are longer than what the models were trained on; empty where that is not known."""
    found = [evaluations.find(made.point, name, made.instance) for name in (made.model, made.reference)]
    records = [record for record in found if record and "num_tokens" in record.metrics and record.documents]
    trained = evaluations.trained_length(records) if records else None
    lengths = [r.metrics["num_tokens"].value / r.documents.num_documents for r in records if r.documents]
    if trained is None or max(lengths) <= trained:
        return ""
    return (
        f" The documents have more tokens than the {format_tokens(trained)} of the training, so this is in part how "
        "the models extrapolate."
    )


def _verdict(gain: Estimate, label: str, other: str) -> str:
    if gain.low is None or gain.high is None:
        return "there are too few documents for a verdict"
    if gain.low > 0:
        return f"{label} recalls more"
    return f"the {other} recalls more" if gain.high < 0 else "the difference in recall is not significant"
