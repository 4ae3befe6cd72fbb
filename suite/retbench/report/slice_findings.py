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
            f"On {point.title}, the loss of {label} of {made.instance.title} differs from that of the {other} by "
            f"{difference_words(hits)} nats per word on words that complete a rare pair seen earlier in the document, "
            f"and by {difference_words(new)} on those of new pairs (95 % CI over {hits.num_documents} documents; below "
            f"0 {label} is ahead). Its gain of a repeated pair differs by {difference_words(gain)}: "
            f"{_beyond_training(evaluations, made) or _verdict(made, label, f'the {other}')}."
        )
        if "second_copy_bits_per_byte" in made.slices:
            copy = difference_words(made.slices["second_copy_bits_per_byte"])
            text += f" On the second copy of a text its loss differs by {copy} bits per byte."
        found.append(KeyFinding(f"{hits.value:+.2f} vs {new.value:+.2f} nats on repeated vs new pairs", text))
    return found


def difference_words(difference: Estimate) -> str:
    """Return a difference with its interval, or that there are too few documents for one."""
    if difference.low is None or difference.high is None:
        return f"{difference.value:+.3f} (no interval: {difference.num_documents} documents)"
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _beyond_training(evaluations: Evaluations, made: DocumentComparison) -> str:
    """State that documents longer than those of the training allow no verdict; empty where that is not known."""
    found = [evaluations.find(made.point, name, made.instance) for name in (made.model, made.reference)]
    records = [record for record in found if record and "num_tokens" in record.metrics and record.documents]
    trained = evaluations.trained_length(records) if records else None
    lengths = [r.metrics["num_tokens"].value / r.documents.num_documents for r in records if r.documents]
    if trained is None or max(lengths) <= trained:
        return ""
    return (
        f"no verdict on recall, because the documents have more tokens than the {format_tokens(trained)} of the "
        "training, and beyond that models extrapolate"
    )


def _verdict(made: DocumentComparison, label: str, other: str) -> str:
    """State which side recalls more; only a model whose own gain of a repeated pair is above 0 recalls."""
    gain = made.slices["hit_gain_nats"]
    if gain.low is None or gain.high is None:
        return "there are too few documents for a verdict"
    if gain.low <= 0 <= gain.high:
        return "the difference in recall is not significant"
    leader, own = (label, made.own_gain) if gain.low > 0 else (other, made.reference_gain)
    if own is not None and own.low is not None and own.low > 0:
        return f"{leader} recalls more"
    words = f", its own gain is {difference_words(own)}" if own is not None else ""
    return f"no verdict on recall, because {leader} is not shown to recall{words}"
