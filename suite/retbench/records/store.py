"""Record files: JSON Lines, one record per line, appended as soon as it is measured.

Anybody may have written them, or a killed process torn them: a line that cannot be read is named, the others are used.
"""

import errno
import os
import re
import secrets
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from retbench.errors import RecordError, StorageError, shown
from retbench.parsing import check_storable
from retbench.records.record import CONTROL, READABLE_VERSIONS, Record
from retbench.strict import reason_of
from retbench.units import stated_unit

MAX_LINE_BYTES = 16 * 2**20
"""Longest line that is read; a record of a long training has some 100 KiB."""


def new_run_id() -> str:
    """Return an id for a run, such as 20260102T030405Z-abcdef: the time in UTC, and six random digits in base 16."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def append_record(path: Path, record: Record) -> None:
    """Append one record and return when it is on the disk.

    A torn last line, left by a process that died while writing, is ended first, so that it damages nothing else. Only
    one process at a time may write to a file; the runner uses a new file for every run.

    Raises:
        StorageError: the disk is full or the file cannot be written; its earlier content is intact.
    """
    line = record.model_dump_json().encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a buffered file would write the rest of a failed line again when it is closed.
        with open(path, "ab+", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            if start and os.pread(file.fileno(), 1, start - 1) != b"\n":
                line = b"\n" + line
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), start)
                raise
    except OSError as error:
        raise StorageError(
            f"{path}: the record of cell {record.cell_id}, round {record.round} could not be written: "
            f"{error.strerror}. Everything before it is intact. Free some space or give another folder "
            "with --out, then run the same command again."
        ) from error


def read_records(root: Path) -> tuple[list[Record], list[str]]:
    """Read all records in a file or below a folder.

    Returns:
        Records in the order of file names and lines; and a sentence for every line that could not be read, with file,
        line and cause.
    """
    records: list[Record] = []
    problems: list[str] = []
    for _, found, faults in read_files(root):
        records += found
        problems += faults
    return records, problems


def read_files(root: Path) -> Iterator[tuple[Path, list[Record], list[str]]]:
    """Yield each record file at or below a path, with its records and a sentence for every line that is left out.

    A folder that cannot be read has no records, and a sentence.
    """
    parser = _Parser()
    paths, unreadable = ([root], []) if root.is_file() else _find_files(root)
    for error in unreadable:
        folder = Path(error.filename)
        yield folder, [], [f"{visible(str(folder))}: cannot be read: {error.strerror}; it is left out."]
    for path in paths:
        records: list[Record] = []
        problems: list[str] = []
        place = visible(str(path))
        try:
            for number, line in _lines(path):
                try:
                    records.append(parser.parse(line))
                except RecordError as error:
                    problems.append(f"{place}:{number}: {error}")
        except OSError as error:
            problems.append(f"{place}: cannot be read: {error.strerror}; it is left out.")
        yield path, records, problems


def _find_files(root: Path) -> tuple[list[Path], list[OSError]]:
    """Return the record files below a folder, which need not be one, and the error of each folder that is not readable.

    Links to folders are followed, and no folder is read twice, nor one that holds them all.
    """
    found: list[Path] = []
    errors: list[OSError] = []
    seen = {*Path(os.path.realpath(root)).parents}  # Path.resolve raises for a link to itself
    for path, subfolders, names in os.walk(root, onerror=errors.append, followlinks=True):
        folder = Path(path)
        if (real := Path(os.path.realpath(path))) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        found += [folder / name for name in (*subfolders, *names) if name.endswith(".jsonl")]
        subfolders.sort(key=lambda name: ((folder / name).is_symlink(), name))
    return sorted(found), [one for one in errors if one.errno not in {errno.ENOENT, errno.ENOTDIR}]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the non-empty lines of a file with their numbers, from 1; a line that is too long is the last one."""
    # /dev/zero has no end, and a pipe no beginning.
    if path.exists() and not path.is_dir() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if number == 1:
                line = line.removeprefix(BOM_UTF8)  # some editors on Windows write it
            if line.strip():
                yield number, line
            if not line or len(line) > MAX_LINE_BYTES:
                return


def parse_record(line: str | bytes) -> Record:
    """Parse one line of a record file.

    Raises:
        RecordError: the line is torn, of another schema version, or does not fit the schema, or a metric has another
            unit than its name states.
    """
    return _Parser().parse(line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line)


class _Parser:
    """Parses records; their equal parts become one object, so that a folder of many records fits into memory.

    Most of a record is the same in others of its run: the model, the settings, the environment. Such a part is
    validated once.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[str, bytes], Any] = {}
        self._names: dict[frozenset[str], set[str]] = {}

    def parse(self, line: bytes) -> Record:
        """Return the record of a line.

        Raises:
            RecordError: see `parse_record`.
        """
        record = self._validated(_read_object(line))
        for name, metric in record.metrics.items():
            unit = stated_unit(name) or metric.unit
            if metric.unit != unit:
                raise RecordError(
                    f"field 'metrics.{name}.unit' is {shown(metric.unit)}, and a metric of this name is in {unit}; the "
                    "line is left out."
                )
            if unit == "s" and (least := min((metric.value, *metric.samples))) <= 0:
                raise RecordError(
                    f"field 'metrics.{name}' has {least:g} s, and a time is above 0; the line is left out."
                )
        return record

    def _validated(self, raw: dict[str, Any]) -> Record:
        """Return the record of an object that fits the schema."""
        names = frozenset(raw)
        if _REQUIRED <= names <= _FIELDS:
            with suppress(ValidationError):  # the whole record is validated below, for the name of the field
                parts = {name: self._part(name, value) for name, value in raw.items()}
                return Record.model_construct(_fields_set=self._names.setdefault(names, {*names}), **parts)
        try:
            return Record.model_validate(raw)
        except ValidationError as error:
            raise RecordError(f"{_first_fault(error)}; the line is left out.") from error

    def _part(self, name: str, value: Any) -> Any:
        """Return the validated value of a field; of equal values the same object, but for those of one record only."""
        if name in _OWN:
            return _validators()[name].validate_python(value)
        key = name, to_json(value, inf_nan_mode="constants")
        if key not in self._parts:
            part = _validators()[name].validate_python(value)
            try:
                check_storable(value)
            except ValueError as error:
                raise RecordError(f"field '{name}': {error}; the line is left out.") from error
            self._parts[key] = part
        return self._parts[key]


_FIELDS = frozenset(Record.model_fields)
_REQUIRED = frozenset(name for name, field in Record.model_fields.items() if field.is_required())
_OWN = frozenset({"started_at", "error", "metrics", "series", "documents"})


@cache
def _validators() -> dict[str, TypeAdapter[Any]]:
    """Return the validator of each field of a record."""
    kinds: dict[str, Any] = {
        name: Annotated[one.annotation, one] for name, one in Record.model_fields.items()
    }
    return {name: TypeAdapter(kind) for name, kind in kinds.items()}


def _read_object(line: bytes) -> dict[str, Any]:
    """Return the object of a line of a readable schema version, with control characters written as escapes.

    Raises:
        RecordError: there is none.
    """
    if len(line) > MAX_LINE_BYTES:
        raise RecordError(f"longer than {MAX_LINE_BYTES:,} bytes; the rest of the file is left out.")
    try:
        raw = from_json(line)  # several times as fast as json; refuses half of a surrogate pair
    except ValueError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            raise RecordError("not UTF-8 text (a damaged file?); the line is left out.") from error
        raise RecordError(
            f"not a whole JSON object (a torn line from an interrupted write?): {error}; it is left out."
        ) from error
    if not isinstance(raw, dict) or "schema_version" not in raw:
        raise RecordError("not a record, which is a JSON object with a schema_version; it is left out.")
    version = raw["schema_version"]
    if version not in READABLE_VERSIONS:
        raise RecordError(
            f"schema_version is {shown(version)} and this retbench reads {READABLE_VERSIONS[0]} to "
            f"{READABLE_VERSIONS[-1]}. Read it with the version that wrote it, or measure again."
        )
    if version < PROTOCOL_TABLE_SINCE and isinstance(raw.get("command"), str):
        raw["command"] = _PROTOCOL_LISTS.sub(_protocol_table, raw["command"])
    is_plain = line.isascii() and not any(
        escape in line for escape in (b"\\b", b"\\f", b"\\r", b"\\u", b"\x7f")
    )
    found: dict[str, Any] = raw if is_plain else visible(raw)
    return found


PROTOCOL_TABLE_SINCE = 3
"""Schema version since which commands give the context lengths of perplexity per protocol."""
_PROTOCOL_LISTS = re.compile(
    r"'workloads\.perplexity\.protocols=\[([^]']+)\]' --set 'workloads\.perplexity\.context_len=(\[[^]']+\])'"
)


def _protocol_table(lists: re.Match[str]) -> str:
    """Return the option of today that stands for a list of protocols and one of their context lengths."""
    names = [name.strip(' "') for name in lists[1].split(",")]
    return "'workloads.perplexity.protocols={" + ", ".join(f"{name} = {lists[2]}" for name in names) + "}'"


_INVISIBLE = re.compile(rf"(?![\n\t])[{CONTROL}]")


def visible(value: Any) -> Any:
    """Return a JSON value whose texts have escapes for the characters that steer a terminal; lines and tabs stay."""
    match value:
        case str():
            return _INVISIBLE.sub(lambda one: one[0].encode("unicode_escape").decode(), value)
        case dict():
            return {visible(name): visible(one) for name, one in value.items()}
        case list():
            return [visible(one) for one in value]
        case _:
            return value


def _first_fault(error: ValidationError) -> str:
    """Return place and reason of the first fault, with the value unless it is missing or large."""
    fault = error.errors()[0]
    place = shown(".".join(str(part) for part in fault["loc"]))
    if isinstance(fault["input"], dict | list):
        return f"field {place}: {reason_of(fault)}"
    return f"field {place} is {shown(fault['input'])}: {reason_of(fault)}"
