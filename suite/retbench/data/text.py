"""Real text that every machine has: the sources of CPython's own library, as bytes.

The language reference in `pydoc_data` comes first, then the library's modules in the order of their paths.
Nothing is ever repeated. Which Python's library it is, `fingerprint` tells; it is part of every record.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from retbench.errors import UnsupportedError

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests"})
"""Folders that are not the library, or that many systems package apart."""

ROW_STRIDE = 2**16
"""Tokens between the starts of two rows: row b is the same text whatever the batch size."""


@cache
def _paths() -> tuple[Path, ...]:
    """Sources of the library, in a stable order."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    reference = root / "pydoc_data" / "topics.py"
    return tuple(sorted(found, key=lambda path: (path != reference, path.relative_to(root).as_posix())))


def _files() -> Iterator[bytes]:
    """The bytes of each source in turn; UnsupportedError where one cannot be read."""
    for path in _paths():
        try:
            yield path.read_bytes()
        except OSError as error:
            raise UnsupportedError(
                f"{path}: cannot be read ({error.strerror}); the models read Python's own library. "
                "Repair this Python installation or use another."
            ) from error


@cache
def fingerprint() -> str:
    """Short hash of the whole text: two machines with one fingerprint read the same."""
    digest = hashlib.sha256()
    for content in _files():
        digest.update(content)
    return digest.hexdigest()[:12]


def read_tokens(num_tokens: int) -> torch.Tensor:
    """The first `num_tokens` bytes of the text, int64, each 0 to 255.

    Raises:
        UnsupportedError: this Python has less text than that.
    """
    text = bytearray()
    for content in _files():
        text += content
        if len(text) >= num_tokens:
            return torch.frombuffer(text, dtype=torch.uint8)[:num_tokens].to(torch.int64)
    raise UnsupportedError(
        f"{num_tokens:,} tokens of text are needed, and the library of this Python has {len(text):,} bytes "
        f"below {sysconfig.get_path('stdlib')}. Use a smaller batch or shorter contexts, or a Python with "
        "its full library."
    )


def read_rows(batch_size: int, num_tokens: int) -> torch.Tensor:
    """Different text for each sequence, (batch_size, num_tokens) int64; rows never overlap.

    Raises:
        UnsupportedError: this Python has less text than that.
    """
    stride = max(ROW_STRIDE, num_tokens)
    text = read_tokens((batch_size - 1) * stride + num_tokens)
    return torch.stack([text[row * stride : row * stride + num_tokens] for row in range(batch_size)])
