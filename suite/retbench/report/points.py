"""Identity of a record in the report: its task point, its model instance, and the lineup of its models.

Cost and quality are one kind of observation: (model, point, replicate, metric, value). The replicate is a round where
cost is measured, a document where text or questions are scored, and a seed where models are trained.
"""

from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from retbench.architectures import recorded
from retbench.architectures.matching import MAX_MISMATCH
from retbench.architectures.recorded import concatenates_cache
from retbench.architectures.registry import architectures as registered
from retbench.architectures.registry import is_baseline, title_of
from retbench.records.record import ModelInfo, Record
from retbench.report.results import by_parts, session_of
from retbench.report.wording import file_stem
from retbench.units import format_percent, format_size, format_tokens
from retbench.workloads.workload import WORKLOADS, Scores

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

UNMATCHED = "a model of another library is not matched to a size"
"""Why such a model is shown beside the others and not compared with them."""


def scores_of(workload: str) -> Scores:
    """Return what a workload of quality scores; of one that is not installed here, answers."""
    known = WORKLOADS.get(workload)
    return "answers" if known is None else known.scores


class TaskPoint(NamedTuple):
    """One evaluation input or training task: a corpus with a protocol, a zero-shot task, a training length."""

    experiment: str
    workload: str
    task: str | None
    protocol: str | None
    context_len: int
    num_fewshot: int | None
    stride: int | None = None
    num_pairs: int | None = None

    @property
    def title(self) -> str:
        """Readable name: 'litbank/original (whole, 8K)', 'hellaswag, 4-shot', '8 pairs in 64 tokens'."""
        task = self.task or self.workload
        if self.num_pairs is not None:
            return f"{self.num_pairs} pairs in {format_tokens(self.context_len)} tokens"
        scores = scores_of(self.workload)
        if scores == "lengths":
            return f"{task.replace('_', ' ')} in {format_tokens(self.context_len)} tokens"
        if scores == "needles":
            return f"needle in {task}, {format_tokens(self.context_len)} tokens"
        if scores == "slices":
            return f"{task} (first {format_tokens(self.context_len)} bytes)"
        if scores == "text":
            protocol = self.protocol or "protocol not recorded"
            return f"{task} ({protocol}, {format_tokens(self.context_len)})"
        return task if self.num_fewshot is None else f"{task}, {self.num_fewshot}-shot"

    @property
    def corpus(self) -> str:
        """Name of the text of a training; a workload that makes its own examples has none."""
        return self.task or "its own text"

    def stem(self, suffix: str) -> str:
        """Return a name for a figure of this point: unique in a report, fit for a file name."""
        parts = (self.experiment, self.workload, self.task, self.protocol, str(self.context_len), suffix)
        return file_stem("_".join(part for part in parts if part))


class ModelInstance(NamedTuple):
    """One of the models of a name: its size, and the seed of its training, None where it has none."""

    size: str
    seed: int | None

    @property
    def title(self) -> str:
        """Size, and the seed if there is one: '3M', '3M seed 1'."""
        size = format_size(self.size)
        return size if self.seed is None else f"{size} seed {self.seed}"

    @property
    def seed_word(self) -> str:
        """Seed in the data of a figure."""
        return "none" if self.seed is None else str(self.seed)


def task_point_of(record: Record) -> TaskPoint:
    """Return the task point of a record."""
    point = record.point
    return TaskPoint(
        record.experiment,
        record.workload,
        point.task,
        point.protocol,
        point.context_len,
        point.num_fewshot,
        point.stride,
        point.num_pairs,
    )


def instance_of(record: Record) -> ModelInstance:
    """Return size and seed of a record's model; a failed training has its seed in `backend`, having no weights."""
    seed = record.model.weights.seed if record.model.weights else record.backend.get("seed")
    return ModelInstance(record.model.size, seed if isinstance(seed, int) else None)


def instance_row(record: Record) -> dict[str, object]:
    """Return the columns that identify the model instance of a record in the data of a figure."""
    return {
        "model": record.model.name,
        "size": record.model.size,
        "seed": instance_of(record).seed_word,
    }


def state_bytes_of(record: Record) -> int | None:
    """Return the analytical bytes of state or cache of one sequence of a record's context; None if not known."""
    dtype = str(record.settings.get("dtype"))
    return recorded.state_bytes(record.model.config, dtype, record.point.context_len)


def fact(record: Record, name: str) -> object:
    """Return a fact that the executed code recorded, else the setting of that name; a list or table as text."""
    value = record.backend.get(name, record.settings.get(name))
    return str(value) if isinstance(value, list | dict) else value


def loss_unit(record: Record) -> str:
    """Return what a loss of a training is the mean over: a token of a text, or an answer of a task."""
    return "token" if fact(record, "tokenizer") else "answer"


def is_final(record: Record) -> bool:
    """Return False for a run of the grid of learning rates, which only tunes."""
    return fact(record, "role") != "tuning"


def learning_rate(record: Record) -> float | None:
    """Return the highest learning rate of the training of a record's weights; None where it is not known."""
    if record.model.weights:
        return record.model.weights.learning_rate
    rate = record.backend.get("learning_rate")
    return rate if isinstance(rate, float) else None


def num_trained_tokens(record: Record) -> int | None:
    """Return the tokens that the weights of a record were trained on; None where it is not known."""
    return record.model.weights.num_tokens if record.model.weights else None


def trained_length(record: Record, trainings: Iterable[Record]) -> int | None:
    """Return the sequence length of the training of a record's weights; None if unknown or not one number."""
    weights = record.model.weights
    if weights is None:
        return None
    known = [each for each in trainings if each.model.weights]
    found = [
        each for each in known if each.model.weights and each.model.weights.fingerprint == weights.fingerprint
    ]
    wanted = record.model.name, instance_of(record), weights.num_tokens
    found = found or [
        each for each in known if (each.model.name, instance_of(each), num_trained_tokens(each)) == wanted
    ]
    lengths = {each.point.context_len for each in found}
    return lengths.pop() if len(lengths) == 1 else None


def accuracy(record: Record) -> tuple[float, int] | None:
    """Return the share of right answers and the number of questions; None unless the record has both."""
    share, documents = record.metrics.get("acc"), record.documents
    if share is None or documents is None or not documents.num_documents or not 0 <= share.value <= 1:
        return None
    return share.value, documents.num_documents


def group(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Return records or other items by a key, in their order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


@dataclass(frozen=True)
class Lineup:
    """Models that are shown together, in the order in which they are shown.

    Attributes:
        models: Names, baselines last.
        reference: The baseline that the others are compared with; None without a baseline.
        labels: A readable name of each.
        architectures: The architecture of each.
        refusals: Why a model is not compared with the reference, by model.
    """

    models: tuple[str, ...]
    reference: str | None
    labels: Mapping[str, str]
    architectures: Mapping[str, str]
    refusals: Mapping[str, str] = field(default_factory=dict)

    @property
    def challengers(self) -> tuple[str, ...]:
        """Models that are compared with the reference."""
        if self.reference is None:
            return ()
        return tuple(name for name in self.models if name != self.reference and name not in self.refusals)

    def named(self, model: str) -> str:
        """Return the name of a model in a sentence: 'RetNet', 'the Transformer', 'the fused Transformer'."""
        article = "the " if is_baseline(self.architectures[model]) else ""
        return f"{article}{self.labels[model]}"


def lineup(records: Sequence[Record]) -> Lineup:
    """Return the models of these records."""
    infos = {record.model.name: record.model for record in records}
    kinds = {name: info.architecture for name, info in infos.items()}
    weak = {name for name, info in infos.items() if concatenates_cache(info.architecture, info.config)}
    places = {name: place for place, name in enumerate(registered())}

    def place(name: str) -> tuple[bool, int, bool, bool, str]:
        kind = kinds[name]
        return is_baseline(kind), places.get(kind, len(places)), name in weak, name != kind, name

    architectures = {name: kinds[name] for name in sorted(kinds, key=place)}
    baselines = [name for name, kind in architectures.items() if is_baseline(kind)]
    reference = baselines[0] if baselines else None
    labels = _labels(architectures, weak)
    labels |= {
        record.model.name: f"{record.model.name} (unmatched)" for record in records if not is_matched(record)
    }
    return Lineup(tuple(architectures), reference, labels, architectures, _refusals(records, reference))


def _labels(architectures: Mapping[str, str], weak: Container[str]) -> dict[str, str]:
    """Return a readable name of each model; of the weak ones it says that their cache is concatenated."""
    kinds, labels = list(architectures.values()), {}
    for name, kind in architectures.items():
        label = _own_label(kind, name) if kinds.count(kind) > 1 else title_of(kind)
        labels[name] = f"{label} (concat cache)" if name in weak else label
    return labels


def _own_label(architecture: str, name: str) -> str:
    """Name a model among others of its architecture: 'chunkwise RetNet', 'RetNet (wide)'.

    The name of the architecture may begin or end the model's: retnet_chunkwise, gated_retnet.
    """
    own = name.removeprefix(f"{architecture}_").removesuffix(f"_{architecture}")
    title = title_of(architecture)
    if name == architecture:
        return title
    return f"{title} ({name})" if own == name else f"{own.replace('_', ' ')} {title}"


def is_matched(record: Record) -> bool:
    """Return whether the model of a record was made to match a size, as models of other libraries are not."""
    return _is_matched(record.model)


@by_parts
def _is_matched(model: ModelInfo) -> bool:
    return recorded.is_matched({**model.config, "architecture": model.architecture})


def _refusals(records: Sequence[Record], reference: str | None) -> dict[str, str]:
    """Return why models are matched with the reference at no size that both have, or at none at all."""
    by_size = {(record.model.name, record.model.size): record for record in records}
    reasons: dict[str, list[str | None]] = {}
    for (name, size), record in by_size.items():
        if name != reference and (str(reference), size) in by_size:
            reasons.setdefault(name, []).append(mismatch(record, by_size[str(reference), size]))
    own = {record.model.name: UNMATCHED for record in records if not is_matched(record)}
    refused = {name: str(found[0]) for name, found in reasons.items() if all(found)}
    return refused | (own if reference is not None else {})


def mismatch(mine: Record, theirs: Record) -> str | None:
    """Return why two models are not matched: their parameters differ by more than `MAX_MISMATCH`; None if they are.

    Models of an experiment that allows a mismatch are compared all the same: one run refuses others. So are those of
    older records with one pair_id, which their experiment has matched.
    """
    if not (is_matched(mine) and is_matched(theirs)):
        return UNMATCHED
    is_older_pair = mine.pair_id is not None and mine.pair_id == theirs.pair_id
    is_allowed = all(fact(record, "allow_mismatch") for record in (mine, theirs))
    if is_older_pair or is_allowed or session_of(mine) == session_of(theirs):
        return None
    low, high = sorted(record.model.num_params_nonembedding for record in (mine, theirs))
    if high - low <= MAX_MISMATCH * high:
        return None
    return (
        f"the models are not matched: {low:,} and {high:,} parameters without embedding and head differ by "
        f"{format_percent((high - low) / high)}, more than {format_percent(MAX_MISMATCH)}"
    )


def noted_trained_len(record: Record) -> int:
    """Return the length of the training examples of a record's model; 0 where the record does not note it."""
    found = fact(record, "trained_len")
    return found if isinstance(found, int) else 0


def length_ratio(record: Record) -> float:
    """Return the length of a record's examples over the trained length; 0 where that is not known."""
    trained = noted_trained_len(record)
    return record.point.context_len / trained if trained else 0.0
