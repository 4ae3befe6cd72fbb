"""How language quality is measured: which text or tasks, how documents are cut, how far a model sees."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from retbench.strict import Strict

Protocol = Literal["whole", "strided", "last"]
"""How documents are given to a model for their perplexity.

whole: each document from its beginning, its first `context_len` tokens in one pass; a retention state is streamed.
strided: windows in which a model sees `context_len` tokens, `stride` apart; each token is scored once, with more than
    `context_len - stride` tokens before it but at the document's beginning.
last: chunks of `CHUNK_LEN` tokens, the last `SCORED_LEN` of each scored by a model that sees the last `context_len` of
    the chunk, these included (arXiv:2307.08621, Table 8).
"""

FEWSHOT_SEED = 1234
"""lm-eval's own default for the draw of the examples before a document."""

CHUNK_LEN = 2048
SCORED_LEN = 128

Split = Literal["train", "validation", "test", "all"]
Length = Annotated[int, Field(ge=1)]


def without_repeats(values: tuple[object, ...]) -> tuple[object, ...]:
    """The values; ValueError where one stands in it twice."""
    if len(set(values)) < len(values):
        raise ValueError("a value stands in it twice; a point is measured once")
    return values


class PerplexitySpec(Strict):
    """A `[profiles.P.workloads.perplexity]` table: every corpus by every protocol at each of its context lengths."""

    corpora: tuple[str, ...] = Field(min_length=1)
    """Names that `load_corpus` takes."""
    split: Split = "test"
    tokenizer: str | None = None
    """For models whose weights come without one; a trained model is given its own."""
    protocols: dict[Protocol, Annotated[tuple[Length, ...], Field(min_length=1)]] = Field(min_length=1)
    """Context lengths of each protocol."""
    stride: int | None = Field(default=None, ge=1)
    """Of the protocol `strided`; half the context when absent."""
    limit: int | None = Field(default=None, ge=1)
    """The first so many documents of the split."""
    max_document_tokens: int | None = Field(default=None, ge=2)
    """Of each document the first so many tokens; for the protocol `whole` its context length says so too."""

    _distinct = field_validator("corpora")(without_repeats)

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

    def stride_of(self, context_len: int) -> int:
        """Stride of the protocol `strided` at a context length."""
        return self.stride or max(1, context_len // 2)


class ZeroshotSpec(Strict):
    """A `[profiles.P.workloads.zeroshot]` table: every task with every number of examples before the question."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names in `retbench list --tasks`."""
    num_fewshot: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    fewshot_seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Of the draw of the examples: that of lm-eval's `--seed`, `FEWSHOT_SEED` when absent."""
    add_bos: bool = False
    """Begin every context with the tokenizer's first-token mark, as models trained so need it: lm-eval's
    `add_bos_token=True`. Its default is what the tokenizer of transformers does by itself; here it is false."""
    context_len: Length = 2048
    """Tokens that a model sees at most; of a longer prompt the last so many."""
    limit: int | None = Field(default=None, ge=1)
    """The first so many documents of a task."""
    tokenizer: str | None = None
    """For models whose weights come without one; a trained model is given its own."""

    _distinct = field_validator("tasks", "num_fewshot")(without_repeats)

    @model_validator(mode="after")
    def _draws(self) -> "ZeroshotSpec":
        if self.fewshot_seed is not None and not any(self.num_fewshot):
            raise ValueError(
                f"fewshot_seed is {self.fewshot_seed}, and with num_fewshot = {list(self.num_fewshot)} no examples are "
                "drawn; remove it, or ask for examples"
            )
        return self
