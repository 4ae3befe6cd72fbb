"""Files and folders that are written completely or not at all, whenever the process or the machine ends."""

import errno
import glob
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from retbench.errors import ConfigError, StorageError, UnsupportedError, shown

MAX_NAME_BYTES = 200
"""Longest name of one entry: file systems allow 255 bytes, of which suffixes and the prefix of a draft take some."""

DRAFT = ".draft-"
"""Prefix of a name while it is being written; a process that was killed leaves it behind."""

_ABANDONED_S = 3600.0
"""Age from which a draft of a file is taken for that of a killed process."""


def cache_dir() -> Path:
    """Return the folder of what can be made again: RETBENCH_CACHE, else ~/.cache/retbench; it need not exist yet."""
    given = os.environ.get("RETBENCH_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "retbench"


def check_writable(folder: Path, option: str) -> None:
    """Check that a folder can hold files, before time is spent on its content; leave nothing behind.

    Permissions do not decide: root may do what they forbid, and in /proc not even root may do what they allow.

    Args:
        folder: It need not exist.
        option: Option that it was given by, for the message.

    Raises:
        ConfigError: it cannot be created or written to, or its path is not UTF-8, which JSON cannot hold.
        StorageError: the disk is full.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{option} {shown(str(folder))}: its bytes are not UTF-8. Rename the folder, or give another one."
        ) from None
    for place in (folder, *folder.parents):
        if os.path.islink(place) and not os.path.lexists(target := os.path.realpath(place)):
            raise ConfigError(
                f"{place}: is a link to {target}, which does not exist. Mount its disk or make that folder, or give "
                f"another one with {option}."
            )
    try:
        with made(folder), tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _not_stored(folder, error) from error
        raise ConfigError(
            f"{folder}: cannot be written to: {error.strerror}. Give another folder with {option}, or change its "
            "permissions."
        ) from error


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder, and remove what was made of it at the end if it is still empty."""
    new = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # a folder that was not created, or that holds something
            for place in new:
                place.rmdir()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically; it is flushed to disk when this returns. Of several writers at once the last one stays.

    Raises:
        StorageError: the disk is full or the folder cannot be written; an earlier file is intact.
    """
    draft = path.with_name(f"{DRAFT}{path.name}.{secrets.token_hex(4)}")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A new file: a link of that name, in a folder that somebody else has made, is not followed.
            with draft.open("xb") as file:
                file.write(content)
            flush(draft)
            draft.replace(path)
            _remove_abandoned(path)
        except OSError:
            with suppress(OSError):  # the fault that prevented writing may prevent removal
                draft.unlink()
            raise
        flush(path.parent)


def _remove_abandoned(path: Path) -> None:
    """Remove drafts of a file that killed processes have left."""
    for draft in path.parent.glob(f"{DRAFT}{glob.escape(path.name)}.*"):
        with suppress(FileNotFoundError):  # another writer was faster
            if time.time() - draft.stat().st_mtime > _ABANDONED_S:
                draft.unlink()


def take_lock(path: Path, held: ExitStack) -> bool:
    """Take a lock until the stack ends, which then removes its file; return whether that was possible.

    Raises:
        StorageError: the file cannot be made.
    """
    lock = FileLock(path)
    with storing(path):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
    held.callback(lock.release)
    if not path.exists():  # its last holder has removed it meanwhile
        return False
    held.enter_context(suppress(OSError))  # a folder that has become read-only keeps the file
    held.callback(path.unlink)
    return True


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keep other processes from writing a folder, which must be new or empty.

    Raises:
        ConfigError: it holds something, or is the current folder.
        UnsupportedError: another process writes it.
        StorageError: its lock cannot be made.
    """
    if not path.name:
        raise ConfigError(f"{path}: is no new folder. Give it a name.")
    lock = path.with_name(f"{DRAFT}{path.name}.lock")
    with ExitStack() as held:
        with storing(path):
            held.enter_context(made(path.parent))
        if not take_lock(lock, held):
            raise UnsupportedError(
                f"{path}: another process is writing it. Wait until that one has ended, or give another folder."
            )
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"{path}: is not an empty folder, and nothing is overwritten. Give another one."
            )
        yield


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; move it to `path`, flushed to disk, when the block ends without an error.

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
    """Return an empty folder to fill, which `put_in_place` moves to `path`.

    Raises:
        StorageError: it cannot be created.
    """
    draft = path.with_name(f"{DRAFT}{path.name}")
    with storing(path):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    return draft


def put_in_place(draft: Path, path: Path) -> None:
    """Flush a filled folder to disk and move it to `path`, replacing an earlier folder.

    The earlier folder is moved aside first, and moved back if the new one cannot take its place.

    Raises:
        StorageError: it could not be written.
    """
    aside = draft.with_name(f"{draft.name}.replaced")
    with storing(path):
        for entry in sorted(draft.rglob("*"), key=Path.is_dir):  # the files, then the folders that name them
            flush(entry)
        flush(draft)
        replaces = path.exists()
        if replaces:
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        try:
            draft.rename(path)
        except OSError:
            if replaces:
                aside.rename(path)
            raise
        flush(path.parent)
        if replaces:
            shutil.rmtree(aside)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the path."""
    try:
        yield
    except OSError as error:
        raise _not_stored(path, error) from error


def _not_stored(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: cannot be written: {error.strerror or error}. What was stored before is intact. Free some "
        "space or give another folder, then run the same command again."
    )


def inside(root: Path, *names: str) -> Path:
    """Return the path of an entry below a folder, from names that came out of a file.

    Raises:
        ConfigError: a name is not that of one entry (it is empty, absolute, `..`, or has a separator), or is too long.
    """
    for name in names:
        size = len(name.encode("utf-8", "surrogatepass"))
        if (
            not name.isprintable()
            or name in {"", ".", ".."}
            or {"/", "\\"} & {*name}
            or size > MAX_NAME_BYTES
        ):
            raise ConfigError(
                f"{root}: {shown(name)} cannot be the name of a file or folder in it. Use letters, digits, '.', '_', "
                f"'+' and '-', at most {MAX_NAME_BYTES} of them."
            )
    return root.joinpath(*names)


def own_path(root: Path, *names: str) -> Path:
    """Return the path of an entry that is written or deleted below a folder: as `inside`, and no link leads elsewhere.

    The folder itself may be a link, which the user has given.

    Raises:
        ConfigError: as `inside`, or a part of the path is a link.
    """
    path = inside(root, *names)
    found = os.path.realpath(path)
    if found != os.path.join(os.path.realpath(root), *names):
        raise ConfigError(
            f"{path}: a link leads to {found}, and only what lies below {root} is written or deleted. Remove the link, "
            "or give another folder."
        )
    return path


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
