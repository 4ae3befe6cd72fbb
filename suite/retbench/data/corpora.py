"""Corpora by name: named documents in splits, with a fingerprint of their content.

    python                          Python's own library: real text on every machine, without a download
    PATH, or a name below the data folder
                                    a folder of text files, or one file: classic_books, litbank/original, wikitext-103
    hub:OWNER/NAME[/CONFIG][@REVISION]
                                    a data set of the hub, streamed

`text_files` describes how files become documents, `splits` how documents are split.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retbench.data import hub, splits
from retbench.data.data_folder import find
from retbench.data.splits import ALL
from retbench.data.text_files import (
    TEXT_FIELDS,
    Document,
    FileIndex,
    TextFile,
    index_files,
    is_unchanged,
    library_files,
    list_files,
    read_documents,
    reading_of,
)
from retbench.errors import ConfigError, RetbenchError

__all__ = ["PYTHON", "Corpus", "Document", "check_split", "load_corpus"]

PYTHON = "python"


class Corpus(ABC):
    """Documents to train on or to evaluate."""

    name: str
    """The user's name for it."""
    fingerprint: str
    """12 hex digits over all content, the documents' names and the split rule; equal only for equal corpora."""
    revision: str | None = None
    """Commit of a hub data set; None for files."""
    splits: tuple[str, ...]
    """The splits that are not empty; "all" is the last."""

    def documents(self, split: str) -> Iterator[Document]:
        """Yield the documents of a split, always in the same order.

        Raises:
            ConfigError: there is no such split, or a document is not text.
            RetbenchError: a file has changed since the corpus was loaded.
            UnsupportedError: the hub cannot be reached.
        """
        check_split(self, split)
        return self._read(split)

    @abstractmethod
    def _read(self, split: str) -> Iterator[Document]:
        """Yield the documents of an existing split."""


def present_splits(present: Iterable[str | None]) -> tuple[str, ...]:
    """Return these splits in order, then "all"."""
    found = set(present)
    return (*(split for split in splits.SPLITS if split in found), ALL)


def load_corpus(name: str, *, data_dir: Path | None = None) -> Corpus:
    """Return the corpus of that name.

    Args:
        name: "python", a path, a name below the data folder, or `hub:...`. A folder called python is "./python".
        data_dir: The data folder; None for that of RETBENCH_DATA.

    Raises:
        ConfigError: there is no such corpus, or it holds no text, or something that is not text.
        UnsupportedError: the hub cannot be reached, or a package is missing.
    """
    if name.startswith(hub.PREFIX):
        return HubCorpus(name)
    if name == PYTHON:
        return FileCorpus(name, library_files())
    return FileCorpus(name, list_files(find(name, kind="corpus", data_dir=data_dir, known=[PYTHON])))


def check_split(corpus: Corpus, split: str) -> None:
    """Raise a ConfigError if `corpus` has no split of that name."""
    if split not in corpus.splits:
        raise ConfigError(
            f"the corpus '{corpus.name}' has no split '{split}'; it has {', '.join(corpus.splits)}. Use another "
            "corpus, or one of these where a split can be chosen."
        )


class FileCorpus(Corpus):
    """A corpus in files: a folder of texts, one text, or Python's own library.

    Args:
        name: The user's name for it.
        files: Its files, in the order in which they are read.

    Raises:
        ConfigError: a file cannot be read or is not text, or all files are empty.
    """

    def __init__(self, name: str, files: Sequence[TextFile]) -> None:
        self.name = name
        self._files = list(files)
        self._indexes = index_files(self._files)
        if not any(index.documents for index in self._indexes):
            count = len(self._files)
            held = "one file, and it is" if count == 1 else f"{count} files, and all are"
            raise ConfigError(f"the corpus '{name}' has {held} empty. Give it some text.")
        self.fingerprint = _fingerprint(self._files, self._indexes)
        self._split_of = _assign_splits(self._files, self._indexes)
        self._is_cut = not self._split_of and all(
            len(document.text) >= splits.MIN_CHARACTERS for document in self._read(ALL)
        )
        self.splits = present_splits(splits.SPLITS if self._is_cut else self._split_of.values())

    def _read(self, split: str) -> Iterator[Document]:
        for file, index in zip(self._files, self._indexes, strict=True):
            if split != ALL and self._split_of and all(self._split_of[n] != split for n in index.documents):
                continue
            if not is_unchanged(file, index):
                raise RetbenchError(
                    f"{file.path}: the file has changed since the corpus '{self.name}' was loaded. Let it be written "
                    "to its end, then run the same command again."
                )
            for document in read_documents(file):
                if split in (ALL, self._split_of.get(document.name)):
                    yield document
                elif self._is_cut:
                    yield Document(document.name, splits.cut(document.text)[split])


def _fingerprint(files: Sequence[TextFile], indexes: Sequence[FileIndex]) -> str:
    """Hash the rules of reading and splitting, and the names and contents of the files, to 12 hex digits."""
    digest = hashlib.sha256(f"{reading_of(files)}\n{splits.RULE}\n".encode())
    for file, index in zip(files, indexes, strict=True):
        digest.update(f"{index.sha256} {file.name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:12]


def _assign_splits(files: Sequence[TextFile], indexes: Sequence[FileIndex]) -> dict[str, str]:
    """Return the split of each document by its name; empty if the documents are too few and have to be cut."""
    own = splits.own_splits([file.name for file in files])
    if own is not None:
        return {name: split for split, index in zip(own, indexes, strict=True) for name in index.documents}
    names = [name for index in indexes for name in index.documents]
    return splits.hashed_splits(names) if len(names) >= splits.MIN_DOCUMENTS else {}


class HubCorpus(Corpus):
    """A data set of the hub at one commit, streamed: only rows that are read are downloaded.

    A row is a document; its text is the column "text", else "page". The splits are the data set's own; a split with
    another name than train, validation or test is only in "all". A data set without validation and test is split by a
    hash of each row's position, 90 / 5 / 5 in expectation. The commit represents the content in the fingerprint.

    Args:
        name: `hub:OWNER/NAME[/CONFIG][@REVISION]`, at the newest commit if it names no revision.

    Raises:
        ConfigError: there is no such data set, configuration or revision, or it has no column of texts.
        UnsupportedError: the hub cannot be reached.
    """

    def __init__(self, name: str) -> None:
        from datasets import get_dataset_split_names

        self.name = name
        parsed = hub.parse_name(name)
        self.revision = hub.resolve_revision(name, parsed)
        self._repo, self._config = parsed.repo, parsed.config
        with self._translate_errors():
            self._sources = tuple(get_dataset_split_names(self._repo, self._config, revision=self.revision))
        if not self._sources:
            raise ConfigError(f"'{name}': the hub's data set has no splits. Choose one with texts.")
        own = {source: splits.own_split(source) for source in self._sources}
        self._own = own if set(own.values()) & {"validation", "test"} else {}
        self.splits = present_splits(self._own.values() or splits.SPLITS)
        self._column = self._find_column()
        parts = [self._repo, self._config, self.revision, self._column, splits.RULE]
        self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translate errors of the hub and of `datasets`; a ValueError means an unknown or missing configuration."""
        from datasets.exceptions import DatasetNotFoundError

        with hub.translate_hub_errors(self.name):
            try:
                yield
            except (DatasetNotFoundError, ValueError) as error:
                raise ConfigError(
                    f"'{self.name}': {str(error).strip()} A configuration is named by hub:OWNER/NAME/CONFIG."
                ) from error

    def _rows(self, source: str) -> Any:
        """Stream the rows of one of the data set's own splits."""
        from datasets import load_dataset

        return load_dataset(self._repo, self._config, split=source, streaming=True, revision=self.revision)

    def _find_column(self) -> str:
        """Find the column of texts in the data set's description, else in its first row."""
        with self._translate_errors():
            rows = self._rows(self._sources[0])
            columns = list(rows.features or next(iter(rows), {}))
        found = [name for name in TEXT_FIELDS if name in columns]
        if not found:
            raise ConfigError(
                f"'{self.name}': its columns are {', '.join(columns)}, and texts are read from the column "
                f"{' or '.join(TEXT_FIELDS)}. Choose a data set of texts."
            )
        return found[0]

    def _stream(self, source: str) -> Iterator[Document]:
        """Yield the documents of one of the data set's own splits."""
        with self._translate_errors():
            for number, row in enumerate(self._rows(source)):
                text = row.get(self._column)
                if not isinstance(text, str):
                    raise ConfigError(
                        f"'{self.name}': row {number} of '{source}' has no text in the column '{self._column}'. Choose "
                        "a data set of texts."
                    )
                if text.strip():
                    yield Document(f"{source}/{number}", text)

    def _read(self, split: str) -> Iterator[Document]:
        for source in self._sources:
            if split == ALL or not self._own:
                found = self._stream(source)
                yield from (item for item in found if split in (ALL, splits.hashed_split(item.name)))
            elif self._own[source] == split:
                yield from self._stream(source)
