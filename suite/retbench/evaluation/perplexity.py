"""Perplexity of a corpus, document by document, with exact counts of what was scored.

A document is read after the tokenizer's token for the beginning of a text, so that its first token is scored too. No
window crosses from one document to the next.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from retbench.config.evaluation import CHUNK_LEN, SCORED_LEN, Protocol
from retbench.data.corpora import Document
from retbench.data.tokenizers import Tokenizer, check_vocabulary, prefix_token
from retbench.errors import ConfigError
from retbench.evaluation.losses import last_losses, streamed_losses, strided_losses
from retbench.evaluation.progress import Report, tell_nobody
from retbench.models.decoder import Decoder

FIRST_BUCKET = 128
"""Positions of the first bucket; each of the others ends at twice the position of the one before it."""


class Reading(NamedTuple):
    """How documents are given to a model; see `protocols.Protocol`."""

    protocol: Protocol
    context_len: int
    stride: int | None = None
    max_document_tokens: int | None = None


@dataclass(frozen=True)
class DocumentLoss:
    """What one document costs a model.

    Attributes:
        name: The document.
        num_tokens: Tokens that were scored.
        num_bytes: UTF-8 bytes of their text; None where it may begin or end within a character.
        num_words: Words of their text, as lm-eval counts them, the parts between white space; None as above.
        nll_nats: Sum of the negative log-likelihoods.
    """

    name: str
    num_tokens: int
    num_bytes: int | None
    num_words: int | None
    nll_nats: float


@dataclass(frozen=True)
class CorpusLoss:
    """What a corpus costs a model.

    Attributes:
        documents: Each document of which something was scored.
        bucket_ends: Last position of each bucket, from 1; () for a protocol in which the position says nothing.
        bucket_nats: Sum of the negative log-likelihoods of each bucket.
        bucket_tokens: Tokens of each bucket.
    """

    documents: tuple[DocumentLoss, ...]
    bucket_ends: tuple[int, ...] = ()
    bucket_nats: tuple[float, ...] = ()
    bucket_tokens: tuple[int, ...] = ()

    @property
    def nll_nats(self) -> float:
        """Sum over all documents."""
        return math.fsum(document.nll_nats for document in self.documents)

    @property
    def num_tokens(self) -> int:
        """Tokens that were scored."""
        return sum(document.num_tokens for document in self.documents)

    @property
    def num_bytes(self) -> int | None:
        """Bytes that were scored."""
        return _sum(document.num_bytes for document in self.documents)

    @property
    def num_words(self) -> int | None:
        """Words that were scored."""
        return _sum(document.num_words for document in self.documents)


def read_corpus(
    model: Decoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    reading: Reading,
    report: Report = tell_nobody,
) -> CorpusLoss:
    """Score documents.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        documents: The documents.
        reading: How they are given to the model.
        report: Told of every pass.

    Raises:
        ConfigError: the tokenizer does not fit the model or cannot begin a text, or there is nothing to score.
    """
    check_vocabulary(tokenizer, model.config.vocab_size)
    prefix = prefix_token(tokenizer)
    found: list[DocumentLoss] = []
    positions: list[np.ndarray[Any, np.dtype[np.float64]]] = []
    for document in documents:
        losses, tokens = _document_losses(model, prefix, tokenizer, document.text, reading, report)
        if not losses.size:
            continue
        text = tokenizer.decode(tokens) if tokens else None
        found.append(
            DocumentLoss(
                document.name,
                losses.size,
                len(text.encode()) if text else None,
                len(re.split(r"\s+", text)) if text else None,
                math.fsum(losses.tolist()),
            )
        )
        if reading.protocol == "whole":
            positions.append(losses)
    if not found:
        raise ConfigError(
            f"no document is long enough for the protocol '{reading.protocol}' at context_len "
            f"{reading.context_len:,}. Choose another corpus, or a shorter context."
        )
    return CorpusLoss(tuple(found), *_buckets(positions))


def _document_losses(
    model: Decoder, prefix: int, tokenizer: Tokenizer, text: str, reading: Reading, report: Report
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[int]]:
    """Losses of what is scored of a text, and its tokens, if these are a text of their own."""
    tokens = tokenizer.encode(text)
    limits = [reading.max_document_tokens, reading.context_len if reading.protocol == "whole" else None]
    tokens = cut(tokenizer, tokens, min([len(tokens), *(limit for limit in limits if limit)]))
    if not tokens:
        return np.empty(0), []
    row = torch.tensor([prefix, *tokens])
    match reading.protocol:
        case "whole":
            losses = streamed_losses(model, row[None], report=report)[0]
        case "strided":
            stride = reading.stride or max(1, reading.context_len // 2)
            losses = strided_losses(model, row, context_len=reading.context_len, stride=stride, report=report)
        case "last":
            scored = last_losses(
                model,
                row[1:],
                chunk_len=CHUNK_LEN,
                context_len=reading.context_len,
                scored_len=SCORED_LEN,
                report=report,
            )
            losses = scored.flatten()
            tokens = []
    return losses.double().numpy(), tokens


def cut(tokenizer: Tokenizer, tokens: list[int], length: int) -> list[int]:
    """The first `length` tokens, or up to three fewer where they would end within a character."""
    if length >= len(tokens):
        return tokens
    for end in range(length, max(0, length - 4), -1):
        if not tokenizer.decode(tokens[:end][-8:]).endswith("\ufffd"):
            return tokens[:end]
    return tokens[:length]  # the text itself has such characters


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum; None where a value is."""
    found = list(values)
    return None if None in found else sum(value for value in found if value is not None)


def _buckets(
    losses: list[np.ndarray[Any, np.dtype[np.float64]]],
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
    """Ends, sums and counts of the buckets of positions that the documents reach."""
    if not losses:
        return (), (), ()
    longest = max(len(row) for row in losses)
    sums, counts = np.zeros(longest), np.zeros(longest, dtype=np.int64)
    for row in losses:
        sums[: len(row)] += row
        counts[: len(row)] += 1
    ends, end = [], FIRST_BUCKET
    while end < longest:
        ends.append(end)
        end *= 2
    parts = np.split(np.stack([sums, counts]), ends, axis=1)
    ends.append(longest)
    return (
        tuple(ends),
        tuple(float(part[0].sum()) for part in parts),
        tuple(int(part[1].sum()) for part in parts),
    )
