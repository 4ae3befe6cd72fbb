"""Text to packed tokens, once for each corpus, split and tokenizer.

Documents follow one another in the order of the corpus, each with the tokenizer's end-of-text token after it. They are
read, encoded and written one by one. A folder of packed tokens is built beside its place and renamed: it is there whole
or not at all. Of several processes that want the same one, one builds it and the others wait.
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
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from retbench.data.corpus import Corpus, check_split
from retbench.data.packed import (
    FORMAT_VERSION,
    HEADER,
    NAMES,
    NUM_BYTES,
    OFFSETS,
    TOKENS,
    Header,
    PackedTokens,
    stamp,
)
from retbench.data.places import cache_dir
from retbench.data.tokenizers import Tokenizer
from retbench.errors import ConfigError, RetbenchError, StorageError

_log = logging.getLogger(__name__)

Report = Callable[[int, int], None]
"""Called after each document with the documents and the UTF-8 bytes packed so far."""


class _Request(NamedTuple):
    """What is to be packed."""

    corpus: Corpus
    split: str
    tokenizer: Tokenizer
    max_tokens: int | None

    @property
    def key(self) -> str:
        """Name of the folder: a hash of all that the tokens depend on."""
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
        """The narrowest that holds every token."""
        return "<u2" if self.tokenizer.vocab_size <= 2**16 else "<u4"


def pack(
    corpus: Corpus,
    split: str,
    tokenizer: Tokenizer,
    folder: Path | None = None,
    *,
    max_tokens: int | None = None,
    report: Report | None = None,
) -> PackedTokens:
    """The tokens of a split: those packed before if they are whole, else packed now.

    Args:
        corpus: What to pack.
        split: Of the corpus.
        tokenizer: What turns texts into tokens.
        folder: Where packed tokens are kept; `packed` in the cache folder when None.
        max_tokens: Stop after the document with which there are so many; for a stream without end.
        report: Told how far it is.

    Raises:
        ConfigError: there is no such split, or no token in it, or one beyond the vocabulary.
        StorageError: the disk is full or the folder cannot be written; what was begun is removed.
        RetbenchError: what the corpus raises.
    """
    check_split(corpus, split)
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; it has to be 1 or more.")
    request = _Request(corpus, split, tokenizer, max_tokens)
    path = (folder or cache_dir() / "packed") / request.key
    found = _find(path)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            return _find(path) or _build(path, request, report)
    except OSError as error:
        raise StorageError(
            f"{path}: the packed tokens could not be stored: {error.strerror or error}. Free some space or set "
            "RETBENCH_CACHE to another folder, then run the same command again."
        ) from error


def _find(path: Path) -> PackedTokens | None:
    """The packed tokens at `path` if they are there and whole."""
    if not path.exists():
        return None
    try:
        return PackedTokens(path)
    except RetbenchError:
        return None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Alone in building `path`; says so where another process is at it."""
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


def _build(path: Path, request: _Request, report: Report | None) -> PackedTokens:
    """Pack into a folder beside `path` and rename it; the lock is held, so what lies there is a dead builder's."""
    if path.exists():
        _log.warning("%s: the packed tokens are damaged; they are packed again.", path)
        shutil.rmtree(path)
    draft = path.with_suffix(".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        _write_documents(draft, request, report)
        _write_header(draft, request)
        draft.replace(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return PackedTokens(path)


def _write_documents(draft: Path, request: _Request, report: Report | None) -> None:
    """Write the tokens as they come, then what is known of the documents; of these alone memory holds a list."""
    offsets, num_bytes, names, total_bytes = array("q", [0]), array("q"), list[str](), 0
    with (draft / TOKENS).open("wb") as file:
        for name, text in request.corpus.documents(request.split):
            tokens = _encode(request.tokenizer, name, text)
            file.write(tokens.astype(request.dtype).tobytes())
            offsets.append(offsets[-1] + len(tokens))
            num_bytes.append(len(text.encode()))
            names.append(name)
            total_bytes += num_bytes[-1]
            if report is not None:
                report(len(names), total_bytes)
            if request.max_tokens is not None and offsets[-1] >= request.max_tokens:
                break
        file.flush()
        os.fsync(file.fileno())
    if not offsets[-1]:
        raise ConfigError(
            f"the split '{request.split}' of the corpus '{request.corpus.name}' has no tokens. Choose another."
        )
    np.save(draft / OFFSETS, np.array(offsets, dtype=np.int64))
    np.save(draft / NUM_BYTES, np.array(num_bytes, dtype=np.int64))
    (draft / NAMES).write_text(json.dumps(names), encoding="utf-8")


def _write_header(draft: Path, request: _Request) -> None:
    """Write what the other files are, and what was packed."""
    header = Header(
        corpus=request.corpus.name,
        corpus_fingerprint=request.corpus.fingerprint,
        split=request.split,
        tokenizer=request.tokenizer.name,
        tokenizer_fingerprint=request.tokenizer.fingerprint,
        vocab_size=request.tokenizer.vocab_size,
        eos_token_id=request.tokenizer.eos_token_id,
        max_tokens=request.max_tokens,
        dtype=request.dtype,
        files={name: stamp(draft / name) for name in (TOKENS, OFFSETS, NUM_BYTES, NAMES)},
    )
    (draft / HEADER).write_text(header.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _encode(tokenizer: Tokenizer, name: str, text: str) -> npt.NDArray[np.int64]:
    """A document's tokens and the one that ends it; ConfigError where one is beyond the vocabulary."""
    tokens = np.array(tokenizer.encode(text), dtype=np.int64)
    if tokenizer.eos_token_id is not None:
        tokens = np.append(tokens, tokenizer.eos_token_id)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
        raise ConfigError(
            f"the tokenizer '{tokenizer.name}' says it has {tokenizer.vocab_size:,} tokens and gives {tokens.max():,} "
            f"in document '{name}'. Its files do not belong together; fetch them again."
        )
    return tokens
