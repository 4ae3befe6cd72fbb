"""Text files as documents, and a cached index of the documents in each file.

A document is the whole text of a file as Python reads text: UTF-8 (a Python source in its declared encoding), every
line end as a line feed, without a byte order mark. Nothing else is changed: the title, author and year above a Markdown
book are part of it. A file that begins with a WikiText heading (` = Title = `) is split into its articles, whose raw
text is kept (`<unk>`, ` @-@ `). Each line of a `.jsonl` file is a document: an object with its text in `text`, or
else in `page`. Blank texts, README, LICENSE and the like, and hidden files are left out.

A file's index is valid while its size and modification time stay the same. A file modified within two seconds before it
was read is read again the next time, because a second change could have left the same time.
"""

import hashlib
import os
import re
import sysconfig
import time
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple, NoReturn, TextIO

from pydantic import TypeAdapter, ValidationError

from retbench.errors import ConfigError, StorageError
from retbench.files import cache_dir, checksum, write_atomic
from retbench.parsing import parse_json_line
from retbench.strict import Strict

_READING = "universal newlines, WikiText by article; version 1"
_READING_JSON_LINES = "JSON Lines by line; version 1"
JSON_LINES = ".jsonl"
SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".tokens", JSON_LINES})
"""Suffixes of the text files of a folder."""
TEXT_FIELDS = ("text", "page")
"""Names of the field, or of a data set's column, that holds texts, in order of preference."""
_COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst"})

_ABOUT = frozenset({"readme", "license", "licence", "copying", "notice", "changelog"})
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests"})
"""Folders below Python's library that hold installed packages, or that many systems package separately."""
_HEADING = re.compile(r" = (?!= )(.+) = ?")
_SETTLED_NS = 2 * 10**9


class Document(NamedTuple):
    """One coherent text: a book, an article, a module."""

    name: str
    """Unique in its split; a path relative to the corpus, "FILE/TITLE" of an article, or "FILE/LINE" in JSON Lines."""
    text: str


class TextFile(NamedTuple):
    """A file of a corpus."""

    name: str
    """Path relative to the corpus, with forward slashes."""
    path: Path


def reading_of(files: Iterable[TextFile]) -> str:
    """Return how files are read, which is part of a corpus's fingerprint and has to change with it."""
    return f"{_READING}\n{_READING_JSON_LINES}" if any(map(_is_json_lines, files)) else _READING


def _is_json_lines(file: TextFile) -> bool:
    return file.path.suffix.lower() == JSON_LINES


class FileIndex(Strict):
    """Content hash and documents of one file when it was read."""

    size: int
    mtime_ns: int
    sha256: str
    documents: tuple[str, ...]
    """Name of each document."""


_Indexes = TypeAdapter(dict[str, FileIndex])


def list_files(root: Path) -> list[TextFile]:
    """Return the text files in and below a folder in the order of their names, or the single file `root`.

    Links to folders are followed.

    Raises:
        ConfigError: there is none, one of them is compressed, or a folder cannot be read or contains itself.
    """
    if not root.is_dir():
        return [TextFile(root.name, root)]
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        _refuse_loop(Path(folder))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths = [Path(folder, name) for name in names if not name.startswith(".")]
        _refuse_compressed(paths)
        found += filter(_is_text, paths)
    if not found:
        raise ConfigError(
            f"{root}: no text in this folder. A corpus is a folder with files in {', '.join(sorted(SUFFIXES))}; "
            "README and LICENSE do not count."
        )
    return sorted(TextFile(path.relative_to(root).as_posix(), path) for path in found)


def _is_text(path: Path) -> bool:
    """Return whether a file of a folder is a text of the corpus, by its name."""
    return path.suffix.lower() in SUFFIXES and path.stem.lower() not in _ABOUT


def _refuse_folder(error: OSError) -> NoReturn:
    """Raise a ConfigError for a folder that cannot be read: without it, the corpus would be another one."""
    raise ConfigError(
        f"{error.filename}: the folder cannot be read ({error.strerror}). Check its permissions."
    ) from error


def _refuse_compressed(paths: Iterable[Path]) -> None:
    """Raise a ConfigError for a compressed text: without it, the corpus would be another one."""
    for path in sorted(paths):
        if path.suffix.lower() in _COMPRESSED and _is_text(path.with_suffix("")):
            raise ConfigError(
                f"{path}: is a compressed text, which is not read. Decompress it, or take it out of the corpus."
            )


def _refuse_loop(folder: Path) -> None:
    """Raise a ConfigError for a link to a folder that it is in, below which the same files come again and again."""
    if folder.is_symlink() and folder.resolve() in [each.resolve() for each in folder.absolute().parents]:
        raise ConfigError(
            f"{folder}: the link leads to a folder that it is in ({folder.resolve()}). Take it out of the corpus."
        )


@cache
def library_files() -> tuple[TextFile, ...]:
    """Return the sources of Python's own library: real text that every machine has, without a download.

    The language reference in `pydoc_data` comes first, then the modules in the order of their paths.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: list[TextFile] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _NOT_LIBRARY]
        paths = [Path(folder, name) for name in names if name.endswith(".py")]
        found += [TextFile(path.relative_to(root).as_posix(), path) for path in paths]
    return tuple(sorted(found, key=lambda file: (file.name != "pydoc_data/topics.py", file.name)))


@contextmanager
def _translate_read_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading into a ConfigError that names the file."""
    try:
        yield
    # The latter two are raised for an encoding that a Python source declares.
    except (UnicodeError, SyntaxError, LookupError) as error:
        raise ConfigError(
            f"{path}: is not text: {error}. Convert the file to UTF-8 or take it out of the corpus."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Check that it is a file and its permissions."
        ) from error


def _open(path: Path) -> TextIO:
    """Open a file as text, every line end as a line feed."""
    return tokenize.open(path) if path.suffix == ".py" else path.open(encoding="utf-8-sig")


def articles(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield title and text of each article of a WikiText file; the texts together are the file.

    An article begins at a line ` = Title = ` between two blank lines. Without this condition, ` = 1 rad / s ... = `
    inside a formula would begin one. A copy of WikiText with blank lines around every line still has that fault: its
    60 test articles become 62 documents.
    """
    title, body, previous = "", list[str](), ""
    for line, following in pairwise(chain(lines, [""])):
        heading = _HEADING.fullmatch(line.rstrip("\n"))
        if heading and not previous.strip() and not following.strip():
            if any(text.strip() for text in body):
                yield title, "".join(body)
                body = []
            title = heading[1]
        body.append(line)
        previous = line
    yield title, "".join(body)


def _is_wikitext(path: Path) -> bool:
    """Return True if the first line that is not blank is an article's heading, followed by a blank line."""
    with _open(path) as file:
        first = next((line for line in file if line.strip()), "")
        following = next(file, "")
    return _HEADING.fullmatch(first.rstrip("\n")) is not None and not following.strip()


def _read_json_lines(file: TextFile) -> Iterator[Document]:
    """Yield the document of each line that is not blank."""
    with _open(file.path) as lines:
        for number, line in enumerate(lines, 1):
            text = _text_of(line, f"{file.path}:{number}") if line.strip() else ""
            if text.strip():
                yield Document(f"{file.name}/{number}", text)


def _text_of(line: str, place: str) -> str:
    """Return the text of a line of JSON, every line end as a line feed.

    Raises:
        ConfigError: there is none.
    """
    try:
        row = parse_json_line(line)
    except ValueError as error:
        raise ConfigError(
            f"{place}: is not JSON: {error}. Correct the line, or take the file out of the corpus."
        ) from error
    for field in TEXT_FIELDS:
        if isinstance(row, dict) and isinstance(text := row.get(field), str):
            return text.replace("\r\n", "\n").replace("\r", "\n")
    raise ConfigError(
        f"{place}: has no text. A line is an object with the text of a document in the field "
        f"'{TEXT_FIELDS[0]}' or '{TEXT_FIELDS[1]}'. Rename the field, or take the file out of the corpus."
    )


def read_documents(file: TextFile) -> Iterator[Document]:
    """Yield the documents of a file in order.

    An article is called "FILE/TITLE"; a second one of the same title is called "FILE/TITLE (2)".

    Raises:
        ConfigError: the file cannot be read, is not text, or has a line of JSON without a text.
    """
    with _translate_read_errors(file.path):
        if _is_json_lines(file):
            yield from _read_json_lines(file)
        elif _is_wikitext(file.path):
            seen: Counter[str] = Counter()
            with _open(file.path) as opened:
                for title, text in articles(opened):
                    seen[title] += 1
                    number = f" ({seen[title]})" if seen[title] > 1 else ""
                    yield Document(f"{file.name}/{title}{number}", text)
        else:
            with _open(file.path) as opened:
                text = opened.read()
            if text.strip():
                yield Document(file.name, text)


def index_files(files: Sequence[TextFile]) -> list[FileIndex]:
    """Return the index of each file, from the cache while the file has not changed.

    Raises:
        ConfigError: a file cannot be read or is not text.
    """
    # The names of documents depend on the folder that was given, so one file has an index per name.
    places = [f"{file.name}\n{file.path.resolve()}" for file in files]
    key = hashlib.sha256(
        "\n".join([reading_of(files), *places]).encode("utf-8", "surrogateescape")
    ).hexdigest()[:16]
    path = cache_dir() / "catalogues" / f"{key}.json"
    cached = _load_cached(path)
    settled_ns = time.time_ns() - _SETTLED_NS
    found = {
        file.name: cached[file.name]
        if file.name in cached and is_unchanged(file, cached[file.name])
        else _index(file)
        for file in files
    }
    if found != cached:
        _store_settled(path, found, settled_ns)
    return list(found.values())


def is_unchanged(file: TextFile, index: FileIndex) -> bool:
    """Return True if a file still has the size and the modification time of its index."""
    now = _stat(file)
    return (now.st_size, now.st_mtime_ns) == (index.size, index.mtime_ns)


def _stat(file: TextFile) -> os.stat_result:
    try:
        found = file.path.stat()
    except OSError as error:
        raise ConfigError(f"{file.path}: cannot be read ({error.strerror}). Check the file.") from error
    if not S_ISREG(found.st_mode):  # a device or a pipe may never end
        raise ConfigError(f"{file.path}: is not a regular file. Take it out of the corpus.")
    return found


def _index(file: TextFile) -> FileIndex:
    """Read a file and index it."""
    before = _stat(file)
    names = []
    with _translate_read_errors(file.path):
        for name, text in read_documents(file):
            text.encode()  # some encodings of Python sources give half of a surrogate pair
            names.append(name)
        sha256 = checksum(file.path)
    return FileIndex(size=before.st_size, mtime_ns=before.st_mtime_ns, sha256=sha256, documents=tuple(names))


def _load_cached(path: Path) -> dict[str, FileIndex]:
    """Load cached indexes; an absent or damaged cache is empty, and every file is read again."""
    try:
        return _Indexes.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}


def _store_settled(path: Path, found: dict[str, FileIndex], settled_ns: int) -> None:
    """Cache the indexes of files modified before `settled_ns`; a cache that cannot be written is left out."""
    settled = {name: index for name, index in found.items() if index.mtime_ns < settled_ns}
    with suppress(StorageError, ValueError):  # a name that is not Unicode has no JSON
        write_atomic(path, _Indexes.dump_json(settled))
