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

from retbench.errors import RecordError
from retbench.files import write_atomic
from retbench.records.record import Documents


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
        RecordError: the file is missing or damaged, or does not belong to the record.
    """
    path = folder / documents.file
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(
            f"{path}: the results of the record's documents cannot be read: {error}. Run the same command with --fresh."
        ) from error
    if hashlib.sha256(text).hexdigest() != documents.sha256:
        raise RecordError(
            f"{path}: does not belong to the record (its hash differs). Run the same command with --fresh."
        )
    return [json.loads(line) for line in text.splitlines()]
