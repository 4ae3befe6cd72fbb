"""Text files as documents.

A document is the whole text of a file as Python reads text: UTF-8 (a Python source as it declares itself), every line
end as a line feed, a byte order mark dropped. Nothing else is changed: the title, author and year that head a Markdown
book are part of it. A file that begins with a WikiText heading (` = Title = `) is split into its articles, their text
raw as it is (`<unk>`, ` @-@ `). Texts of blanks alone are no documents, nor are README, LICENSE and the like, nor
hidden files.
"""

import os
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple, TextIO

from retbench.data.corpus import Document
from retbench.errors import ConfigError

READING = "universal newlines, WikiText by article; version 1"
"""Part of a corpus's fingerprint; changes when what follows does."""
SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".tokens"})
"""Of the files of a folder that are text."""

_ABOUT = frozenset({"readme", "license", "licence", "copying", "notice", "changelog"})
_HEADING = re.compile(r" = (?!= )(.+) = ?")


class TextFile(NamedTuple):
    """A file of a corpus."""

    name: str
    """Relative to the corpus, with forward slashes."""
    path: Path


def list_files(root: Path) -> list[TextFile]:
    """The text files in and below a folder, in the order of their names; or the one file that `root` is.

    Raises:
        ConfigError: there is none.
    """
    if not root.is_dir():
        return [TextFile(root.name, root)]
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths = [Path(folder, name) for name in names if not name.startswith(".")]
        found += [
            path for path in paths if path.suffix.lower() in SUFFIXES and path.stem.lower() not in _ABOUT
        ]
    if not found:
        raise ConfigError(
            f"{root}: no text in this folder. A corpus is a folder with files in {', '.join(sorted(SUFFIXES))}; "
            "README and LICENSE do not count."
        )
    return sorted(TextFile(path.relative_to(root).as_posix(), path) for path in found)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what goes wrong in reading into a ConfigError that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not {error.encoding} text: {error.reason} (byte 0x{error.object[error.start]:02x}). Convert the "
            "file to UTF-8 or take it out of the corpus."
        ) from error
    except SyntaxError as error:  # a Python source that declares an encoding which does not exist
        raise ConfigError(f"{path}: {error.msg}. Take the file out of the corpus.") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Check that it is a file and its permissions."
        ) from error


def _open(path: Path) -> TextIO:
    """The file as text, every line end as a line feed."""
    return tokenize.open(path) if path.suffix == ".py" else path.open(encoding="utf-8-sig")


def articles(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Title and text of each article of a WikiText file; together the texts are the file.

    An article begins at a line ` = Title = ` between two blank ones: without these, ` = 1 rad / s ... = ` inside a
    formula would count. They do where a copy of WikiText has blank lines around every line: its 60 test articles are
    62 documents then.
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
    """Whether the first line that is not blank is the heading of an article, and the next one is blank."""
    with _open(path) as file:
        first = next((line for line in file if line.strip()), "")
        following = next(file, "")
    return _HEADING.fullmatch(first.rstrip("\n")) is not None and not following.strip()


def read_documents(file: TextFile) -> Iterator[Document]:
    """The documents of a file in their order; an article is "FILE/TITLE", a second of that title "FILE/TITLE (2)".

    Raises:
        ConfigError: the file cannot be read, or is not text.
    """
    with _readable(file.path):
        if _is_wikitext(file.path):
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
