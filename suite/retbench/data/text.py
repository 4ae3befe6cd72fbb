"""Benchmark text that every machine has: the sources of Python's own library, as bytes.

The files are read one after another, and nothing is repeated. The `fingerprint` of the text is part of every record.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from functools import cache

import torch

from retbench.data.text_files import library_files
from retbench.errors import UnsupportedError

ROW_STRIDE = 2**16
"""Tokens between the starts of two rows, if the text suffices: then row b is the same for every batch size."""


def _contents() -> Iterator[bytes]:
    for _, path in library_files():
        try:
            yield path.read_bytes()
        except OSError as error:
            raise UnsupportedError(
                f"{path}: cannot be read ({error.strerror}); the models read Python's own library. "
                "Repair this Python installation or use another."
            ) from error


@cache
def fingerprint() -> str:
    """Return a short hash of the whole text; machines with equal fingerprints read the same text."""
    digest = hashlib.sha256()
    for content in _contents():
        digest.update(content)
    return digest.hexdigest()[:12]


def read_tokens(num_tokens: int) -> torch.Tensor:
    """Return the first `num_tokens` bytes of the text, int64, each 0 to 255.

    Raises:
        UnsupportedError: this Python has less text than that.
    """
    return _read_bytes(num_tokens).to(torch.int64)


def _read_bytes(num_tokens: int) -> torch.Tensor:
    """Read bytes as uint8: rows that lie far apart need few of the bytes between them."""
    text = bytearray()
    for content in _contents():
        text += content
        if len(text) >= num_tokens:
            return torch.frombuffer(text, dtype=torch.uint8)[:num_tokens]
    raise UnsupportedError(
        f"{num_tokens:,} tokens of text are needed, and the library of this Python has {len(text):,} bytes "
        f"below {sysconfig.get_path('stdlib')}. Use a smaller batch or shorter contexts, or a Python with "
        "its full library."
    )


@cache
def _num_tokens() -> int:
    return sum(map(len, _contents()))


def read_rows(batch_size: int, num_tokens: int, *, start: int = 0) -> torch.Tensor:
    """Return different text for each sequence, (batch_size, num_tokens) int64; rows never overlap.

    Args:
        batch_size: Rows. If the text is too short for strides of `ROW_STRIDE`, the stride is shortened.
        num_tokens: Tokens per row.
        start: Tokens to skip at the start of each row's text.

    Raises:
        UnsupportedError: this Python has less text than that.
    """
    stride = max(ROW_STRIDE, num_tokens)
    if batch_size > 1:
        room = (_num_tokens() - start - num_tokens) // (batch_size - 1)
        stride = max(num_tokens, min(stride, room))
    text = _read_bytes(start + (batch_size - 1) * stride + num_tokens)[start:]
    return text.unfold(0, num_tokens, stride).to(torch.int64)
