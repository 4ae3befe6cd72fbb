"""Tokens of a corpus on disk, read without loading them: one stream, and where in it each document lies.

A folder of five files: `tokens.bin` (unsigned 16 or 32 bits, little-endian), `offsets.npy` and `num_bytes.npy` (int64),
`names.json`, and `header.json` with the size and the SHA-256 of the others, which are checked whenever it is opened.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from retbench.errors import RetbenchError
from retbench.strict import Strict

FORMAT_VERSION: Literal[1] = 1
HEADER = "header.json"
TOKENS = "tokens.bin"
OFFSETS = "offsets.npy"
NUM_BYTES = "num_bytes.npy"
NAMES = "names.json"


class FileStamp(Strict):
    """What a file was when it was written."""

    size: int
    sha256: str


class Header(Strict):
    """What `header.json` holds."""

    format_version: Literal[1] = FORMAT_VERSION
    corpus: str
    """As it was called when it was packed; `corpus_fingerprint` says what it is."""
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
    """Its own, without the one that ends it."""
    num_bytes: int
    """UTF-8 bytes of its text."""


class PackedTokens:
    """The packed tokens of one split; `packing.pack` makes and finds them.

    Args:
        folder: Of the five files.

    Raises:
        RetbenchError: a file is missing, or is not what it was when it was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header = _checked_header(folder)
        self.split = self.header.split
        self.vocab_size = self.header.vocab_size
        self.eos_token_id = self.header.eos_token_id
        """The token that ends each document in the stream; None where the tokenizer has none and nothing does."""
        self.tokens: npt.NDArray[Any] = np.memmap(folder / TOKENS, dtype=self.header.dtype, mode="r")
        """(num_tokens,) uint16 or uint32, on disk."""
        self.offsets: npt.NDArray[np.int64] = np.load(folder / OFFSETS)
        """(num_documents + 1,): document i is tokens[offsets[i] : offsets[i + 1]], the token that ends it included."""
        self.num_bytes: npt.NDArray[np.int64] = np.load(folder / NUM_BYTES)
        """(num_documents,): UTF-8 bytes of each text."""
        self.names: list[str] = json.loads((folder / NAMES).read_bytes())
        stamps = self.header.files
        self.fingerprint = hashlib.sha256(
            f"{stamps[TOKENS].sha256} {stamps[OFFSETS].sha256} {self.header.dtype}".encode()
        ).hexdigest()[:12]
        """12 hex digits over the tokens and the boundaries: one fingerprint, the same stream."""

    def __len__(self) -> int:
        """Tokens of the stream, those that end documents included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents of the split."""
        return len(self.names)

    def document(self, index: int) -> PackedDocument:
        """The document number `index`, from 0."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        ended = self.eos_token_id is not None
        return PackedDocument(self.names[index], self.tokens[start : end - ended], int(self.num_bytes[index]))

    def documents(self) -> Iterator[PackedDocument]:
        """The documents in the order of the corpus."""
        return (self.document(index) for index in range(self.num_documents))


def stamp(path: Path) -> FileStamp:
    """Size and SHA-256 of a file as it is now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileStamp(size=path.stat().st_size, sha256=digest)


def _checked_header(folder: Path) -> Header:
    """The header, the other files found to be as it says."""
    try:
        header = Header.model_validate_json((folder / HEADER).read_bytes())
        for name in (TOKENS, OFFSETS, NUM_BYTES, NAMES):
            if stamp(folder / name) != header.files.get(name):
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
