"""Tables of workloads in a profile: grids of points, and on which text and tasks quality is measured."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from retbench.errors import ConfigError
from retbench.records.record import Point
from retbench.records.record import Protocol as Protocol
from retbench.strict import Strict
from retbench.units import read_tokens

FEWSHOT_SEED = 1234
"""Default of lm-eval for drawing the few-shot examples."""

CHUNK_LEN = 2048
SCORED_LEN = 128
"""Tokens of a chunk and of its scored end in the protocol `last`."""

MAX_LENGTH = 2**24
"""Longest context and largest batch, so that every number of tokens and of bytes fits into 64 bits."""

Split = Literal["train", "validation", "test", "all"]


def _tokens(value: object) -> object:
    return read_tokens(value) if isinstance(value, str) else value


Length = Annotated[int, BeforeValidator(_tokens), Field(ge=1, le=MAX_LENGTH)]
"""A number of tokens or sequences: 8192 or "8K"."""
Count = Annotated[int, Field(ge=1, lt=2**31)]


def without_repeats(values: tuple[object, ...]) -> tuple[object, ...]:
    """Return the values; ValueError where one is repeated."""
    if len(set(values)) < len(values):
        raise ValueError("a value stands in it twice; a point is measured once")
    return values


def _as_several(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


Lengths = Annotated[
    tuple[Length, ...],
    BeforeValidator(_as_several, json_schema_input_type=int | str | list[int | str]),
    AfterValidator(without_repeats),
    Field(min_length=1, max_length=256),
]
"""One number of tokens, or several."""


class WorkloadSpec(Strict):
    """Base of the tables `[profiles.P.workloads.NAME]`."""

    def points(self) -> Iterator[Point]:
        """Yield the points at which each model is measured."""
        raise NotImplementedError

    def limited(self, limit: int) -> Self:
        """Return the table with the first documents, prompts or examples only, as `--limit` asks.

        Raises:
            ConfigError: it has no field `limit`.
        """
        if "limit" not in type(self).model_fields:
            raise ConfigError(
                f"--limit {limit}: {type(self).__name__} has no field `limit` and does not override `limited`, so that "
                "all of it would be measured. Leave --limit out."
            )
        return self.model_copy(update={"limit": limit})


class GridSpec(WorkloadSpec):
    """The table of a workload that measures cost: every batch size at every context length."""

    context_len: tuple[Length, ...] = Field(min_length=1, max_length=256)
    batch_size: tuple[Length, ...] = Field(default=(1,), min_length=1, max_length=256)

    _distinct = field_validator("context_len", "batch_size")(without_repeats)

    def points(self) -> Iterator[Point]:
        """Yield the points, context lengths innermost."""
        for batch_size in self.batch_size:
            for context_len in self.context_len:
                yield Point(batch_size=batch_size, context_len=context_len)

    def limited(self, limit: int) -> Self:
        """Keep the first context lengths."""
        return self.model_copy(update={"context_len": self.context_len[:limit]})


class EvaluationSpec(WorkloadSpec):
    """Fields that every table of a workload that measures quality has."""

    limit: Count | None = None
    """Documents of the split or task that are used: the first ones."""
    tokenizer: str | None = None
    """For models whose weights come without a tokenizer; a trained model is given its own."""


class TextSpec(EvaluationSpec):
    """Fields of a table that measures the loss on the documents of corpora."""

    corpora: tuple[str, ...] = Field(min_length=1)
    """Names that `load_corpus` takes."""
    split: Split = "test"

    _distinct_corpora = field_validator("corpora")(without_repeats)


class PerplexitySpec(TextSpec):
    """The table `perplexity`: every corpus by every protocol at each of its context lengths."""

    protocols: dict[Protocol, Annotated[tuple[Length, ...], Field(min_length=1)]] = Field(min_length=1)
    """Context lengths of each protocol."""
    stride: Length | None = None
    """Tokens between two windows of the protocol `strided`; half the context when absent."""
    max_document_tokens: int | None = Field(default=None, ge=2, lt=2**31)
    """Tokens of each document that are used, the first ones; the context length limits the protocol `whole` too."""

    @model_validator(mode="after")
    def _fits(self) -> "PerplexitySpec":
        for lengths in self.protocols.values():
            without_repeats(lengths)
        strided = self.protocols.get("strided", ())
        if self.stride is not None and (not strided or self.stride > min(strided)):
            raise ValueError(
                f"stride is {self.stride}, more than the context of {min(strided)}: tokens would be left out"
                if strided
                else f"stride is {self.stride}, and without the protocol 'strided' it does nothing"
            )
        if not all(SCORED_LEN < length <= CHUNK_LEN for length in self.protocols.get("last", ())):
            raise ValueError(
                f"the protocol 'last' scores {SCORED_LEN} tokens of chunks of {CHUNK_LEN}: its context lengths are "
                f"more than {SCORED_LEN} and at most {CHUNK_LEN}"
            )
        return self

    def points(self) -> Iterator[Point]:
        """Yield the points of each corpus."""
        for corpus in self.corpora:
            for protocol, lengths in self.protocols.items():
                for context_len in lengths:
                    stride = (self.stride or max(1, context_len // 2)) if protocol == "strided" else None
                    yield Point(
                        batch_size=1, context_len=context_len, task=corpus, protocol=protocol, stride=stride
                    )


class RecallSlicesSpec(TextSpec):
    """The table `recall_slices`: every corpus, by the words of its documents that complete a rare pair."""

    document_bytes: tuple[Annotated[Length, Field(ge=64)], ...] = Field(default=(8192,), min_length=1)
    """Bytes of each document that are used, the first ones. They are bytes and not tokens, so that models with
    different tokenizers read the same text."""
    counted_in: str | None = None
    """Corpus in whose split `train` pairs are counted; the other documents that are measured when absent."""
    max_count: int = Field(default=0, ge=0, lt=2**31)
    """Occurrences there of a pair that is still rare."""

    _distinct = field_validator("document_bytes")(without_repeats)

    def points(self) -> Iterator[Point]:
        """Yield the points of each corpus."""
        for corpus in self.corpora:
            for num_bytes in self.document_bytes:
                yield Point(batch_size=1, context_len=num_bytes, task=corpus)


HAYSTACKS = ("noise", "needles", "short")
"""Haystacks that are generated; any other name is that of a corpus."""


class NeedleSpec(WorkloadSpec):
    """The table `needle`: every haystack at every context length, with a needle at every depth."""

    context_len: tuple[Length, ...] = Field(min_length=1, max_length=256)
    """Tokens of a prompt with its answer."""
    haystacks: tuple[str, ...] = Field(default=("noise",), min_length=1)
    """Names of `HAYSTACKS`, or names that `load_corpus` takes."""
    num_depths: int = Field(default=11, ge=2, le=1000)
    """Depths from the beginning of the text to its end."""
    limit: Count = 20
    """Prompts at each depth."""
    tokenizer: str | None = None
    """For models whose weights come without a tokenizer; a trained model is given its own."""

    _distinct = field_validator("context_len", "haystacks")(without_repeats)

    def points(self) -> Iterator[Point]:
        """Yield the points of each haystack."""
        for haystack in self.haystacks:
            for context_len in self.context_len:
                yield Point(batch_size=1, context_len=context_len, task=haystack)


class ZeroshotSpec(EvaluationSpec):
    """The table `zeroshot`: every task with every number of few-shot examples."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names in `retbench list --tasks`."""
    num_fewshot: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = Field(default=(0,), min_length=1)
    fewshot_seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Seed for drawing the examples, as lm-eval's `--seed`; `FEWSHOT_SEED` when absent."""
    add_bos: bool = False
    """Begin every context with the tokenizer's first-token mark, which models trained with it need: lm-eval's
    `add_bos_token=True`. lm-eval's default depends on the tokenizer; here it is false. lm-eval's also scores the mark
    as a part of whole texts (`wikitext`); here it never is."""
    context_len: Lengths = (2048,)
    """Tokens that a model sees at most; a longer prompt loses its beginning, and is an error in a task of recall.
    RULER's prompts are generated for this length. Every task is run at every length."""

    _distinct = field_validator("tasks", "num_fewshot")(without_repeats)

    @model_validator(mode="after")
    def _draws(self) -> "ZeroshotSpec":
        if self.fewshot_seed is not None and not any(self.num_fewshot):
            raise ValueError(
                f"fewshot_seed is {self.fewshot_seed}, and with num_fewshot = {list(self.num_fewshot)} no examples are "
                "drawn; remove it, or ask for examples"
            )
        return self

    def points(self) -> Iterator[Point]:
        """Yield the points of each task."""
        for task in self.tasks:
            for context_len in self.context_len:
                for num_fewshot in self.num_fewshot:
                    yield Point(batch_size=1, context_len=context_len, task=task, num_fewshot=num_fewshot)
