"""Assignment of documents to training, validation and test.

The first rule that fits applies:

1. The source's own split: the name or folder of every file names a split (`wiki.valid.tokens`, `test/1.txt`), and not
   all of them name train.
2. Three documents or more: they are ordered by a hash of their names. The first 5 % (rounded, at least one) are for
   validation, the last 5 % for the test, the rest for training. The counts are exact and no split is empty; one more
   document may move others.
3. One or two documents: each is cut into the first 90 % of its characters for training, the next 5 % for validation
   and the last 5 % for the test. Every cut is moved on to the next line end.
"""

import hashlib
import re
from collections.abc import Sequence

SPLITS = ("train", "validation", "test")
ALL = "all"
"""The split that holds every document, uncut."""
RULE = "own files, or order of name hash 5/90/5, or contiguous 90/5/5; version 1"
"""Part of a corpus's fingerprint; must change with the rules of this module."""
MIN_DOCUMENTS = 3
"""Fewer documents are cut."""
MIN_CHARACTERS = 20
"""Shorter texts cannot be cut at 90 % and 95 % into non-empty parts."""

_HELD_OUT = 0.05
"""Fraction of the documents for validation, and the same for the test."""
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
    """Return the split that a name or relative path mentions; None if it mentions none or several."""
    found = {_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def own_splits(names: Sequence[str]) -> list[str] | None:
    """Return the split of each name if all of them mention one and not all mention train, else None."""
    found = [split for name in names if (split := own_split(name)) is not None]
    return found if len(found) == len(names) and set(found) != {"train"} else None


def _position(name: str) -> float:
    """Map a name to [0, 1) by its hash."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def hashed_split(name: str) -> str:
    """Return the split of a single document by its name: 90 / 5 / 5 in expectation, for an unknown number of them."""
    return SPLITS[sum(_position(name) >= bound for bound in _BOUNDS)]


def hashed_splits(names: Sequence[str]) -> dict[str, str]:
    """Return the split of each of `MIN_DOCUMENTS` or more documents."""
    order = sorted(names, key=lambda name: (_position(name), name))
    held_out = max(1, round(len(names) * _HELD_OUT))
    train = ["train"] * (len(names) - 2 * held_out)
    return dict(zip(order, ["validation"] * held_out + train + ["test"] * held_out, strict=True))


def cut(text: str) -> dict[str, str]:
    """Cut a text of at least `MIN_CHARACTERS` into contiguous, non-empty parts, by split."""
    first, second = (int(len(text) * bound) for bound in _BOUNDS)
    start = text.find("\n", first, second - 1) + 1 or first
    end = text.find("\n", second, len(text) - 1) + 1 or second
    return dict(zip(SPLITS, (text[:start], text[start:end], text[end:]), strict=True))
