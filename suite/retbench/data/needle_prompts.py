"""Needle-in-a-haystack prompts: a number is stated once in a long text and asked for at its end.

Words and templates are those of RULER's single needle (arXiv:2404.06654, `niah_single`); the answer's opening is given,
so that base models can take part. Keys, values and sentences are a pure function of (haystack, split, index), by the
same counter-based generator as the synthetic tasks. Prompts are fitted in tokens, so they depend on the tokenizer.

    noise       one sentence about grass, sky and sun, again and again
    needles     statements of other keys' numbers
    short       the parts of that sentence in any order, in a wording of a few bytes, with a number of three digits: for
                small models, which are trained on it
    NAME        the sentences of a corpus, as `load_corpus` takes it
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, islice, takewhile
from typing import NamedTuple

from retbench.config.evaluation import HAYSTACKS
from retbench.data.corpora import Corpus
from retbench.data.synthetic import draw_words
from retbench.data.tokenizers import Tokenizer
from retbench.errors import ConfigError

NOISE, NEEDLES, SHORT = HAYSTACKS
NUM_WRONG = 9
"""Wrong values that the value is ranked among."""

_VERSION = 1
"""Increased when the same index gives another prompt."""
_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


class Wording(NamedTuple):
    """The words around a needle.

    Attributes:
        opening: Text before the haystack.
        statement: The needle, with places for key and value.
        question: Text after the haystack, with places for the key.
        separator: Text between two sentences of the haystack.
        key: Key of a needle, with places for an adjective and a noun.
        smallest_value: Smallest of the values, which have as many digits.
    """

    opening: str
    statement: str
    question: str
    separator: str
    key: str
    smallest_value: int


_RULER = Wording(
    opening="A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you "
    "about the number afterwards.\n",
    statement="One of the special magic numbers for {key} is: {value}.",
    question="\nWhat is the special magic number for {key} mentioned in the provided text? The special magic number "
    "for {key} mentioned in the provided text is",
    separator="\n",
    key="{adjective}-{noun}",
    smallest_value=1_000_000,
)
_SHORT = Wording(
    opening="",
    statement="{key}: {value}.",
    question="\n{key}:",
    separator=" ",
    key="{noun}",
    smallest_value=100,
)


def wording_of(haystack: str) -> Wording:
    """Return the words around a needle in a haystack."""
    if haystack == SHORT:
        return _SHORT
    return _RULER if haystack in HAYSTACKS else _RULER._replace(separator=" ")


_ADJECTIVES = (
    "amber brave calm dusty eager faint gentle hollow icy jolly keen lively mellow narrow odd pale quick rusty silent "
    "tender upset vivid warm young zesty bitter clever damp early famous grumpy humble"
)
_NOUNS = (
    "anchor barrel candle desk engine fiddle garden hammer island jacket kettle ladder meadow needle orchard pencil "
    "quarry ribbon saddle tunnel umbrella valley window yard zebra basket castle drawer eagle feather goblet harbour"
)
_PARTS = [f"{part.strip()}." for part in _FILLER.split(".") if part.strip()] * 52
"""The five parts of the noise again and again: 260, so that one byte draws one of them."""
_DRAWS = 8
"""Sentences that a word draws, one per byte."""
_MOST_SENTENCES = 2**20
"""Sentences that a haystack has room for."""


class Needle(NamedTuple):
    """The statement to find, and values that are wrong, all different."""

    key: str
    value: str
    wrong: tuple[str, ...]
    statement: str
    """The sentence that is hidden."""


class Prompt(NamedTuple):
    """Tokens of a prompt without a begin-of-text token, and of its right answer and the wrong ones after it."""

    needle: Needle
    text: str
    tokens: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


Sentences = Callable[[int, int], list[str]]
"""Returns the first n sentences of the haystack of an index, or all if it has fewer: (index, n)."""


def make_needle(haystack: str, index: int, split: str = "test") -> Needle:
    """Return the needle of an index; two splits have different ones."""
    wording = wording_of(haystack)
    words = draw_words(_name("needle", haystack, split), index, 1, 2 + NUM_WRONG)[0].tolist()
    count = 9 * wording.smallest_value
    values: dict[str, None] = {}
    for word in words[1 : 2 + NUM_WRONG]:
        number = word % count
        while str(wording.smallest_value + number) in values:
            number = (number + 1) % count
        values[str(wording.smallest_value + number)] = None
    value, *wrong = values
    key = _key(wording, words[0])
    return Needle(key, value, tuple(wrong), wording.statement.format(key=key, value=value))


def _name(kind: str, haystack: str, split: str) -> str:
    """Return the name by which words are drawn; that of the split `test` is the one before there were splits."""
    return f"{kind} {_VERSION} {haystack}" + ("" if split == "test" else f" {split}")


def _key(wording: Wording, word: int) -> str:
    return wording.key.format(adjective=_ADJECTIVES.split()[word % 32], noun=_NOUNS.split()[word // 32 % 32])


def haystack_sentences(haystack: str, corpus: Corpus | None) -> Sentences:
    """Return the sentences of a haystack by name; of a corpus those of its split `test`, else of all documents.

    Raises:
        ConfigError: the split has no document.
    """
    if haystack == NOISE:
        return lambda index, count: [_FILLER] * count
    if haystack == NEEDLES:
        return _other_needles
    if haystack == SHORT:
        return short_sentences
    assert corpus is not None
    split = "test" if "test" in corpus.splits else "all"
    found = [
        " ".join(sentence.split())
        for document in islice(corpus.documents(split), 64)
        for sentence in re.split(r"(?<=[.!?])\s+", document.text)
        if sentence.strip()
    ][:_MOST_SENTENCES]
    if not found:
        raise ConfigError(
            f"the split '{split}' of the corpus '{haystack}' has no text. Take a larger corpus."
        )
    return partial(_from_text, found, haystack)


def short_sentences(index: int, count: int, split: str = "test") -> list[str]:
    """Return the parts of the noise in an order that depends on the index."""
    words = draw_words(_name("haystack", SHORT, split), index, 1, -(-count // _DRAWS))[0]
    return [_PARTS[word >> 8 * draw & 0xFF] for word in words.tolist() for draw in range(_DRAWS)][:count]


def _other_needles(index: int, count: int) -> list[str]:
    """Return statements of other keys than that of the index."""
    own = make_needle(NEEDLES, index).key
    found = []
    for key_word, value_word, *_ in draw_words(f"needles {_VERSION} {index}", 0, count, 2).tolist():
        key = _key(_RULER, key_word) if _key(_RULER, key_word) != own else _key(_RULER, key_word + 1)
        found.append(_RULER.statement.format(key=key, value=1_000_000 + value_word % 9_000_000))
    return found


def _from_text(sentences: Sequence[str], haystack: str, index: int, count: int) -> list[str]:
    """Return sentences in order from a place that depends on the index, and from the first after the last."""
    start = int(draw_words(f"haystack {_VERSION} {haystack}", index, 1, 1)[0, 0]) % len(sentences)
    return [*sentences[start:], *sentences[:start]][:count]


def make_prompt(
    tokenizer: Tokenizer, sentences: Sentences, haystack: str, index: int, *, depth: float, num_tokens: int
) -> Prompt:
    """Return the longest prompt that has room for its answers in so many tokens.

    Args:
        tokenizer: The tokenizer.
        sentences: Sentences of the haystack.
        haystack: Its name.
        index: Index of the prompt.
        depth: Share of the sentences that come before the needle, 0 to 1.
        num_tokens: Tokens of the prompt with any of its answers.

    Raises:
        ConfigError: the needle and the question alone have more tokens, or the haystack has too few sentences.
    """
    needle = make_needle(haystack, index)
    wording = wording_of(haystack)
    found = _build(tokenizer, needle, [], wording, depth)
    room = num_tokens - _num_tokens(found)
    if room < 0:
        raise ConfigError(
            f"a needle and its question take {_num_tokens(found)} tokens of '{tokenizer.name}', and the context has "
            f"{num_tokens}. Ask for a longer context_len."
        )
    available = sentences(index, 1 + room)  # a sentence has one token or more
    lengths = accumulate(len(tokenizer.encode(wording.separator + each)) for each in available)
    count = sum(1 for _ in takewhile(lambda length: length <= room, lengths))
    if count == len(available):
        raise ConfigError(
            f"the haystack '{haystack}' has {count:,} sentences, which do not fill {num_tokens:,} tokens of "
            f"'{tokenizer.name}'. Take a larger corpus, or ask for a shorter context_len."
        )
    # Tokens may join across sentences, or part: the sum is an estimate of a few tokens' accuracy.
    found = _build(tokenizer, needle, available[:count], wording, depth)
    while _num_tokens(found) > num_tokens:
        count -= 1
        found = _build(tokenizer, needle, available[:count], wording, depth)
    return found


def _build(
    tokenizer: Tokenizer, needle: Needle, sentences: Sequence[str], wording: Wording, depth: float
) -> Prompt:
    """Return the prompt of a haystack of these sentences; ConfigError if its answers cannot be scored."""
    text = compose(needle, sentences, wording, depth)
    tokens = tokenizer.encode(text)
    whole = [tokenizer.encode(f"{text} {value}") for value in (needle.value, *needle.wrong)]
    if any(each[: len(tokens)] != tokens for each in whole):
        raise ConfigError(
            f"tokenizer '{tokenizer.name}' joins the end of a prompt with its answer, so the answer cannot be scored "
            "by itself. Use another tokenizer."
        )
    return Prompt(needle, text, tuple(tokens), tuple(tuple(each[len(tokens) :]) for each in whole))


def compose(needle: Needle, sentences: Sequence[str], wording: Wording, depth: float) -> str:
    """Return the text of a prompt, with the needle after so many of the sentences, a share of 0 to 1."""
    place = round(depth * len(sentences))
    lines = [*sentences[:place], needle.statement, *sentences[place:]]
    return wording.opening + wording.separator.join(lines) + wording.question.format(key=needle.key)


def _num_tokens(prompt: Prompt) -> int:
    """Return the tokens of a prompt with its longest answer."""
    return len(prompt.tokens) + max(map(len, prompt.answers))
