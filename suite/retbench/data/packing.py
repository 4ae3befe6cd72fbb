"""Packed tokens: the text of a corpus split, tokenized once and read from disk without loading it.

Documents follow one another in the order of the corpus, each with the tokenizer's end-of-text token after it. They are
read, tokenized and written one by one. A folder of packed tokens is written under a temporary name and renamed, so it
is complete or absent. If several processes need the same folder, one builds it and the others wait.

A folder holds five files: `tokens.bin` (unsigned 16 or 32 bits, little-endian), `offsets.npy` and `num_bytes.npy`
(int64), `names.json`, and `header.json` with the size and SHA-256 of the others, which are checked on opening.
"""

import hashlib
import json
import logging
import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from pydantic import ValidationError

from retbench.data.corpora import Corpus, check_split
from retbench.data.places import cache_dir
from retbench.data.tokenizers import Tokenizer
from retbench.errors import ConfigError, RetbenchError, StorageError
from retbench.files import checksum
from retbench.strict import Strict

FORMAT_VERSION: Literal[1] = 1
HEADER = "header.json"
TOKENS = "tokens.bin"
OFFSETS = "offsets.npy"
NUM_BYTES = "num_bytes.npy"
NAMES = "names.json"

_log = logging.getLogger(__name__)

PackingProgress = Callable[[int, int], None]
"""Called after each document with the number of documents and of UTF-8 bytes packed so far."""


class FileStamp(Strict):
    """Size and hash of a file when it was written."""

    size: int
    sha256: str


class PackedHeader(Strict):
    """Content of `header.json`."""

    format_version: Literal[1] = FORMAT_VERSION
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
    files: dict[str, FileStamp]


class PackedDocument(NamedTuple):
    """One document of a packed corpus."""

    name: str
    tokens: npt.NDArray[Any]
    """Its tokens, without the end-of-text token."""
    num_bytes: int
    """UTF-8 bytes of its text."""


class PackedTokens:
    """The packed tokens of one split; `pack` creates and finds them.

    Args:
        folder: The folder of the five files.

    Raises:
        RetbenchError: a file is missing or has changed since it was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header = _checked_header(folder)
        self.split = self.header.split
        self.vocab_size = self.header.vocab_size
        self.eos_token_id = self.header.eos_token_id
        """The token after each document in the stream; None if the tokenizer has none."""
        self.tokens: npt.NDArray[Any] = np.memmap(folder / TOKENS, dtype=self.header.dtype, mode="r")
        """(num_tokens,) uint16 or uint32, on disk."""
        self.offsets: npt.NDArray[np.int64] = np.load(folder / OFFSETS)
        """(num_documents + 1,): document i with its end-of-text token is tokens[offsets[i] : offsets[i + 1]]."""
        self.num_bytes: npt.NDArray[np.int64] = np.load(folder / NUM_BYTES)
        """(num_documents,): UTF-8 bytes of each text."""
        self.names: list[str] = json.loads((folder / NAMES).read_bytes())
        stamps = self.header.files
        self.fingerprint = hashlib.sha256(
            f"{stamps[TOKENS].sha256} {stamps[OFFSETS].sha256} {self.header.dtype}".encode()
        ).hexdigest()[:12]
        """12 hex digits over the tokens and the document boundaries; equal only for equal streams."""

    def __len__(self) -> int:
        """Return the tokens of the stream, end-of-text tokens included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Number of documents of the split."""
        return len(self.names)

    def document(self, index: int) -> PackedDocument:
        """Return the document number `index`, from 0."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        has_end = self.eos_token_id is not None
        return PackedDocument(
            self.names[index], self.tokens[start : end - has_end], int(self.num_bytes[index])
        )

    def documents(self) -> Iterator[PackedDocument]:
        """Yield the documents in the order of the corpus."""
        return (self.document(index) for index in range(self.num_documents))


def _stamp(path: Path) -> FileStamp:
    return FileStamp(size=path.stat().st_size, sha256=checksum(path))


def _checked_header(folder: Path) -> PackedHeader:
    """Read the header and compare the other files with it."""
    try:
        header = PackedHeader.model_validate_json((folder / HEADER).read_bytes())
        for name in (TOKENS, OFFSETS, NUM_BYTES, NAMES):
            if _stamp(folder / name) != header.files.get(name):
                raise RetbenchError(
                    f"{folder / name}: the packed tokens are damaged: the file is not what was written. Remove the "
                    "folder."
                )
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a header of this version"
        raise RetbenchError(
            f"{folder}: the packed tokens are damaged: {HEADER} or another file cannot be read ({reason}). Remove the "
            "folder."
        ) from error
    return header


class _PackingJob(NamedTuple):
    """Everything that packed tokens depend on."""

    corpus: Corpus
    split: str
    tokenizer: Tokenizer
    max_tokens: int | None

    @property
    def key(self) -> str:
        """Name of the folder: a hash of the inputs."""
        parts = [
            FORMAT_VERSION,
            self.corpus.fingerprint,
            self.split,
            self.tokenizer.fingerprint,
            self.tokenizer.vocab_size,
            self.tokenizer.eos_token_id,
            self.max_tokens,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def dtype(self) -> Literal["<u2", "<u4"]:
        """The narrowest type that holds every token."""
        return "<u2" if self.tokenizer.vocab_size <= 2**16 else "<u4"


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
    job = _PackingJob(corpus, split, tokenizer, max_tokens)
    path = (folder or cache_dir() / "packed") / job.key
    found = _find(path)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            return _find(path) or _build(path, job, report)
    except OSError as error:
        raise StorageError(
            f"{path}: the packed tokens could not be stored: {error.strerror or error}. Free some space or set "
            "RETBENCH_CACHE to another folder, then run the same command again."
        ) from error


def _find(path: Path) -> PackedTokens | None:
    """Return the packed tokens at `path` if they exist and are undamaged."""
    try:
        return PackedTokens(path) if path.exists() else None
    except RetbenchError:
        return None


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


def _build(path: Path, job: _PackingJob, report: PackingProgress | None) -> PackedTokens:
    """Pack into a temporary folder and rename it; with the lock held, an old one belongs to a killed process."""
    if path.exists():
        _log.warning("%s: the packed tokens are damaged; they are packed again.", path)
        shutil.rmtree(path)
    draft = path.with_suffix(".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        _write_documents(draft, job, report)
        _write_header(draft, job)
        draft.replace(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return PackedTokens(path)


def _write_documents(draft: Path, job: _PackingJob, report: PackingProgress | None) -> None:
    """Write tokens document by document, then the table of documents, which alone is held in memory."""
    offsets, num_bytes, names, total_bytes = array("q", [0]), array("q"), list[str](), 0
    with (draft / TOKENS).open("wb") as file:
        for name, text in job.corpus.documents(job.split):
            tokens = _encode(job.tokenizer, name, text)
            file.write(tokens.astype(job.dtype).tobytes())
            offsets.append(offsets[-1] + len(tokens))
            num_bytes.append(len(text.encode()))
            names.append(name)
            total_bytes += num_bytes[-1]
            if report is not None:
                report(len(names), total_bytes)
            if job.max_tokens is not None and offsets[-1] >= job.max_tokens:
                break
        file.flush()
        os.fsync(file.fileno())
    if not offsets[-1]:
        raise ConfigError(
            f"the split '{job.split}' of the corpus '{job.corpus.name}' has no tokens. Choose another."
        )
    np.save(draft / OFFSETS, np.array(offsets, dtype=np.int64))
    np.save(draft / NUM_BYTES, np.array(num_bytes, dtype=np.int64))
    (draft / NAMES).write_text(json.dumps(names), encoding="utf-8")


def _write_header(draft: Path, job: _PackingJob) -> None:
    header = PackedHeader(
        corpus=job.corpus.name,
        corpus_fingerprint=job.corpus.fingerprint,
        split=job.split,
        tokenizer=job.tokenizer.name,
        tokenizer_fingerprint=job.tokenizer.fingerprint,
        vocab_size=job.tokenizer.vocab_size,
        eos_token_id=job.tokenizer.eos_token_id,
        max_tokens=job.max_tokens,
        dtype=job.dtype,
        files={name: _stamp(draft / name) for name in (TOKENS, OFFSETS, NUM_BYTES, NAMES)},
    )
    (draft / HEADER).write_text(header.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _encode(tokenizer: Tokenizer, name: str, text: str) -> npt.NDArray[np.int64]:
    """Return a document's tokens and its end-of-text token; ConfigError if one is beyond the vocabulary."""
    tokens = np.array(tokenizer.encode(text), dtype=np.int64)
    if tokenizer.eos_token_id is not None:
        tokens = np.append(tokens, tokenizer.eos_token_id)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
        raise ConfigError(
            f"the tokenizer '{tokenizer.name}' says it has {tokenizer.vocab_size:,} tokens and gives {tokens.max():,} "
            f"in document '{name}'. Its files do not belong together; fetch them again."
        )
    return tokens
