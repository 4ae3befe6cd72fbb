"""Loss of a model on the words of documents that complete a rare pair: seen earlier in the document, or new.

Recall without generation, as in the appendix of Zoology (arXiv:2312.04927) and Table 5 of YOCO (arXiv:2405.05254), on
words in place of tokens, so that models with different tokenizers score the same words. The loss of a word is the sum
over the tokens that end in it or in the white space before it. Documents are read as by the protocol `whole` of
`perplexity`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from retbench.data.corpora import Document
from retbench.data.tokenizers import Tokenizer, check_vocabulary, prefix_token, token_ends
from retbench.data.word_pairs import PairUse, count_pairs, cut_text, find_pairs, split_units
from retbench.errors import ConfigError
from retbench.evaluation import PassProgress, ignore_progress
from retbench.evaluation.bins import doubling_ends
from retbench.evaluation.perplexity import streamed_losses
from retbench.models.language_model import LanguageModel

FIRST_DISTANCE = 64
"""Bytes of the first bucket of distances; every other bucket ends at twice the end of the one before it."""
SEPARATOR = "\n\n"
"""Text between the two copies of a document."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DocumentSlices:
    """Losses of a model on one document, each a sum of negative log-likelihoods in nats.

    Attributes:
        name: Name of the document.
        num_bytes: Bytes of the text that was read.
        num_tokens: Tokens of that text.
        nll_nats: Loss of all of them.
        num_hits: Words that complete a rare pair that came before.
        hit_nats: Loss of these.
        gain_nats: Loss of the same words where their pair came first, less `hit_nats`.
        num_first: Words that complete a rare pair for the first time.
        first_nats: Loss of these.
        hits_by_distance: Hits by the bytes since their pair came last, in the buckets of `distance_ends`.
        gains_by_distance: Their gain.
        copied_bytes: Bytes of the part of the text that was then read twice in a row.
        first_copy_nats: Loss of the first copy.
        second_copy_nats: Loss of the second copy.
    """

    name: str
    num_bytes: int
    num_tokens: int
    nll_nats: float
    num_hits: int
    hit_nats: float
    gain_nats: float
    num_first: int
    first_nats: float
    hits_by_distance: tuple[int, ...]
    gains_by_distance: tuple[float, ...]
    copied_bytes: int
    first_copy_nats: float
    second_copy_nats: float


class _ScoredText(NamedTuple):
    """The losses (T,) of the tokens of a text, and the characters up to the end of each token (T,)."""

    losses: Values
    ends: npt.NDArray[np.int64]


def distance_ends(num_bytes: int) -> tuple[int, ...]:
    """Return the ends of the buckets of distances in documents of so many bytes."""
    return doubling_ends(FIRST_DISTANCE, num_bytes)


def score_slices(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    num_bytes: int,
    max_count: int,
    counted: Callable[[], Iterable[str]] | None,
    report: PassProgress = ignore_progress,
) -> list[DocumentSlices]:
    """Score documents, calling `report` after every pass.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        documents: The documents.
        num_bytes: Bytes of each document that are read, the first ones.
        max_count: Occurrences of a rare pair in the counted texts.
        counted: Returns the texts in which pairs are counted; the other documents where it is None.
        report: Called after every pass.

    Raises:
        ConfigError: the tokenizer does not fit the model or does not keep the text, or there is nothing to score.
    """
    check_vocabulary(tokenizer, model.config.vocab_size)
    prefix = prefix_token(tokenizer)
    cut = [Document(each.name, cut_text(each.text, num_bytes)) for each in documents]
    cut = [each for each in cut if each.text.strip()]
    if not cut:
        raise ConfigError("there is no document with a whole word. Choose another corpus.")
    uses = [find_pairs(split_units(each.text)) for each in cut]
    totals = count_pairs(
        (each.text for each in cut) if counted is None else counted(),
        {use.pair for mine in uses for use in mine},
    )
    found = []
    for document, mine in zip(cut, uses, strict=True):
        own = count_pairs([document.text], {use.pair for use in mine}) if counted is None else {}
        rare = [use for use in mine if totals[use.pair] - own.get(use.pair, 0) <= max_count]

        def score(text: str) -> _ScoredText:
            return _score_text(model, prefix, tokenizer, text, report)

        found.append(_score_document(score, document, rare, distance_ends(num_bytes)))
    return found


def _score_text(
    model: LanguageModel, prefix: int, tokenizer: Tokenizer, text: str, report: PassProgress
) -> _ScoredText:
    tokens = tokenizer.encode(text)
    ends = token_ends(tokenizer, tokens, text)
    losses = streamed_losses(model, torch.tensor([[prefix, *tokens]]), report=report)[0]
    return _ScoredText(losses.double().numpy(), np.array(ends))


def _score_document(
    score: Callable[[str], _ScoredText],
    document: Document,
    rare: Sequence[PairUse],
    ends: Sequence[int],
) -> DocumentSlices:
    """Score a document once as it is, and once the first half of it twice in a row."""
    text = document.text
    scored = score(text)
    units = split_units(text)
    # Tokens in the white space at the end count for the unit after the last, which is none.
    owners = np.searchsorted([unit.end for unit in units], scored.ends)
    nats = np.bincount(owners, weights=scored.losses, minlength=len(units) + 1)
    hits = [use for use in rare if use.last is not None]
    new = [use for use in rare if use.last is None]
    gains = [float(nats[use.first] - nats[use.unit]) for use in hits]
    places = np.cumsum([0, *(len(character.encode()) for character in text)])
    distances = [places[units[use.unit].end] - places[units[use.last or 0].end] for use in hits]
    buckets = np.searchsorted(ends, distances) if hits else np.empty(0, dtype=np.int64)
    half = cut_text(text, len(text.encode()) // 2)
    first_copy, second_copy = _score_copies(score, half)
    return DocumentSlices(
        name=document.name,
        num_bytes=len(text.encode()),
        num_tokens=len(scored.losses),
        nll_nats=math.fsum(scored.losses),
        num_hits=len(hits),
        hit_nats=math.fsum(nats[use.unit] for use in hits),
        gain_nats=math.fsum(gains),
        num_first=len(new),
        first_nats=math.fsum(nats[use.unit] for use in new),
        hits_by_distance=tuple(np.bincount(buckets, minlength=len(ends)).tolist()),
        gains_by_distance=tuple(np.bincount(buckets, weights=gains, minlength=len(ends)).tolist()),
        copied_bytes=len(half.encode()),
        first_copy_nats=first_copy,
        second_copy_nats=second_copy,
    )


def _score_copies(score: Callable[[str], _ScoredText], text: str) -> tuple[float, float]:
    """Return the losses of two copies of a text in a row, without those of what is between them."""
    if not text:
        return 0.0, 0.0
    scored = score(text + SEPARATOR + text)
    is_first, is_second = scored.ends <= len(text), scored.ends > len(text) + len(SEPARATOR)
    return math.fsum(scored.losses[is_first]), math.fsum(scored.losses[is_second])
