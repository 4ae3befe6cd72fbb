"""Identity of a record in the report: its task point and its model instance; and facts that it states."""

from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, TypeVar

from retbench.architectures import recorded
from retbench.records.record import Record
from retbench.report.wording import file_stem
from retbench.units import format_size, format_tokens
from retbench.workloads.workload import WORKLOADS, Scores

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

CostPoint = tuple[int, int]
"""Batch size and context length at which a cost is measured."""


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
    return recorded.state_bytes(record.model, dtype, record.point.context_len)


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


def noted_trained_len(record: Record) -> int:
    """Return the length of the training examples of a record's model; 0 where the record does not note it."""
    found = fact(record, "trained_len")
    return found if isinstance(found, int) else 0


def length_ratio(record: Record) -> float:
    """Return the length of a record's examples over the trained length; 0 where that is not known."""
    trained = noted_trained_len(record)
    return record.point.context_len / trained if trained else 0.0
