"""Perplexity of a corpus, document by document, with exact counts of the scored tokens, bytes and words.

A document follows the tokenizer's begin-of-text token, so that its first token is scored too. No window crosses from
one document to the next. Losses are negative log-likelihoods in float32 for every dtype of the model. Nothing is
padded: a recurrent state has no mask, and a padding token must not enter it.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from retbench.architectures.costs import PREFILL_SEGMENT
from retbench.config.evaluation import CHUNK_LEN, SCORED_LEN, Protocol
from retbench.data.corpora import Document
from retbench.data.tokenizers import Tokenizer, check_vocabulary, prefix_token
from retbench.errors import ConfigError
from retbench.evaluation import PassProgress, ignore_progress
from retbench.models.language_model import LanguageModel

BATCH_TOKENS = 8192
"""Maximum tokens of the windows of one pass; a longer window runs alone."""
FIRST_BUCKET = 128
"""Positions of the first bucket; every other bucket ends at twice the end of the one before it."""

Losses = npt.NDArray[np.float64]


class PerplexitySetup(NamedTuple):
    """Protocol by which documents are given to a model; see `config.evaluation.Protocol`."""

    protocol: Protocol
    context_len: int
    stride: int | None = None
    """Tokens between two windows of `strided`, which needs it."""
    max_document_tokens: int | None = None


@dataclass(frozen=True)
class DocumentLoss:
    """Loss of a model on one document.

    Attributes:
        name: Name of the document.
        num_tokens: Scored tokens.
        num_bytes: UTF-8 bytes of their text; None if the text may begin or end within a character, or was cut by a
            tokenizer that changes it.
        num_words: Words of their text, separated by white space as in lm-eval; None as above.
        nll_nats: Sum of the negative log-likelihoods.
    """

    name: str
    num_tokens: int
    num_bytes: int | None
    num_words: int | None
    nll_nats: float


@dataclass(frozen=True)
class CorpusLoss:
    """Loss of a model on a corpus.

    Attributes:
        documents: Each document with scored tokens.
        bucket_ends: Last position of each bucket, from 1; () if the protocol does not depend on the position.
        bucket_nats: Sum of the negative log-likelihoods of each bucket.
        bucket_tokens: Tokens of each bucket.
    """

    documents: tuple[DocumentLoss, ...]
    bucket_ends: tuple[int, ...] = ()
    bucket_nats: tuple[float, ...] = ()
    bucket_tokens: tuple[int, ...] = ()

    @property
    def nll_nats(self) -> float:
        """Sum of the negative log-likelihoods."""
        return math.fsum(document.nll_nats for document in self.documents)

    @property
    def num_tokens(self) -> int:
        """Scored tokens."""
        return sum(document.num_tokens for document in self.documents)

    @property
    def num_bytes(self) -> int | None:
        """Scored bytes, if defined for every document."""
        return _sum_defined([document.num_bytes for document in self.documents])

    @property
    def num_words(self) -> int | None:
        """Scored words, if defined for every document."""
        return _sum_defined([document.num_words for document in self.documents])


def _sum_defined(values: Sequence[int | None]) -> int | None:
    """Return the sum, or None if a value is None."""
    return None if None in values else sum(value for value in values if value is not None)


def score_corpus(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    setup: PerplexitySetup,
    report: PassProgress = ignore_progress,
) -> CorpusLoss:
    """Score documents, calling `report` after every pass.

    Raises:
        ConfigError: the tokenizer does not fit the model or cannot begin a text, or there is nothing to score.
    """
    check_vocabulary(tokenizer, model.config.vocab_size)
    prefix = prefix_token(tokenizer)
    found: list[DocumentLoss] = []
    by_position: list[Losses] = []
    for document in documents:
        losses, text = _document_losses(model, prefix, tokenizer, document.text, setup, report)
        if not losses.size:
            continue
        found.append(
            DocumentLoss(
                document.name,
                losses.size,
                len(text.encode()) if text else None,
                len(re.split(r"\s+", text)) if text else None,
                math.fsum(losses.tolist()),
            )
        )
        if setup.protocol == "whole":
            by_position.append(losses)
    if not found:
        raise ConfigError(
            f"no document is long enough for the protocol '{setup.protocol}' at context_len "
            f"{setup.context_len:,}. Choose another corpus, or a shorter context."
        )
    return CorpusLoss(tuple(found), *_buckets(by_position))


def _document_losses(
    model: LanguageModel,
    prefix: int,
    tokenizer: Tokenizer,
    text: str,
    setup: PerplexitySetup,
    report: PassProgress,
) -> tuple[Losses, str | None]:
    """Return the losses of a text, and the part of it that they belong to, or None if that is not known."""
    whole = tokenizer.encode(text)
    limits = [setup.max_document_tokens, setup.context_len if setup.protocol == "whole" else None]
    tokens = cut_tokens(tokenizer, whole, min([len(whole), *(limit for limit in limits if limit)]))
    if not tokens:
        return np.empty(0), None
    scored_text = text if len(tokens) == len(whole) else _beginning(tokenizer, tokens, text)
    row = torch.tensor([prefix, *tokens])
    match setup.protocol:
        case "whole":
            losses = streamed_losses(model, row[None], report=report)[0]
        case "strided":
            assert setup.stride is not None, "the protocol 'strided' needs a stride"
            losses = strided_losses(
                model, row, context_len=setup.context_len, stride=setup.stride, report=report
            )
        case "last":
            scored = last_losses(
                model,
                row[1:],
                chunk_len=CHUNK_LEN,
                context_len=setup.context_len,
                scored_len=SCORED_LEN,
                report=report,
            )
            losses = scored.flatten()
            scored_text = None
    return losses.double().numpy(), scored_text


def _beginning(tokenizer: Tokenizer, tokens: Sequence[int], text: str) -> str | None:
    """Return the beginning of a text that its first tokens stand for; None if the tokenizer changes the text.

    GPT-NeoX's, for example, composes accents (NFC): its tokens give back fewer bytes than the text has.
    """
    found = tokenizer.decode(tokens)
    return found if text.startswith(found) else None


def cut_tokens(tokenizer: Tokenizer, tokens: list[int], length: int) -> list[int]:
    """Return the first `length` tokens, or up to three fewer to end between characters."""
    if length >= len(tokens):
        return tokens
    for end in range(length, max(0, length - 4), -1):
        if not tokenizer.decode(tokens[:end][-8:]).endswith("\ufffd"):
            return tokens[:end]
    return tokens[:length]  # the text itself has such characters


def _buckets(losses: list[Losses]) -> tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
    """Return ends, sums and counts of the buckets of positions."""
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
    return (
        (*ends, longest),
        tuple(float(part[0].sum()) for part in parts),
        tuple(int(part[1].sum()) for part in parts),
    )


@torch.inference_mode()
def streamed_losses(
    model: LanguageModel,
    tokens: Tensor,
    *,
    segment_len: int = PREFILL_SEGMENT,
    report: PassProgress = ignore_progress,
) -> Tensor:
    """Return the losses of every token but the first, each given all tokens before it.

    The text passes through the model in segments that hand on the state. Memory holds the state and one segment: a
    constant size for a recurrent state, a cache of all tokens for attention.

    Args:
        model: The model.
        tokens: (B, T) int64, each row a separate text.
        segment_len: Tokens per segment.
        report: Called after every segment.

    Returns:
        (B, T - 1) float32 on the CPU, in nats: [:, i] is the loss of token i + 1.
    """
    batch_size, length = tokens.shape
    state = model.init_state(batch_size, length - 1)
    found = torch.empty(batch_size, length - 1)
    for start in range(0, length - 1, segment_len):
        end = min(start + segment_len, length - 1)
        logits = model(tokens[:, start:end].to(model.device), state)  # (B, S, N)
        targets = tokens[:, start + 1 : end + 1].to(model.device)
        # Over the contiguous last axis: over another one torch adds up the vocabulary one by one, in float32.
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        found[:, start:end] = losses.view_as(targets).cpu()
        report(targets.numel())
    return found


def windows(length: int, window_len: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield windows of a text of `length` tokens: start, end, and how many of the last tokens are scored.

    Every token but the first is scored once. A window has `window_len` tokens, the last one maybe fewer; the next
    begins `stride` later.
    """
    scored = 1
    for start in range(0, max(1, length), stride):
        end = min(start + window_len, length)
        if end > scored:
            yield start, end, end - scored
            scored = end
        if end == length:
            return


def strided_losses(
    model: LanguageModel,
    tokens: Tensor,
    *,
    context_len: int,
    stride: int,
    report: PassProgress = ignore_progress,
) -> Tensor:
    """Return the losses (T - 1,) of every token but the first of a text (T,), each given the window before it.

    A window has `context_len` tokens and the token after them; the next one begins `stride` tokens later.
    """
    found = torch.empty(len(tokens) - 1)
    for group in _equally_long(windows(len(tokens), context_len + 1, stride)):
        rows = torch.stack([tokens[start:end] for start, end, _ in group])
        losses = streamed_losses(model, rows, report=report)
        for (_, end, scored), row in zip(group, losses, strict=True):
            found[end - 1 - scored : end - 1] = row[-scored:]
    return found


def _equally_long(cut: Iterable[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Group neighbouring windows of equal length, up to `BATCH_TOKENS` per group."""
    group: list[tuple[int, int, int]] = []
    for window in cut:
        length = window[1] - window[0]
        if group and (group[0][1] - group[0][0] != length or (len(group) + 1) * length > BATCH_TOKENS):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def last_losses(
    model: LanguageModel,
    tokens: Tensor,
    *,
    chunk_len: int,
    context_len: int,
    scored_len: int,
    report: PassProgress = ignore_progress,
) -> Tensor:
    """Return the losses (chunks, scored_len) of the last tokens of each chunk of a text (T,).

    The model sees the last `context_len` tokens of a chunk, the scored ones included; an incomplete last chunk is left
    out. arXiv:2307.08621, Table 8, scores the last 128 tokens of chunks of 2,048.
    """
    num_chunks = len(tokens) // chunk_len
    rows = tokens[: num_chunks * chunk_len].view(num_chunks, chunk_len)[:, -context_len:]
    batches = [part for part in rows.split(max(1, BATCH_TOKENS // context_len)) if len(part)]
    found = [streamed_losses(model, batch, report=report)[:, -scored_len:] for batch in batches]
    return torch.cat(found) if found else torch.empty(0, scored_len)
