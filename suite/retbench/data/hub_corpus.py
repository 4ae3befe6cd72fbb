"""A data set of the hub, streamed: nothing is downloaded but what is read.

A row is a document; its text is the column "text", else "page". Splits are the data set's own, and what it calls
neither train nor validation nor test is in "all" alone. Where it has nothing for validation or test, each row goes to a
split by a hash of its place, 90 / 5 / 5 in expectation. The commit stands for the content.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retbench.data import hub
from retbench.data import splits as rules
from retbench.data.corpus import ALL, Document, check_split
from retbench.data.packages import load_package
from retbench.errors import ConfigError

TEXT_COLUMNS = ("text", "page")
"""What the text of a row may be called; the first of them that a data set has."""


class HubCorpus:
    """Documents of a data set at one commit.

    Args:
        name: As the user gave it, `hub:OWNER/NAME[/CONFIG][@REVISION]`.
        revision: A branch, tag or commit; the newest where it and the name's are absent.

    Raises:
        ConfigError: there is no such data set, configuration or revision, or it has no column of texts.
        UnsupportedError: the hub cannot be reached, or `datasets` is not installed.
    """

    def __init__(self, name: str, revision: str | None = None) -> None:
        self.name = name
        self._datasets = load_package("datasets", f"'{name}'")
        parsed = hub.parse_name(name, revision)
        self.revision = hub.resolve_revision(name, parsed, "dataset")
        self._repo, self._config = parsed.repo, parsed.config
        with self._explained():
            self._sources = tuple(
                self._datasets.get_dataset_split_names(self._repo, self._config, revision=self.revision)
            )
        own = {source: rules.own_split(source) for source in self._sources}
        self._own = own if set(own.values()) & {"validation", "test"} else None
        held = rules.SPLITS if self._own is None else set(self._own.values())
        self.splits = (*(split for split in rules.SPLITS if split in held), ALL)
        self._column = self._find_column()
        parts = [self._repo, self._config, self.revision, self._column, rules.RULE]
        self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """`hub.explained`, with what `datasets` raises of its own."""
        not_found = self._datasets.exceptions.DatasetNotFoundError
        with hub.explained(self.name):
            try:
                yield
            except (
                not_found,
                ValueError,
            ) as error:  # ValueError: no such configuration, or one must be chosen
                raise ConfigError(
                    f"'{self.name}': {str(error).strip()} A configuration is named by hub:OWNER/NAME/CONFIG."
                ) from error

    def _rows(self, source: str) -> Any:
        """The rows of one of the data set's own splits, as `datasets` streams them."""
        return self._datasets.load_dataset(
            self._repo, self._config, split=source, streaming=True, revision=self.revision
        )

    def _find_column(self) -> str:
        """The column of texts, by what the data set says of its rows, else by the first of them."""
        with self._explained():
            rows = self._rows(self._sources[0])
            columns = list(rows.features or next(iter(rows), {}))
        found = [name for name in TEXT_COLUMNS if name in columns]
        if not found:
            raise ConfigError(
                f"'{self.name}': its columns are {', '.join(columns)}, and texts are read from the column "
                f"{' or '.join(TEXT_COLUMNS)}. Choose a data set of texts."
            )
        return found[0]

    def _stream(self, source: str) -> Iterator[Document]:
        """The documents of one of the data set's own splits."""
        with self._explained():
            for number, row in enumerate(self._rows(source)):
                text = row.get(self._column)
                if not isinstance(text, str):
                    raise ConfigError(
                        f"'{self.name}': row {number} of '{source}' has no text in the column '{self._column}'. Choose "
                        "a data set of texts."
                    )
                if text.strip():
                    yield Document(f"{source}/{number}", text)

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split in the data set's order, streamed.

        Raises:
            ConfigError: there is no such split, or a row without a text.
            UnsupportedError: the hub cannot be reached.
        """
        check_split(self, split)
        return self._read(split)

    def _read(self, split: str) -> Iterator[Document]:
        for source in self._sources:
            if split == ALL or self._own is None:
                found = self._stream(source)
                yield from (item for item in found if split in (ALL, rules.hashed_split(item.name)))
            elif self._own[source] == split:
                yield from self._stream(source)

    def num_bytes(self, split: str) -> int:
        """UTF-8 bytes of the texts of a split; streams all of it."""
        return sum(len(document.text.encode()) for document in self.documents(split))
