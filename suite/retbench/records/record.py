"""Records on disk: one JSON object per (cell, round), appended as soon as it is measured.

This module defines the record and reads and writes record files; it is independent of models and of measurement.
`record.schema.json` in this folder holds the JSON Schema of a record; a test keeps the two equal.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import from_json, to_json
from typing_extensions import TypeAliasType

from retbench.errors import RecordError, StorageError, shown
from retbench.parsing import check_storable

SCHEMA_VERSION = 3

READABLE_VERSIONS = (1, 2, 3)
"""Schema versions that are read, each as one of this version.

1: without quality. 2: with `pair_id`, which depended on the other models of the experiment. 3: without it; the
environment identifies the hardware (`node_id`, `gpu_uuid`) and the code of model and workload (`model_code`,
`workload_code`).
"""

Protocol = Literal["whole", "strided", "last"]
"""Protocol by which documents are given to a model for their perplexity.

whole: each document from its beginning, its first `context_len` tokens in one pass; a retention state is streamed.
strided: windows in which a model sees `context_len` tokens, `stride` apart; each token is scored once, with more than
    `context_len - stride` tokens before it except at the document's beginning.
last: chunks of `CHUNK_LEN` tokens, the last `SCORED_LEN` of each scored by a model that sees the last `context_len` of
    the chunk, these included (arXiv:2307.08621, Table 8).
"""

Status = Literal["ok", "oom", "timeout", "failed", "gate_failed", "unsupported"]

NONFINITE = ("NaN", "Infinity", "-Infinity")
"""Strings that stand for an error that is not finite, which JSON has no number for."""

MAX_LINE_BYTES = 16 * 2**20
"""Longest line that is read; a record of a long training has some 100 KiB."""

_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
"""Characters that move a cursor, end a line, or turn the direction of text, as ranges of a pattern."""

Name = TypeAliasType("Name", Annotated[str, StringConstraints(max_length=200, pattern=f"^[^{_CONTROL}]*$")])
"""A name that tables, figures and files show."""

Count = TypeAliasType("Count", Annotated[int, Field(ge=0, le=2**53)])
Size = TypeAliasType("Size", Annotated[int, Field(ge=1, le=2**53)])
"""A number of things, and one above 0; up to the limit a float holds them exactly."""

Number = TypeAliasType("Number", Annotated[FiniteFloat, Field(ge=-1e150, le=1e150)])
Positive = TypeAliasType("Positive", Annotated[FiniteFloat, Field(gt=0, le=1e150)])
"""A measured number, whose square is finite too, and one that others are divided by."""

AnyFloat = Annotated[
    float, WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": list(NONFINITE), "type": "string"}]})
]


class Part(BaseModel):
    """Base of all parts of a record: immutable, unknown fields are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", use_attribute_docstrings=True
    )


class Metric(Part):
    """One measured quantity of one round."""

    unit: Name
    """Base unit: s, bytes, bytes/s, FLOP, FLOP/s, tokens/s, J, W, ratio, count, nats, bits."""
    value: Number
    """Value of the round: the median of the samples, or a single measured value."""
    samples: tuple[Number, ...] = ()
    """Every raw sample in the order taken; empty for a single measured value."""


class Series(Part):
    """A quantity as a function of another one: a learning curve, the loss by position."""

    unit: Name
    """Unit of `y`."""
    x_name: Name
    """Quantity that `x` counts, such as tokens or position."""
    x: tuple[Number, ...]
    """Values of x; an interval is given by its end."""
    y: tuple[Number, ...]
    counts: tuple[Count, ...] = ()
    """Number of values that each y is the mean of; empty where each is a single value."""

    @model_validator(mode="after")
    def _aligned(self) -> "Series":
        if len(self.x) != len(self.y) or (self.counts and len(self.counts) != len(self.x)):
            raise ValueError(
                f"x, y and counts have {len(self.x)}, {len(self.y)} and {len(self.counts)} values"
            )
        return self


class Documents(Part):
    """The file that holds the results of each document, in the folder of the record file."""

    file: Name
    """Name of the file: JSON Lines, compressed with gzip."""
    sha256: str
    """Hash of the uncompressed lines."""
    num_documents: int = Field(ge=0, le=2_000_000)


class WeightsInfo(Part):
    """Origin of weights that were not drawn from a seed."""

    source: str
    """Origin as requested: EXPERIMENT/PROFILE of the training, a folder, or a hub name."""
    fingerprint: str
    """Hash of the weights, or of the hub's revision."""
    format: Name
    revision: str | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """Seed of the training; this and the following fields are known for trainings by retbench only."""
    num_tokens: Count | None = None
    """Tokens of the training."""
    learning_rate: Number | None = None
    corpus: str | None = None
    """Corpus of the training."""


class ModelInfo(Part):
    """The model of a record."""

    name: Name
    """Key in the experiment file."""
    architecture: Name
    variant: Name
    size: Name
    num_params: Count
    num_params_nonembedding: Count
    config: dict[str, Any]
    """Every field of the model's configuration, defaults included."""
    weights: WeightsInfo | None = None
    """Origin of the weights; None where they were drawn from a seed."""


class Point(Part):
    """Coordinates of a record in the sweep."""

    batch_size: Size
    context_len: Size
    task: Name | None = None
    """Corpus or zero-shot task of a quality workload."""
    protocol: Protocol | None = None
    """Protocol by which documents were cut."""
    stride: Size | None = None
    """Tokens between the beginnings of two windows in the protocol `strided`."""
    num_fewshot: Count | None = None
    """Number of few-shot examples in the prompt."""


class GateCheck(Part):
    """One comparison of two forms of a model."""

    name: Name
    """The two forms, such as 'chunkwise = parallel' or 'decode = prefill'."""
    length: Count
    """Number of tokens."""
    error: AnyFloat
    """max |difference| of the logits over the root mean square of the reference; in 16-bit dtypes that of a mixer's
    head outputs, as vectors, from the same inputs."""
    limit: Positive

    @property
    def passed(self) -> bool:
        """True where the error is finite and within the limit."""
        return self.error <= self.limit


class Gate(Part):
    """Equivalence check of a model's forms, which runs before anything is timed."""

    passed: bool
    dtype: Name
    checks: tuple[GateCheck, ...]


class Ceilings(Part):
    """Performance that the device reached in the same process, just before the cells were measured."""

    read_bandwidth_bytes_per_s: Positive
    matmul_flops_per_s: Positive
    """FLOP/s of matrix products in the dtype of the cell."""


class Record(Part):
    """One cell measured in one round, or the reason why it was not."""

    schema_version: int = SCHEMA_VERSION
    run_id: Name
    experiment: Name
    profile: Name
    cell_id: Name
    """Hash of the cell's full configuration."""
    pair_id: str | None = None
    """Hash of all models of the experiment; only records of schema versions 1 and 2 have it."""
    round: Count
    started_at: Name
    """Time in UTC, ISO 8601."""
    status: Status
    error: str | None = None
    model: ModelInfo
    workload: Name
    point: Point
    settings: dict[str, Any]
    """Settings of the cell: dtype, device, threads, seed, warm-up, steps, graph."""
    backend: dict[str, str | int | float | bool]
    """Executed backend, as the code that ran reports it."""
    environment: dict[str, Any]
    ceilings: Ceilings | None = None
    gate: Gate | None = None
    metrics: dict[Name, Metric] = Field(default_factory=dict)
    series: dict[Name, Series] = Field(default_factory=dict)
    documents: Documents | None = None
    absent: dict[Name, str] = Field(default_factory=dict)
    """Metrics that are not defined here, each with the reason."""
    command: str
    """Command line that repeats the measurement."""


_NOT_COMPUTING = frozenset({"retbench", "nvidia-ml-py"})
"""Versions that change no number: retbench has a code revision, and nvidia-ml-py only reads counters of the GPU."""


def computing_versions(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of Python and of every library that could change a number; empty where none is recorded."""
    stated = environment.get("versions")
    versions = stated if isinstance(stated, dict) else {}
    return {name: str(version) for name, version in sorted(versions.items()) if name not in _NOT_COMPUTING}


def utc_now() -> str:
    """Return the time as records state it: UTC, ISO 8601, whole milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema of a record, which `record.schema.json` holds too."""
    schema = Record.model_json_schema(schema_generator=_WithoutTitles)
    schema["properties"]["schema_version"]["enum"] = list(READABLE_VERSIONS)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _WithoutTitles(GenerateJsonSchema):
    """Writes a schema in which no field has a title, which would repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False."""
        return False


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
            if start and _last_byte(file.fileno(), start) != b"\n":
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


def _last_byte(descriptor: int, size: int) -> bytes:
    return os.pread(descriptor, 1, size - 1)


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
    """Yield each record file at or below a path, with its records and a sentence for every line that is left out."""
    parser = _Parser()
    for path in [root] if root.is_file() else sorted(root.rglob("*.jsonl")):
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


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the non-empty lines of a file with their numbers, from 1; a line that is too long is the last one."""
    if (
        path.exists() and not path.is_dir() and not path.is_file()
    ):  # /dev/zero has no end, and a pipe no beginning
        raise OSError(errno.EINVAL, "it is not a regular file")
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if line.strip():
                yield number, line
            if not line or len(line) > MAX_LINE_BYTES:
                return


def parse_record(line: str | bytes) -> Record:
    """Parse one line of a record file.

    Raises:
        RecordError: the line is torn, of another schema version, or does not fit the schema.
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
        raw = _read_object(line)
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
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version not in READABLE_VERSIONS:
        raise RecordError(
            f"schema_version is {shown(version)} and this retbench reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}. Read it with the version that wrote it, or measure again."
        )
    is_plain = line.isascii() and not any(
        escape in line for escape in (b"\\b", b"\\f", b"\\r", b"\\u", b"\x7f")
    )
    found: dict[str, Any] = raw if is_plain else visible(raw)
    return found


_INVISIBLE = re.compile(rf"(?![\n\t])[{_CONTROL}]")


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
        return f"field {place}: {fault['msg']}"
    return f"field {place} is {shown(fault['input'])}: {fault['msg']}"
