"""Which documents are for training, which for validation and which for the test.

The first of these rules that fits:

1. The source's own: every file says in its name or folder which split it is (`wiki.valid.tokens`, `test/1.txt`), and
   not all say train.
2. Three documents or more: in the order of a hash of their names the first 5 % (rounded, one at least) are for
   validation, the last 5 % for the test, those between for training. No split is empty, and the counts are exact;
   another document more may move others.
3. One or two: each is cut into contiguous parts, the first 90 % of its characters for training, the next 5 % for
   validation, the last 5 % for the test, every cut moved on to the next line end.
"""

import hashlib
import re
from collections.abc import Sequence

SPLITS = ("train", "validation", "test")
RULE = "own files, or order of name hash 5/90/5, or contiguous 90/5/5; version 1"
"""Part of a corpus's fingerprint; changes when what follows does."""
MIN_DOCUMENTS = 3
"""Fewer are cut."""
MIN_CHARACTERS = 20
"""Fewer cannot be cut at 90 % and 95 % into parts that hold something."""

_HELD_OUT = 0.05
"""Share of validation, and of the test."""
_BOUNDS = (1 - 2 * _HELD_OUT, 1 - _HELD_OUT)
_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def own_split(name: str) -> str | None:
    """The split that a name or relative path speaks of; None where it is none or more than one."""
    found = {_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def own_splits(names: Sequence[str]) -> list[str] | None:
    """The split of each name where all of them say one and not all say train, else None."""
    found = [split for name in names if (split := own_split(name)) is not None]
    return found if len(found) == len(names) and set(found) != {"train"} else None


def _position(name: str) -> float:
    """Where the hash of a name lies, in [0, 1)."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def hashed_split(name: str) -> str:
    """The split of one document of an unknown number, by its name alone: 90 / 5 / 5 in expectation."""
    return SPLITS[sum(_position(name) >= bound for bound in _BOUNDS)]


def hashed_splits(names: Sequence[str]) -> dict[str, str]:
    """The split of each document, of `MIN_DOCUMENTS` or more."""
    order = sorted(names, key=lambda name: (_position(name), name))
    held_out = max(1, round(len(names) * _HELD_OUT))
    train = ["train"] * (len(names) - 2 * held_out)
    return dict(zip(order, ["validation"] * held_out + train + ["test"] * held_out, strict=True))


def cut(text: str) -> dict[str, str]:
    """The contiguous parts of a text of `MIN_CHARACTERS` or more, by split; none is empty, together they are it."""
    first, second = (int(len(text) * bound) for bound in _BOUNDS)
    start = text.find("\n", first, second - 1) + 1 or first
    end = text.find("\n", second, len(text) - 1) + 1 or second
    return dict(zip(SPLITS, (text[:start], text[start:end], text[end:]), strict=True))
