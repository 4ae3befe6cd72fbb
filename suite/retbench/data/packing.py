"""Packed tokens: the text of a corpus split, tokenized once and read from disk without loading it.

Documents follow one another in the order of the corpus, each with the tokenizer's end-of-text token after it and, if
that is another one, its begin-of-text token before it. They are read, tokenized and written one by one. A folder of
packed tokens is complete or absent. If several processes need the same folder, one builds it and the others wait.

A folder holds `tokens.bin` (unsigned 16 or 32 bits, little-endian), and `header.json` with its SHA-256, which is
checked on opening.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from pydantic import ValidationError

from retbench.data.corpora import Corpus, check_split
from retbench.data.tokenizers import Tokenizer, has_own_begin
from retbench.errors import ConfigError, RetbenchError, StorageError
from retbench.files import DRAFT, atomic_folder, cache_dir, checksum, storing
from retbench.strict import Strict

FORMAT_VERSION: Literal[3] = 3
HEADER = "header.json"
TOKENS = "tokens.bin"

_log = logging.getLogger(__name__)

PackingProgress = Callable[[int, int], None]
"""Called after each document with the number of documents and of UTF-8 bytes packed so far."""


class PackedHeader(Strict):
    """Content of `header.json`: everything that the tokens depend on, and their hash."""

    format_version: Literal[3] = FORMAT_VERSION
    corpus: str
    """Name of the corpus when it was packed; `corpus_fingerprint` identifies its content."""
    corpus_fingerprint: str
    split: str
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    eos_token_id: int | None
    max_tokens: int | None
    dtype: Literal["<u2", "<u4"]
    sha256: str = ""

    @property
    def key(self) -> str:
        """Name of the folder: a hash of the inputs."""
        inputs = self.model_dump_json(exclude={"corpus", "tokenizer", "sha256"})
        return hashlib.sha256(inputs.encode()).hexdigest()[:16]


class PackedTokens:
    """The packed tokens of one split; `pack` creates and finds them.

    Args:
        folder: The folder of both files.

    Raises:
        RetbenchError: a file is missing or has changed since it was written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.header = PackedHeader.model_validate_json((folder / HEADER).read_bytes())
            fault = "" if checksum(folder / TOKENS) == self.header.sha256 else f"{TOKENS} was changed"
        except OSError as error:
            fault = f"a file cannot be read: {error.strerror}"
        except ValidationError:
            fault = f"{HEADER} is not a header of this version"
        if fault:
            raise RetbenchError(f"{folder}: the packed tokens are damaged ({fault}). Remove the folder.")
        self.split = self.header.split
        self.tokens: npt.NDArray[Any] = np.memmap(folder / TOKENS, dtype=self.header.dtype, mode="r")
        """(num_tokens,) uint16 or uint32, on disk."""

    def __len__(self) -> int:
        """Return the tokens of the stream, end-of-text tokens included."""
        return len(self.tokens)


def pack(
    corpus: Corpus,
    split: str,
    tokenizer: Tokenizer,
    folder: Path | None = None,
    *,
    max_tokens: int | None = None,
    report: PackingProgress | None = None,
) -> PackedTokens:
    """Return the tokens of a split, packed before if that folder is undamaged, else packed now.

    Args:
        corpus: Corpus to pack.
        split: Split of the corpus.
        tokenizer: Tokenizer for the texts.
        folder: Folder of packed tokens; `packed` in the cache folder when None.
        max_tokens: Stop after the document that reaches this number; for an endless stream.
        report: Called after each document.

    Raises:
        ConfigError: there is no such split, or no token in it, or one beyond the vocabulary.
        StorageError: the disk is full or the folder cannot be written; partial output is removed.
        RetbenchError: an error of the corpus.
    """
    check_split(corpus, split)
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; it has to be 1 or more.")
    header = PackedHeader(
        corpus=corpus.name,
        corpus_fingerprint=corpus.fingerprint,
        split=split,
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        max_tokens=max_tokens,
        dtype="<u2" if tokenizer.vocab_size <= 2**16 else "<u4",
    )
    path = (folder or cache_dir() / "packed") / header.key
    found = _find(path)
    if found is not None:
        return found
    try:
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path.parent)
            with _lock(path):
                return _find(path) or _build(path, header, corpus, tokenizer, report)
    except StorageError as error:
        raise StorageError(f"{error} RETBENCH_CACHE names the folder.") from error


def _find(path: Path) -> PackedTokens | None:
    """Return the packed tokens at `path` if they exist and are undamaged."""
    try:
        return PackedTokens(path) if path.exists() else None
    except RetbenchError:
        return None


def _remove_leftovers(folder: Path) -> None:
    """Remove the drafts of killed processes: nobody holds their locks."""
    for draft in folder.glob(f"{DRAFT}*"):
        key = draft.name.removeprefix(DRAFT).partition(".")[0]
        lock = FileLock(folder / f"{key}.lock")
        with suppress(Timeout), lock.acquire(timeout=0):
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock on building `path`, with a warning when another process holds it."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("%s: another process packs these tokens; waiting for it.", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(
    path: Path, header: PackedHeader, corpus: Corpus, tokenizer: Tokenizer, report: PackingProgress | None
) -> PackedTokens:
    """Write the tokens document by document; called with the lock held."""
    if path.exists():
        _log.warning("%s: the packed tokens are damaged; they are packed again.", path)
    num_tokens = num_bytes = 0
    with atomic_folder(path) as draft:
        with (draft / TOKENS).open("wb") as file:
            for number, (name, text) in enumerate(corpus.documents(header.split), 1):
                tokens = _encode(tokenizer, name, text)
                file.write(tokens.astype(header.dtype).tobytes())
                num_tokens += len(tokens)
                num_bytes += len(text.encode())
                if report is not None:
                    report(number, num_bytes)
                if header.max_tokens is not None and num_tokens >= header.max_tokens:
                    break
        if not num_tokens:
            raise ConfigError(
                f"the split '{header.split}' of the corpus '{corpus.name}' has no tokens. Choose another."
            )
        complete = header.model_copy(update={"sha256": checksum(draft / TOKENS)})
        (draft / HEADER).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return PackedTokens(path)


def _encode(tokenizer: Tokenizer, name: str, text: str) -> npt.NDArray[np.int64]:
    """Return a document's tokens with the text's begin and end; ConfigError if one is beyond the vocabulary.

    Evaluation puts the begin-of-text token before a text (`tokenizers.prefix_token`), so a model has to learn it. Where
    the end-of-text token is the same, that of the document before begins the next.
    """
    tokens = np.array(tokenizer.encode(text), dtype=np.int64)
    if has_own_begin(tokenizer):
        tokens = np.insert(tokens, 0, cast(int, tokenizer.bos_token_id))
    if tokenizer.eos_token_id is not None:
        tokens = np.append(tokens, tokenizer.eos_token_id)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
        raise ConfigError(
            f"the tokenizer '{tokenizer.name}' says it has {tokenizer.vocab_size:,} tokens and gives {tokens.max():,} "
            f"in document '{name}'. Its files do not belong together; fetch them again."
        )
    return tokens
