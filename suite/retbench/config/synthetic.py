"""Synthetic tasks: the settings of generated examples, and the tables that train and measure models on them.

`retbench.data.synthetic` generates the examples. Nothing here imports numpy or torch.
"""

import hashlib
import json
from collections.abc import Iterator
from statistics import fmean
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from retbench.config.evaluation import MAX_LENGTH, Count, Length, WorkloadSpec, without_repeats
from retbench.records.record import Point
from retbench.strict import Strict

GENERATOR_VERSION = 1
"""Increased when the same settings give other examples."""

LEARNT_RATIO = 2.0
"""A model has learnt a task once its accuracy is this many times that of guessing."""

MAX_VOCAB = 2**16
"""Largest vocabulary."""

Power = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
NumPairs = Annotated[int, Field(ge=2, le=2**16)]
LengthTaskName = Literal["copy", "induction", "selective_copy"]

NUM_SPECIAL_TOKENS = 4
"""Tokens of `length_recall` that are no symbols: the blank, and one per task that asks for answers."""

SHORTEST_COPY = 4
"""Symbols of the shortest string that is copied in training."""

SHORTEST_NEEDLE = 29
"""Bytes of the longest needle with its question and its answer, without a haystack."""


def _fingerprint(settings: Strict, kind: type[Strict]) -> str:
    """Return 12 hex digits over the fields of `kind`, equal only for equal examples."""
    fields = settings.model_dump(mode="json", include=set(kind.model_fields) - {"stop_accuracy"})
    text = f"{GENERATOR_VERSION} {json.dumps(fields, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Mqar(Strict):
    """Examples of multi-query associative recall: which text they are made of.

    Source: Zoology (arXiv:2312.04927), whose generator `multiquery_ar` has the same settings.
    """

    name: Literal["mqar"] = "mqar"
    vocab_size: int = Field(default=512, ge=8, le=MAX_VOCAB)
    """Tokens: 0 is the filler, the others of the lower half are keys, and those of the upper half values."""
    power: Power = 0.01
    """A key is asked in the x-th place after the pairs with a probability in proportion to x^(power - 1)."""
    random_filler: bool = False
    """Fill the rest with tokens of the whole vocabulary in place of 0, as Zoology's later experiments do."""

    @property
    def fingerprint(self) -> str:
        """12 hex digits over the settings, equal only for equal examples."""
        return _fingerprint(self, Mqar)

    def check(self, num_pairs: int, seq_len: int) -> None:
        """Raise ValueError if examples of so many pairs and tokens cannot be made."""
        if seq_len % 2:
            raise ValueError(
                f"seq_len is {seq_len}; examples are made of pairs of tokens, so it must be even"
            )
        if 4 * num_pairs > seq_len:
            raise ValueError(
                f"{num_pairs} pairs and a question for each take {4 * num_pairs} tokens, and seq_len is {seq_len}"
            )
        if num_pairs >= self.vocab_size // 2:
            raise ValueError(
                f"{num_pairs} pairs need as many keys, and vocab_size {self.vocab_size} has {self.vocab_size // 2 - 1}"
            )


class LengthRecall(Strict):
    """Examples of copying, induction and selective copying, of any length.

    Sources: copying as Jelassi et al. (arXiv:2402.01032), induction heads and selective copying as Mamba
    (arXiv:2312.00752).
    """

    name: Literal["length_recall"] = "length_recall"
    vocab_size: int = Field(default=30, ge=NUM_SPECIAL_TOKENS + 2, le=MAX_VOCAB)
    """Tokens: 4 special ones, and the symbols."""
    num_selected: int = Field(default=8, ge=1, le=2**16)
    """Symbols among the blanks of selective copying, at every length."""

    @property
    def fingerprint(self) -> str:
        """12 hex digits over the settings, equal only for equal examples."""
        return _fingerprint(self, LengthRecall)

    @property
    def num_symbols(self) -> int:
        """Tokens that are symbols."""
        return self.vocab_size - NUM_SPECIAL_TOKENS

    def check(self, task: LengthTaskName, seq_len: int) -> None:
        """Raise ValueError if examples of a task and so many tokens cannot be made."""
        if task == "copy" and (seq_len % 2 or seq_len < 2 * SHORTEST_COPY):
            raise ValueError(
                f"seq_len is {seq_len}; a string and its copy take an even number of tokens, at least "
                f"{2 * SHORTEST_COPY}"
            )
        if task == "induction" and seq_len < 3:
            raise ValueError(f"seq_len is {seq_len}; an example of induction takes 3 tokens")
        if task == "selective_copy" and seq_len < 2 * self.num_selected:
            raise ValueError(
                f"{self.num_selected} symbols and their copy take {2 * self.num_selected} tokens, and seq_len is "
                f"{seq_len}"
            )


class _Task(Strict):
    """Fields of every table `[profiles.NAME.training.task]`: models are trained on fresh examples, on answers only."""

    stop_accuracy: float | None = Field(default=None, gt=0, le=1)
    """End a run once its accuracy on the validation examples is this high for every kind of example."""

    @property
    def kinds(self) -> tuple[int, ...] | tuple[LengthTaskName, ...]:
        """Kinds of examples, which take turns."""
        raise NotImplementedError

    @property
    def guess_accuracy(self) -> float:
        """Accuracy of a guess, mean over the kinds of examples."""
        raise NotImplementedError

    def check_length(self, seq_len: int) -> None:
        """Raise ValueError if examples of so many tokens cannot be made."""
        raise NotImplementedError

    def is_learnt(self, accuracy: float) -> bool:
        """Return whether an accuracy is beyond guessing; a run that never gets there has not learnt the task."""
        return accuracy >= min(1.0, LEARNT_RATIO * self.guess_accuracy)


class MqarTask(_Task, Mqar):
    """The table `[profiles.NAME.training.task]` with name = "mqar"."""

    name: Literal["mqar"]
    num_pairs: tuple[NumPairs, ...] = Field(min_length=1)
    """Numbers of pairs of the examples, in turn."""

    _distinct = field_validator("num_pairs")(without_repeats)

    @property
    def kinds(self) -> tuple[int, ...]:
        """Numbers of pairs."""
        return self.num_pairs

    @property
    def guess_accuracy(self) -> float:
        """Accuracy of a guess among the values of an example, mean over the numbers of pairs."""
        return fmean(1 / count for count in self.num_pairs)

    def check_length(self, seq_len: int) -> None:
        """Raise ValueError if examples of so many tokens cannot be made."""
        for num_pairs in self.num_pairs:
            self.check(num_pairs, seq_len)


class LengthRecallTask(_Task, LengthRecall):
    """The table `[profiles.NAME.training.task]` with name = "length_recall"."""

    name: Literal["length_recall"]
    tasks: tuple[LengthTaskName, ...] = Field(default=get_args(LengthTaskName), min_length=1)
    """Tasks of the examples, in turn."""

    _distinct = field_validator("tasks")(without_repeats)

    @property
    def kinds(self) -> tuple[LengthTaskName, ...]:
        """Tasks."""
        return self.tasks

    @property
    def guess_accuracy(self) -> float:
        """Accuracy of a guess among the symbols."""
        return 1 / self.num_symbols

    def check_length(self, seq_len: int) -> None:
        """Raise ValueError if examples of so many tokens cannot be made."""
        for task in self.tasks:
            self.check(task, seq_len)


class NeedleTask(_Task):
    """The table `[profiles.NAME.training.task]` with name = "needle": prompts of the haystack `short`, in bytes."""

    name: Literal["needle"]

    @property
    def vocab_size(self) -> int:
        """Tokens of the tokenizer `bytes`."""
        return 257

    @property
    def fingerprint(self) -> str:
        """12 hex digits, equal only for equal examples."""
        return _fingerprint(self, NeedleTask)

    @property
    def kinds(self) -> tuple[int, ...]:
        """One kind of examples."""
        return (0,)

    @property
    def guess_accuracy(self) -> float:
        """Accuracy of a guess of three digits, between a space and the end of the line, which are always the same.

        The first digit is never 0.
        """
        return (2 + 1 / 9 + 2 / 10) / 5

    def check_length(self, seq_len: int) -> None:
        """Raise ValueError if examples of so many tokens cannot be made."""
        if seq_len < SHORTEST_NEEDLE:
            raise ValueError(
                f"seq_len is {seq_len}; a needle, its question and its answer take up to {SHORTEST_NEEDLE} bytes"
            )


TaskSpec = MqarTask | LengthRecallTask | NeedleTask
"""A synthetic task to train on."""


class MqarSpec(WorkloadSpec):
    """The table `mqar`: a test set for every number of pairs at every length."""

    num_pairs: dict[Length, Annotated[tuple[NumPairs, ...], Field(min_length=1)]] = Field(min_length=1)
    """Numbers of pairs of the examples, by the tokens of an example."""
    limit: Count = 1000
    """Examples of a test set."""
    power: Power = 0.01
    random_filler: bool = False
    """Both must be those of the training; see `Mqar`. The vocabulary is that of the model."""

    @model_validator(mode="after")
    def _fits(self) -> "MqarSpec":
        task = self.task_of(MAX_VOCAB)
        for seq_len, counts in self.num_pairs.items():
            without_repeats(counts)
            for num_pairs in counts:
                task.check(num_pairs, seq_len)
        return self

    def task_of(self, vocab_size: int) -> Mqar:
        """Return the settings of the examples for a model's vocabulary."""
        return Mqar(vocab_size=vocab_size, power=self.power, random_filler=self.random_filler)

    def points(self) -> Iterator[Point]:
        """Yield the points, numbers of pairs innermost."""
        for seq_len, counts in self.num_pairs.items():
            for num_pairs in counts:
                yield Point(batch_size=1, context_len=seq_len, task="mqar", num_pairs=num_pairs)


class LengthRecallSpec(WorkloadSpec):
    """The table `length_recall`: a test set for every task at every multiple of the trained length."""

    trained_len: Length
    """Tokens of the examples of the training; models that were trained at another length are refused."""
    multiples: tuple[Annotated[int, Field(ge=1, le=2**16)], ...] = Field(
        default=(1, 2, 4, 8, 16), min_length=1
    )
    """Lengths of the test examples over the trained length."""
    tasks: tuple[LengthTaskName, ...] = Field(default=get_args(LengthTaskName), min_length=1)
    """Tasks that are tested. One that was not trained on gets no verdict, as none of the models has learnt it."""
    num_selected: int = Field(default=8, ge=1, le=2**16)
    """It must be that of the training; see `LengthRecall`. The vocabulary is that of the model."""
    limit: Count = 1000
    """Examples of a test set."""

    _distinct = field_validator("multiples", "tasks")(without_repeats)

    @model_validator(mode="after")
    def _fits(self) -> "LengthRecallSpec":
        examples = self.examples_of(MAX_VOCAB)
        for task in self.tasks:
            examples.check(task, self.trained_len)
        longest = self.trained_len * max(self.multiples)
        if longest > MAX_LENGTH:
            raise ValueError(
                f"{max(self.multiples)} times {self.trained_len} tokens are more than {MAX_LENGTH}"
            )
        return self

    def examples_of(self, vocab_size: int) -> LengthRecall:
        """Return the settings of the examples for a model's vocabulary."""
        return LengthRecall(vocab_size=vocab_size, num_selected=self.num_selected)

    def points(self) -> Iterator[Point]:
        """Yield the points, lengths innermost."""
        for task in self.tasks:
            for multiple in self.multiples:
                yield Point(batch_size=1, context_len=multiple * self.trained_len, task=task)
