"""Pairs of words in a text: where one completes a pair that came before, whatever the tokenizer of a model.

A word is a run of letters and digits, with apostrophes inside it; any other character that is not white space is a
mark. A pair is two words with nothing but white space between them. Words are compared as they are written.
"""

import re
from collections import Counter
from collections.abc import Iterable, Set
from itertools import pairwise
from typing import NamedTuple

Pair = tuple[str, str]

_WORD = r"[^\W_]+(?:['’][^\W_]+)*"
_UNITS = re.compile(rf"\s*(?:({_WORD})|[^\w\s]|_)")
_WORDS = re.compile(rf"({_WORD})|[^\w\s]|_")


class Unit(NamedTuple):
    """A word or mark with the white space before it.

    Attributes:
        end: Characters of the text up to its end.
        word: The word; empty for a mark.
    """

    end: int
    word: str


class PairUse(NamedTuple):
    """A word that completes a pair.

    Attributes:
        unit: Index of the word among the units of its text.
        pair: The word before it, and the word.
        last: Index of the word that completed this pair the last time before; None at the first time.
        first: Index of the word that completed this pair for the first time, which may be this one.
    """

    unit: int
    pair: Pair
    last: int | None
    first: int


def split_units(text: str) -> list[Unit]:
    """Return the words and marks of a text; white space at its end belongs to none."""
    # Without its white space at the end, which the pattern would scan once from each of its characters.
    return [Unit(match.end(), match[1] or "") for match in _UNITS.finditer(text.rstrip())]


def find_pairs(units: list[Unit]) -> list[PairUse]:
    """Return every word that completes a pair, in the order of the text."""
    last: dict[Pair, int] = {}
    first: dict[Pair, int] = {}
    found = []
    for index, (before, unit) in enumerate(pairwise(units), 1):
        if before.word and unit.word:
            pair = (before.word, unit.word)
            found.append(PairUse(index, pair, last.get(pair), first.setdefault(pair, index)))
            last[pair] = index
    return found


def count_pairs(texts: Iterable[str], wanted: Set[Pair]) -> Counter[Pair]:
    """Count how often each of the wanted pairs occurs in texts."""
    counts: Counter[Pair] = Counter()
    for text in texts:
        counts.update(pair for pair in pairwise(_WORDS.findall(text)) if pair in wanted)
    return counts


def cut_text(text: str, num_bytes: int) -> str:
    """Return the first bytes of a text, up to the end of the last word or mark that is whole."""
    encoded = text.encode()
    if len(encoded) <= num_bytes:
        return text
    kept = encoded[:num_bytes].decode(errors="ignore")
    units = split_units(kept)
    return kept[: units[-2].end] if len(units) > 1 else ""
