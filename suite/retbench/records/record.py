"""Records on disk: one JSON object per (cell, round), appended as soon as it is measured.

This module defines the record and reads and writes record files; it is independent of models and of measurement.
`record.schema.json` in this folder holds the JSON Schema of a record; a test keeps the two equal.
"""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from retbench.errors import RecordError, StorageError

SCHEMA_VERSION = 3

READABLE_VERSIONS = (1, 2, 3)
"""Schema versions that are read, each as one of this version.

1: without quality. 2: with `pair_id`, which depended on the other models of the experiment. 3: without it; the
environment identifies the hardware (`node_id`, `gpu_uuid`) and the code of model and workload (`model_code`,
`workload_code`).
"""

Protocol = Literal["whole", "strided", "last"]
"""How documents are given to a model for their perplexity.

whole: each document from its beginning, its first `context_len` tokens in one pass; a retention state is streamed.
strided: windows in which a model sees `context_len` tokens, `stride` apart; each token is scored once, with more than
    `context_len - stride` tokens before it except at the document's beginning.
last: chunks of `CHUNK_LEN` tokens, the last `SCORED_LEN` of each scored by a model that sees the last `context_len` of
    the chunk, these included (arXiv:2307.08621, Table 8).
"""

Status = Literal["ok", "oom", "timeout", "failed", "gate_failed", "unsupported"]

NONFINITE = ("NaN", "Infinity", "-Infinity")
"""Strings that stand for an error that is not finite, which JSON has no number for."""

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

    unit: str
    """Base unit: s, bytes, bytes/s, FLOP, FLOP/s, tokens/s, J, W, ratio, count, nats, bits."""
    value: FiniteFloat
    """Value of the round: the median of the samples, or a single measured value."""
    samples: tuple[FiniteFloat, ...] = ()
    """Every raw sample in the order taken; empty for a single measured value."""


class Series(Part):
    """A quantity as a function of another one: a learning curve, the loss by position."""

    unit: str
    """Unit of `y`."""
    x_name: str
    """Quantity that `x` counts, such as tokens or position."""
    x: tuple[FiniteFloat, ...]
    """Values of x; an interval is given by its end."""
    y: tuple[FiniteFloat, ...]
    counts: tuple[int, ...] = ()
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

    file: str
    """Name of the file: JSON Lines, compressed with gzip."""
    sha256: str
    """Hash of the uncompressed lines."""
    num_documents: int = Field(ge=0)


class WeightsInfo(Part):
    """Origin of weights that were not drawn from a seed."""

    source: str
    """Origin as requested: EXPERIMENT/PROFILE of the training, a folder, or a hub name."""
    fingerprint: str
    """Hash of the weights, or of the hub's revision."""
    format: str
    revision: str | None = None
    seed: int | None = None
    """Seed of the training; this and the following fields are known for trainings by retbench only."""
    num_tokens: int | None = None
    """Tokens of the training."""
    learning_rate: FiniteFloat | None = None
    corpus: str | None = None
    """Corpus of the training."""


class ModelInfo(Part):
    """The model of a record."""

    name: str
    """Key in the experiment file."""
    architecture: str
    variant: str
    size: str
    num_params: int
    num_params_nonembedding: int
    config: dict[str, Any]
    """Every field of the model's configuration, defaults included."""
    weights: WeightsInfo | None = None
    """Origin of the weights; None where they were drawn from a seed."""


class Point(Part):
    """Coordinates of a record in the sweep."""

    batch_size: int = Field(ge=1)
    context_len: int = Field(ge=1)
    task: str | None = None
    """Corpus or zero-shot task of a quality workload."""
    protocol: Protocol | None = None
    """Protocol by which documents were cut."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens between the beginnings of two windows in the protocol `strided`."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Number of few-shot examples in the prompt."""


class GateCheck(Part):
    """One comparison of two forms of a model."""

    name: str
    """The two forms, such as 'chunkwise = parallel' or 'decode = prefill'."""
    length: int
    """Number of tokens."""
    error: AnyFloat
    """max |difference| of the logits over the root mean square of the reference; in 16-bit dtypes that of a mixer's
    head outputs, as vectors, from the same inputs."""
    limit: FiniteFloat

    @property
    def passed(self) -> bool:
        """True where the error is finite and within the limit."""
        return self.error <= self.limit


class Gate(Part):
    """Equivalence check of a model's forms, which runs before anything is timed."""

    passed: bool
    dtype: str
    checks: tuple[GateCheck, ...]


class Ceilings(Part):
    """Performance that the device reached in the same process, just before the cells were measured."""

    read_bandwidth_bytes_per_s: FiniteFloat
    matmul_flops_per_s: FiniteFloat
    """FLOP/s of matrix products in the dtype of the cell."""


class Record(Part):
    """One cell measured in one round, or the reason why it was not."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    experiment: str
    profile: str
    cell_id: str
    """Hash of the cell's full configuration."""
    pair_id: str | None = None
    """Hash of all models of the experiment; only records of schema versions 1 and 2 have it."""
    round: int = Field(ge=0)
    started_at: str
    """Time in UTC, ISO 8601."""
    status: Status
    error: str | None = None
    model: ModelInfo
    workload: str
    point: Point
    settings: dict[str, Any]
    """Settings of the cell: dtype, device, threads, seed, warm-up, steps, graph."""
    backend: dict[str, str | int | float | bool]
    """Executed backend, as the code that ran reports it."""
    environment: dict[str, Any]
    ceilings: Ceilings | None = None
    gate: Gate | None = None
    metrics: dict[str, Metric] = Field(default_factory=dict)
    series: dict[str, Series] = Field(default_factory=dict)
    documents: Documents | None = None
    absent: dict[str, str] = Field(default_factory=dict)
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
    schema = Record.model_json_schema()
    schema["properties"]["schema_version"]["enum"] = list(READABLE_VERSIONS)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


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
    paths = [root] if root.is_file() else sorted(root.rglob("*.jsonl"))
    for path in paths:
        try:
            lines = list(_lines(path))
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}; it is left out.")
            continue
        for number, line in lines:
            try:
                records.append(parse_record(line))
            except RecordError as error:
                problems.append(f"{path}:{number}: {error}")
    return records, problems


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the non-empty lines of a file with their numbers, from 1."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            yield number, line


def parse_record(line: str | bytes) -> Record:
    """Parse one line of a record file.

    Raises:
        RecordError: the line is torn, of another schema version, or does not fit the schema.
    """
    try:
        raw = json.loads(line if isinstance(line, str) else line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8 text (a damaged file?); the line is left out.") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(
            "not a whole JSON object (a torn line from an interrupted write?); it is left out."
        ) from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version not in READABLE_VERSIONS:
        raise RecordError(
            f"schema_version is {version!r} and this retbench reads {' and '.join(map(str, READABLE_VERSIONS))}. "
            "Read it with the version that wrote it, or measure again."
        )
    try:
        return Record.model_validate(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise RecordError(f"field '{place}': {fault['msg']}; the line is left out.") from error
