"""A corpus in files: a folder of texts, one text, or Python's own library."""

import hashlib
from collections.abc import Iterator, Sequence

from retbench.data import splits as rules
from retbench.data.catalogue import FileFacts, catalogue, is_unchanged
from retbench.data.corpus import ALL, Document, check_split
from retbench.data.sources import READING, TextFile, read_documents
from retbench.errors import ConfigError, RetbenchError


class FileCorpus:
    """The documents of some files; `splits` says how they are split, `sources` how they are read.

    Args:
        name: As the user gave it.
        files: Its files, in the order in which they are read.

    Raises:
        ConfigError: a file cannot be read or is not text, or none holds any.
    """

    revision = None

    def __init__(self, name: str, files: Sequence[TextFile]) -> None:
        self.name = name
        self._files = list(files)
        self._facts = catalogue(self._files)
        if not any(facts.documents for facts in self._facts):
            raise ConfigError(
                f"the corpus '{name}' has {len(self._files)} files and all are empty. Give it some text."
            )
        self.fingerprint = _fingerprint(self._files, self._facts)
        self._split_of = _split_of(self._files, self._facts)
        self._is_cut = self._split_of is None and self._can_be_cut()
        held = set(rules.SPLITS) if self._is_cut else set((self._split_of or {}).values())
        self.splits = (*(split for split in rules.SPLITS if split in held), ALL)

    def _can_be_cut(self) -> bool:
        """Whether each document is long enough for three parts."""
        return all(len(document.text) >= rules.MIN_CHARACTERS for document in self.documents(ALL))

    def _wanted(self, facts: FileFacts, split: str) -> bool:
        """Whether any document of a file is in a split."""
        if split == ALL or self._split_of is None:
            return True
        return any(self._split_of[name] == split for name, _ in facts.documents)

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split in the order of the files.

        Raises:
            ConfigError: there is no such split.
            RetbenchError: a file has changed since the corpus was loaded.
        """
        if split != ALL:
            check_split(self, split)
        return self._read(split)

    def _read(self, split: str) -> Iterator[Document]:
        for file, facts in zip(self._files, self._facts, strict=True):
            if not self._wanted(facts, split):
                continue
            if not is_unchanged(file, facts):
                raise RetbenchError(
                    f"{file.path}: the file has changed since the corpus '{self.name}' was loaded. Let it be written "
                    "to its end, then run the same command again."
                )
            for document in read_documents(file):
                if split == ALL or (self._split_of and self._split_of[document.name] == split):
                    yield document
                elif self._is_cut:
                    yield Document(document.name, rules.cut(document.text)[split])

    def num_bytes(self, split: str) -> int:
        """UTF-8 bytes of the texts of a split; ConfigError where there is no such split."""
        check_split(self, split)
        if split != ALL and self._is_cut:
            return sum(len(document.text.encode()) for document in self.documents(split))
        named = [entry for facts in self._facts for entry in facts.documents]
        return sum(size for name, size in named if split == ALL or (self._split_of or {})[name] == split)


def _fingerprint(files: Sequence[TextFile], facts: Sequence[FileFacts]) -> str:
    """12 hex digits over how the files are read and split, their names and their content."""
    digest = hashlib.sha256(f"{READING}\n{rules.RULE}\n".encode())
    for file, fact in zip(files, facts, strict=True):
        digest.update(f"{fact.sha256} {file.name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:12]


def _split_of(files: Sequence[TextFile], facts: Sequence[FileFacts]) -> dict[str, str] | None:
    """The split of each document by its name; None where the documents are too few and have to be cut."""
    own = rules.own_splits([file.name for file in files])
    if own is not None:
        return {name: split for split, fact in zip(own, facts, strict=True) for name, _ in fact.documents}
    names = [name for fact in facts for name, _ in fact.documents]
    if len(names) < rules.MIN_DOCUMENTS:
        return None
    return rules.hashed_splits(names)
