"""What is in the files of a corpus: content hashes and documents, found by reading each file once.

A file's facts are kept in the cache and hold as long as its size and its time of change do. A file changed in the two
seconds before it was read is read again the next time: a second change could have left the same time.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from retbench.data.places import cache_dir
from retbench.data.sources import READING, TextFile, read_documents
from retbench.errors import ConfigError
from retbench.strict import Strict

_SETTLED_NS = 2 * 10**9


class FileFacts(Strict):
    """One file as it was read."""

    size: int
    mtime_ns: int
    sha256: str
    documents: tuple[tuple[str, int], ...]
    """Name and UTF-8 bytes of each document in it."""


_Facts = TypeAdapter(dict[str, FileFacts])


def _stat(file: TextFile) -> os.stat_result:
    """Size and time of a file; ConfigError where it cannot be seen."""
    try:
        return file.path.stat()
    except OSError as error:
        raise ConfigError(f"{file.path}: cannot be read ({error.strerror}). Check the file.") from error


def is_unchanged(file: TextFile, facts: FileFacts) -> bool:
    """Whether a file still has the size and the time that it was read at."""
    now = _stat(file)
    return (now.st_size, now.st_mtime_ns) == (facts.size, facts.mtime_ns)


def _read(file: TextFile) -> FileFacts:
    """The facts of a file, read now."""
    seen = _stat(file)
    documents = tuple((name, len(text.encode())) for name, text in read_documents(file))
    with file.path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return FileFacts(size=seen.st_size, mtime_ns=seen.st_mtime_ns, sha256=digest, documents=documents)


def _load(path: Path) -> dict[str, FileFacts]:
    """What is kept; nothing where there is none or it is damaged: all of it is found again by reading."""
    try:
        return _Facts.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}


def _keep(path: Path, facts: dict[str, FileFacts]) -> None:
    """Keep what will not change any more; where that cannot be written, the files are read again another time."""
    settled = {name: fact for name, fact in facts.items() if time.time_ns() - fact.mtime_ns > _SETTLED_NS}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_bytes(_Facts.dump_json(settled))
        draft.replace(path)


def catalogue(files: Sequence[TextFile]) -> list[FileFacts]:
    """The facts of each file.

    Raises:
        ConfigError: a file cannot be read or is not text.
    """
    names = [str(file.path.resolve()) for file in files]
    key = hashlib.sha256("\n".join([READING, *names]).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    path = cache_dir() / "catalogues" / f"{key}.json"
    kept = _load(path)
    facts = {
        name: kept[name] if name in kept and is_unchanged(file, kept[name]) else _read(file)
        for name, file in zip(names, files, strict=True)
    }
    if facts != kept:
        _keep(path, facts)
    return [facts[name] for name in names]
