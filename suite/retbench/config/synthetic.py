"""Synthetic tasks: the settings of generated examples, and the tables that train and measure models on them.

`retbench.data.synthetic` generates the examples. Nothing here imports numpy or torch.
"""

import hashlib
import json
from collections.abc import Iterator
from statistics import fmean
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from retbench.config.evaluation import Count, Length, WorkloadSpec, without_repeats
from retbench.records.record import Point
from retbench.strict import Strict

GENERATOR_VERSION = 1
"""Increased when the same settings give other examples."""

LEARNT_RATIO = 2.0
"""A model has learnt a task once its accuracy is this many times that of guessing among the values in the text."""

MAX_VOCAB = 2**16
"""Largest vocabulary."""

Power = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
NumPairs = Annotated[int, Field(ge=2, le=2**16)]


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
        settings = self.model_dump(mode="json", include=set(Mqar.model_fields))
        text = f"{GENERATOR_VERSION} {json.dumps(settings, sort_keys=True)}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

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


class TaskSpec(Mqar):
    """The table `[profiles.NAME.training.task]`: a model is trained on fresh examples, on their answers only."""

    name: Literal["mqar"]
    num_pairs: tuple[NumPairs, ...] = Field(min_length=1)
    """Numbers of pairs of the examples, in turn."""
    stop_accuracy: float | None = Field(default=None, gt=0, le=1)
    """End a run once its accuracy on the validation examples is this high for every number of pairs."""

    _distinct = field_validator("num_pairs")(without_repeats)

    @property
    def guess_accuracy(self) -> float:
        """Accuracy of a guess among the values of an example, mean over the numbers of pairs."""
        return fmean(1 / count for count in self.num_pairs)

    def is_learnt(self, accuracy: float) -> bool:
        """Return whether an accuracy shows that keys are used; a run that never gets there has not learnt the task."""
        return accuracy >= min(1.0, LEARNT_RATIO * self.guess_accuracy)


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

    def limited(self, limit: int) -> Self:
        """Keep the first examples."""
        return self.model_copy(update={"limit": limit})
