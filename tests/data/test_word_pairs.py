"""Pairs of words: what is a word, which pairs came before, and that a cut text ends with a whole word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.data.tokenizers import load_tokenizer, token_ends
from retbench.data.vocabularies import ByteTokenizer
from retbench.data.word_pairs import count_pairs, cut_text, find_pairs, split_units
from retbench.errors import ConfigError

TEXT = "Miss Bates said no. Miss Bates's dog, Miss\n Bates, said no!"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def test_a_pair_is_two_words_with_white_space_between() -> None:
    units = split_units(TEXT)
    found = [(use.pair, use.last, use.first == use.unit) for use in find_pairs(units)]
    assert found == [
        (("Miss", "Bates"), None, True),
        (("Bates", "said"), None, True),
        (("said", "no"), None, True),
        (("Miss", "Bates's"), None, True),
        (("Bates's", "dog"), None, True),
        (("Miss", "Bates"), 1, False),
        (("said", "no"), 3, False),
    ]
    assert units[-1].end == len(TEXT)


def test_white_space_at_the_end_takes_no_time() -> None:
    """One million of them would take hours if the rest were scanned from each."""
    assert split_units("said no" + "\n" * 10**6) == split_units("said no")


def test_pairs_are_counted_where_they_are_wanted() -> None:
    assert count_pairs([TEXT, "said no"], {("said", "no"), ("no", "Miss")}) == {("said", "no"): 3}


@given(texts)
def test_counting_and_finding_agree(text: str) -> None:
    pairs = [use.pair for use in find_pairs(split_units(text))]
    counts = count_pairs([text], set(pairs))
    assert counts == {pair: pairs.count(pair) for pair in pairs}


@given(texts, st.integers(1, 80))
def test_a_cut_text_is_a_beginning_of_whole_words(text: str, num_bytes: int) -> None:
    cut = cut_text(text, num_bytes)
    assert text.startswith(cut)
    assert len(cut.encode()) <= num_bytes
    ends = {0, len(text), *(unit.end for unit in split_units(text))}
    assert len(cut) in ends


@given(texts)
def test_every_byte_ends_where_its_character_does(text: str) -> None:
    tokenizer = load_tokenizer("bytes")
    ends = token_ends(tokenizer, tokenizer.encode(text), text)
    assert len(ends) == len(text.encode())
    if "\ufffd" not in text:
        assert ends == [place for place, char in enumerate(text, 1) for _ in char.encode()]


def test_a_tokenizer_that_changes_the_text_is_refused() -> None:
    class Lower(ByteTokenizer):
        def _encode(self, text: str) -> list[int]:
            return super()._encode(text.lower())

    tokenizer = Lower()
    with pytest.raises(ConfigError, match="does not give a text back as it was, from 'Bates' on"):
        token_ends(tokenizer, tokenizer.encode("miss Bates"), "miss Bates")
