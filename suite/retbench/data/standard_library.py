"""The sources of CPython's own library: real text that every machine has, with no download.

The language reference in `pydoc_data` comes first, then the library's modules in the order of their paths. Tests and
installed packages are left out.
"""

import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from retbench.errors import UnsupportedError

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests"})
"""Folders that are not the library, or that many systems package apart."""


def root() -> Path:
    """Folder of the library."""
    return Path(sysconfig.get_path("stdlib"))


@cache
def paths() -> tuple[Path, ...]:
    """Sources of the library, in a stable order."""
    folder_of_library = root()
    found: list[Path] = []
    for folder, subfolders, names in os.walk(folder_of_library):
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    reference = folder_of_library / "pydoc_data" / "topics.py"
    return tuple(
        sorted(found, key=lambda path: (path != reference, path.relative_to(folder_of_library).as_posix()))
    )


def contents() -> Iterator[bytes]:
    """The bytes of each source in turn; UnsupportedError where one cannot be read."""
    for path in paths():
        try:
            yield path.read_bytes()
        except OSError as error:
            raise UnsupportedError(
                f"{path}: cannot be read ({error.strerror}); the models read Python's own library. "
                "Repair this Python installation or use another."
            ) from error
