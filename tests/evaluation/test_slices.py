"""Losses on words of repeated and of new pairs, checked against losses of the tokens that are added up by hand."""

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from retbench.data.corpora import Document
from retbench.data.vocabularies import ByteTokenizer
from retbench.errors import ConfigError
from retbench.evaluation import slices
from retbench.evaluation.slices import DocumentSlices, distance_ends, score_slices


class TwoBytes(ByteTokenizer):
    """Tokens of one byte or two, of ASCII: as many as 16 bits count, with the same text."""

    name = "two bytes"
    vocab_size = 2**16 + 1

    def _encode(self, text: str) -> list[int]:
        parts = text.encode()
        found, place = [], 0
        while place < len(parts):
            is_word = parts[place : place + 2].isalpha() and place + 1 < len(parts)
            found.append(256 * parts[place + 1] + parts[place] if is_word else parts[place])
            place += 1 + is_word
        return found

    def _decode(self, tokens: Sequence[int]) -> str:
        return b"".join(
            bytes([token % 256, token // 256]) if token > 256 else bytes([token]) for token in tokens
        ).decode()


@pytest.fixture(autouse=True)
def losses_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model has a loss per byte: that of the place of the byte, whatever the tokens are."""

    def streamed(model: object, tokens: Tensor, **_: object) -> Tensor:
        places, found = 0, []
        for token in tokens[0, 1:].tolist():
            width = 2 if token > 256 else 1
            found.append(sum(cost(places + each) for each in range(width)))
            places += width
        return torch.tensor([found], dtype=torch.float64)

    monkeypatch.setattr(slices, "streamed_losses", streamed)


def cost(place: int) -> float:
    return 1.0 + place % 7


def score(
    texts: Sequence[str], tokenizer: ByteTokenizer, counted: Sequence[str] | None = (), max_count: int = 0
) -> list[DocumentSlices]:
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=2**17))
    return score_slices(
        model,  # type: ignore[arg-type]
        tokenizer,
        [Document(str(number), text) for number, text in enumerate(texts)],
        num_bytes=256,
        max_count=max_count,
        counted=None if counted is None else lambda: counted,
    )


TEXT = "old cat sat. A dog saw the old cat and the old dog"
"""("old", "cat") and ("the", "old") come twice."""


def nats(text: str, part: str, occurrence: int = 0) -> float:
    """The losses of a word with the space before it."""
    start = -1
    for _ in range(occurrence + 1):
        start = text.index(part, start + 1)
    return sum(cost(place) for place in range(start, start + len(part)))


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TwoBytes()])
def test_the_slices_are_the_same_for_every_tokenizer(tokenizer: ByteTokenizer) -> None:
    (found,) = score([TEXT], tokenizer)
    hits = nats(TEXT, " cat", 1) + nats(TEXT, " old", 1)
    first = nats(TEXT, " cat") + nats(TEXT, " old")
    assert (found.num_hits, found.hit_nats) == (2, pytest.approx(hits))
    assert found.gain_nats == pytest.approx(first - hits)
    assert (found.num_first, found.num_bytes) == (10 - 1, len(TEXT))
    assert found.nll_nats == pytest.approx(sum(cost(place) for place in range(len(TEXT))))
    ends = distance_ends(256)
    far, near = TEXT.index(" cat", 10) - TEXT.index(" cat"), TEXT.rindex(" old") - TEXT.index(" old")
    assert sum(found.hits_by_distance) == 2
    assert found.hits_by_distance[np.searchsorted(ends, max(far, near))] == 2
    assert sum(found.gains_by_distance) == pytest.approx(found.gain_nats)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TwoBytes()])
def test_the_copies_are_those_of_the_first_half(tokenizer: ByteTokenizer) -> None:
    (found,) = score([TEXT], tokenizer)
    half = TEXT[: found.copied_bytes]
    assert half == "old cat sat. A dog saw"
    assert found.first_copy_nats == pytest.approx(sum(cost(place) for place in range(len(half))))
    start = len(half) + 2
    assert found.second_copy_nats == pytest.approx(
        sum(cost(place) for place in range(start, start + len(half)))
    )


def test_a_pair_that_the_counted_text_has_is_not_rare() -> None:
    (found,) = score([TEXT], ByteTokenizer(), counted=["An old cat", "the old cat"])
    assert found.num_hits == 0
    (found,) = score([TEXT], ByteTokenizer(), counted=["An old cat", "the old cat"], max_count=1)
    assert (found.num_hits, found.hit_nats) == (1, pytest.approx(nats(TEXT, " old", 1)))


def test_without_a_counted_text_the_other_documents_are_counted() -> None:
    found = score([TEXT, "see the old one"], ByteTokenizer(), counted=None)
    assert [each.num_hits for each in found] == [1, 0]
    assert found[0].hit_nats == pytest.approx(nats(TEXT, " cat", 1))


def test_a_corpus_without_a_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="no document with a whole word"):
        score([" \n", "x" * 400], ByteTokenizer())


def test_distances_double_up_to_the_whole_document() -> None:
    assert distance_ends(256) == (64, 128, 256)
    assert distance_ends(300)[-1] == 512
    assert math.log2(distance_ends(8192)[-1]) == 13
