"""Results of single documents: one gzipped JSON Lines file a record, beside the record's own file.

A record holds the means; what they are the means of lies here, so that two models can be compared document by document.
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
    """Store one JSON object a document as `<folder>/<name>.documents.jsonl.gz`, whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written to.
    """
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode()
    path = folder / f"{name}.documents.jsonl.gz"
    write_atomic(path, gzip.compress(text, mtime=0))  # the same results are the same bytes
    return Documents(file=path.name, sha256=hashlib.sha256(text).hexdigest(), num_documents=len(rows))


def read_documents(folder: Path, documents: Documents) -> list[dict[str, Any]]:
    """The objects that `write_documents` stored.

    Raises:
        RecordError: the file is missing, damaged, or not the one that the record was made with.
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
            f"{path}: not the file that the record was made with (its hash differs). Run the same command with --fresh."
        )
    return [json.loads(line) for line in text.splitlines()]
