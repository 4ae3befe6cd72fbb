"""Files and folders that are there whole or not at all, whenever the process or the machine ends."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retbench.errors import StorageError

DRAFT = ".draft-"
"""Begins the name of what is being written; left behind by a process that died, and removed by the next."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file in one piece, on the disk when this returns.

    Raises:
        StorageError: the disk is full or the folder cannot be written; what was there is unharmed.
    """
    draft = path.with_name(f"{DRAFT}{path.name}")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(content)
            flush(draft)
            draft.replace(path)
        except OSError:
            with suppress(OSError):  # whatever kept it from being written may keep it from being removed
                draft.unlink()
            raise
        flush(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which is at `path`, whole and on the disk, once the block ends without an error.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    draft = open_draft(path)
    try:
        with storing(path):
            yield draft
        put_in_place(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def open_draft(path: Path) -> Path:
    """An empty folder to fill with what is to be at `path`.

    Raises:
        StorageError: it cannot be made.
    """
    draft = path.with_name(f"{DRAFT}{path.name}")
    with storing(path):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    return draft


def put_in_place(draft: Path, path: Path) -> None:
    """Move a folder that is filled to `path`, in place of what is there, once all of it is on the disk.

    Raises:
        StorageError: it could not be written.
    """
    with storing(path):
        for entry in sorted(draft.rglob("*"), key=Path.is_dir):  # the files, then the folders that name them
            flush(entry)
        flush(draft)
        if path.exists():
            shutil.rmtree(path)
        draft.rename(path)
        flush(path.parent)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """An OSError as a StorageError that names the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror or error}. What was stored before is intact. Free some space "
            "or give another folder with --out, then run the same command again."
        ) from error


def flush(path: Path) -> None:
    """Return when a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
