"""What a corpus is to those who read it: named documents in splits, and a fingerprint of all of it."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from retbench.errors import ConfigError

ALL = "all"
"""The split that holds every document, uncut."""


class Document(NamedTuple):
    """One text that belongs together: a book, an article, a module."""

    name: str
    """Unique in its split; a path relative to the corpus, or "FILE/TITLE" of an article."""
    text: str


class Corpus(Protocol):
    """Documents to train on or to evaluate."""

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def fingerprint(self) -> str:
        """12 hex digits over all content, the documents' names and the split rule: one fingerprint, one corpus."""

    @property
    def revision(self) -> str | None:
        """The commit of a hub data set; None for files."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold something; "all" is the last."""

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split, always in the same order; ConfigError where there is no such split."""

    def num_bytes(self, split: str) -> int:
        """UTF-8 bytes of the texts of a split."""


def check_split(corpus: Corpus, split: str) -> None:
    """ConfigError where `corpus` has no split of that name."""
    if split not in corpus.splits:
        raise ConfigError(
            f"the corpus '{corpus.name}' has no split '{split}'; it has {', '.join(corpus.splits)}. Use another "
            "corpus, or one of these where a split can be chosen."
        )
