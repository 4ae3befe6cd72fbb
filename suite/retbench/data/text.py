"""Real text that every machine has: the sources of CPython's own library, as bytes.

Which files and in which order, `standard_library` says; they are read one after another. Nothing is ever repeated.
Which Python's library it is, `fingerprint` tells; it is part of every record.
"""

import hashlib
import sysconfig
from functools import cache

import torch

from retbench.data import standard_library
from retbench.errors import UnsupportedError

ROW_STRIDE = 2**16
"""Tokens between the starts of two rows, as long as the text suffices for all of them: row b is then the same text
whatever the batch size."""


@cache
def fingerprint() -> str:
    """Short hash of the whole text: two machines with one fingerprint read the same."""
    digest = hashlib.sha256()
    for content in standard_library.contents():
        digest.update(content)
    return digest.hexdigest()[:12]


def read_tokens(num_tokens: int) -> torch.Tensor:
    """The first `num_tokens` bytes of the text, int64, each 0 to 255.

    Raises:
        UnsupportedError: this Python has less text than that.
    """
    return _read_bytes(num_tokens).to(torch.int64)


def _read_bytes(num_tokens: int) -> torch.Tensor:
    """The same as they lie in memory, uint8: of many rows that are far apart most is not wanted."""
    text = bytearray()
    for content in standard_library.contents():
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
    """Tokens of the whole text."""
    return sum(map(len, standard_library.contents()))


def read_rows(batch_size: int, num_tokens: int, *, start: int = 0) -> torch.Tensor:
    """Different text for each sequence, (batch_size, num_tokens) int64; rows never overlap.

    Args:
        batch_size: Rows. For more than there is text for in strides of `ROW_STRIDE` the stride is shortened.
        num_tokens: Tokens of each.
        start: Tokens of each row's text that are passed over, the last of them where only its end is wanted.

    Raises:
        UnsupportedError: this Python has less text than that.
    """
    stride = max(ROW_STRIDE, num_tokens)
    if batch_size > 1:
        room = (_num_tokens() - start - num_tokens) // (batch_size - 1)
        stride = max(num_tokens, min(stride, room))
    text = _read_bytes(start + (batch_size - 1) * stride + num_tokens)[start:]
    return text.unfold(0, num_tokens, stride).to(torch.int64)
