"""Results of single documents: one compressed JSON Lines file per record, in the folder of the record file.

A record holds the means. These files hold the values of each document, so that models can be compared on each document.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retbench.errors import ConfigError, RecordError
from retbench.files import inside, write_atomic
from retbench.parsing import parse_json
from retbench.records.record import Documents
from retbench.records.store import visible

MAX_BYTES = 256 * 2**20
"""Most bytes that the results of one record's documents may take, uncompressed: some two million documents."""


def write_documents(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> Documents:
    """Store one JSON object per document as `<folder>/<name>.documents.jsonl.gz`, whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written to.
    """
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode()
    path = folder / f"{name}.documents.jsonl.gz"
    write_atomic(path, gzip.compress(text, mtime=0))  # without a time, so that equal results are equal bytes
    return Documents(file=path.name, sha256=hashlib.sha256(text).hexdigest(), num_documents=len(rows))


def read_documents(folder: Path, documents: Documents) -> list[dict[str, Any]]:
    """Read the objects that `write_documents` stored.

    Raises:
        RecordError: the file is missing or damaged, is not in the folder, or does not belong to the record.
    """
    path = folder / visible(documents.file)
    try:
        text = _unpack(inside(folder, documents.file))
        if hashlib.sha256(text).hexdigest() != documents.sha256:
            raise ValueError("they do not belong to the record (their hash differs)")
        num_lines = text.count(b"\n")
        if num_lines != documents.num_documents:
            raise ValueError(
                f"there are {num_lines:,} of them, and the record has {documents.num_documents:,}"
            )
        rows = [parse_json(line) for line in text.split(b"\n")[:-1]]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("one is not a JSON object")
    except (ConfigError, OSError, EOFError, zlib.error, ValueError) as error:
        raise RecordError(
            f"{path}: the results of the record's documents cannot be read: {str(error).rstrip('.')}. Run the same "
            "command with --fresh."
        ) from error
    return rows


def _unpack(path: Path) -> bytes:
    """Return the uncompressed content of a file; ValueError if it is more than `MAX_BYTES`, before it takes more."""
    if path.is_symlink() or not path.is_file():
        raise ValueError("it is not a regular file")
    text = bytearray()
    with gzip.open(path) as file:
        while piece := file.read(2**20):
            text += piece
            if len(text) > MAX_BYTES:
                raise ValueError(f"they take more than {MAX_BYTES:,} bytes")
    return bytes(text)
