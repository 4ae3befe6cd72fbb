"""Needle prompts: equal on every machine, as long as asked, with the needle at its depth and nothing else to find."""

import hashlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.data.corpora import Corpus, Document, load_corpus
from retbench.data.needle_prompts import (
    NEEDLES,
    NOISE,
    NUM_WRONG,
    haystack_sentences,
    make_needle,
    make_prompt,
)
from retbench.data.tokenizers import load_tokenizer
from retbench.errors import ConfigError

BYTES = load_tokenizer("bytes")
TextOf = Callable[..., str]


def prompt(haystack: str = NOISE, index: int = 0, depth: float = 0.5, num_tokens: int = 1024):  # type: ignore[no-untyped-def]
    return make_prompt(
        BYTES, haystack_sentences(haystack, None), haystack, index, depth=depth, num_tokens=num_tokens
    )


@pytest.mark.parametrize(("haystack", "digits"), [(NOISE, "0ecedf118f8d"), (NEEDLES, "620a19f80990")])
def test_prompts_are_the_same_on_every_machine(haystack: str, digits: str) -> None:
    texts = [prompt(haystack, index, index / 4).text for index in range(5)]
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] == digits


@given(st.integers(0, 2**40))
def test_the_values_of_a_needle_are_different_numbers_of_seven_digits(index: int) -> None:
    needle = make_needle(NOISE, index)
    values = {needle.value, *needle.wrong}
    assert len(values) == 1 + NUM_WRONG
    assert all(len(value) == 7 and value.isdecimal() and value[0] != "0" for value in values)
    assert needle.key in needle.statement
    assert needle.value in needle.statement


@pytest.mark.parametrize("haystack", [NOISE, NEEDLES])
@pytest.mark.parametrize("num_tokens", [500, 1024, 3000])
def test_a_prompt_has_room_for_its_answers_and_for_no_other_sentence(haystack: str, num_tokens: int) -> None:
    found = prompt(haystack, 3, num_tokens=num_tokens)
    used = len(found.tokens) + max(map(len, found.answers))
    assert num_tokens - 100 < used <= num_tokens
    assert bytes(found.tokens).decode() == found.text
    assert bytes(found.answers[0]).decode() == f" {found.needle.value}"
    assert len(found.answers) == 1 + NUM_WRONG


@pytest.mark.parametrize("haystack", [NOISE, NEEDLES])
def test_the_needle_is_stated_once_at_its_depth(haystack: str) -> None:
    places = []
    for depth in (0.0, 0.5, 1.0):
        found = prompt(haystack, 5, depth, 2048)
        assert found.text.count(found.needle.value) == 1
        assert found.text.count(f"for {found.needle.key} is:") == 1
        assert found.text.endswith(f"number for {found.needle.key} mentioned in the provided text is")
        places.append(found.text.index(found.needle.statement) / len(found.text))
    assert places[0] < 0.1
    assert 0.4 < places[1] < 0.6
    assert places[2] > 0.75


def test_the_sentences_of_a_corpus_are_in_order_and_begin_elsewhere_for_another_index() -> None:
    sentences = haystack_sentences("python", load_corpus("python"))
    found = sentences(1, 50)
    assert len(found) == 50
    assert found[:20] == sentences(1, 20)
    assert found != sentences(2, 50)
    # A sentence of code is as long as the code: that of Python 3.13 has no room in 2,048 tokens.
    text = make_prompt(BYTES, sentences, "python", 1, depth=0.0, num_tokens=2048 + len(found[0])).text
    assert found[0] in text


def test_a_corpus_that_does_not_fill_the_context_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="the haystack 'few' has 2 sentences, which do not fill 2,048 tokens"
    ):
        make_prompt(
            BYTES, lambda index, count: ["One.", "Two."][:count], "few", 0, depth=0.0, num_tokens=2048
        )


def test_a_corpus_without_text_to_test_on_is_refused() -> None:
    class Empty(Corpus):
        """A small data set of the hub, none of whose rows is for the test by its hash."""

        name, fingerprint, splits = "empty", "0", ("test", "all")

        def _read(self, split: str) -> Iterator[Document]:
            yield from ()

    with pytest.raises(ConfigError, match="the split 'test' of the corpus 'empty' has no text"):
        haystack_sentences("empty", Empty())


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a needle and its question take \d+ tokens of 'bytes'"):
        prompt(num_tokens=200)
