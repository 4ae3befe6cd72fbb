"""Records of a folder as typed frames: one row per (cell, replicate, metric), or one per (cell, replicate).

Nothing is aggregated here. Each row carries its comparability keys (`SET_COLUMNS`): rows that differ in any of them
never enter one value, interval or ratio.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from retbench.errors import RecordError
from retbench.records.record import Documents, Record, read_records
from retbench.records.versions import computing_versions

_TEXT, _COUNT, _NUMBER, _MOMENT = "string", "Int64", "float64", "datetime64[us, UTC]"

SET_COLUMNS = (
    "machine",
    "device",
    "dtype",
    "threads",
    "code_revision",
    "torch_version",
    "python_version",
    "library_versions",
)

_RECORD_FIELDS = ("experiment", "profile", "run_id", "cell_id", "workload")
_MODEL_FIELDS = ("architecture", "variant", "size")
_PARAMS = ("num_params", "num_params_nonembedding")
_POINT_TEXTS = ("task", "protocol")
_POINT_COUNTS = ("batch_size", "context_len", "num_fewshot")

_CELL_COLUMNS: dict[str, str] = {
    **dict.fromkeys(SET_COLUMNS, _TEXT),
    "threads": _COUNT,
    **dict.fromkeys((*_RECORD_FIELDS, "session", "model", *_MODEL_FIELDS, *_POINT_TEXTS), _TEXT),
    **dict.fromkeys((*_PARAMS, *_POINT_COUNTS, "round"), _COUNT),
    "started_at": _MOMENT,
}
STATUS_COLUMNS: dict[str, str] = {**_CELL_COLUMNS, "status": _TEXT, "error": _TEXT}
METRIC_COLUMNS: dict[str, str] = {
    **_CELL_COLUMNS,
    "metric": _TEXT,
    "unit": _TEXT,
    "value": _NUMBER,
    "num_samples": _COUNT,
}


@dataclass(frozen=True)
class Results:
    """Contents of a results folder.

    Attributes:
        records: Every readable record, duplicates included, in the order of files and lines.
        problems: One sentence per line that could not be read.
        folders: Folder of the per-document results, for each record that has some.
    """

    records: tuple[Record, ...]
    problems: tuple[str, ...]
    folders: Mapping[Documents, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparableSet:
    """Facts that must agree before two records may share a table or ratio; None where one is not recorded."""

    machine: str | None
    device: str | None
    dtype: str | None
    threads: int | None
    code_revision: str | None
    torch_version: str | None
    python_version: str | None
    library_versions: str | None
    """Versions of every other library that could change a number: numpy 2.4.1, triton 3.6.0."""


def load_results(root: Path) -> Results:
    """Return every record in a file or below a folder.

    Raises:
        RecordError: the path does not exist, or no record in it can be read; the message says what to run.
    """
    advice = "Measure first: `retbench run latency`, or name the folder that holds results."
    if not root.exists():
        raise RecordError(f"no results at '{root}': there is no such file or folder. {advice}")
    records: list[Record] = []
    problems: list[str] = []
    folders: dict[Documents, Path] = {}
    for path in [root] if root.is_file() else sorted(root.rglob("*.jsonl")):
        found, faults = read_records(path)
        records += found
        problems += faults
        folders |= {record.documents: path.parent for record in found if record.documents}
    if not records and problems:
        raise RecordError(
            f"'{root}' holds no record that can be read, and {len(problems)} lines that cannot. The first: "
            f"{problems[0]} {advice}"
        )
    if not records:
        raise RecordError(f"no results at '{root}': it holds no record (*.jsonl). {advice}")
    return Results(tuple(records), tuple(problems), folders)


def set_of(record: Record) -> ComparableSet:
    """Return the comparable set of a record."""
    settings, environment = record.settings, record.environment
    versions = computing_versions(environment)
    torch_version, python_version = versions.pop("torch", None), versions.pop("python", None)
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    threads = settings.get("threads")
    return ComparableSet(
        machine=_text(environment.get("machine")),
        device=_text(settings.get("device")),
        dtype=_text(settings.get("dtype")),
        threads=threads if isinstance(threads, int) else None,
        code_revision=_text(environment.get("code_revision")),
        torch_version=torch_version,
        python_version=python_version,
        library_versions=libraries or "none" if "versions" in environment else None,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def session_of(record: Record) -> str:
    """Return the measurement session of a record: its run, on one node. Rounds are paired within a session only."""
    return f"{record.run_id}@{record.environment.get('node_id', '')}"


def started(record: Record) -> datetime:
    """Return the start of a record in UTC; the earliest time where its text is no time."""
    try:
        moment = datetime.fromisoformat(record.started_at)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def keep_latest(records: Iterable[Record]) -> list[Record]:
    """Return one record per (set, experiment, cell, round): the latest that is ok, else the latest failure."""
    kept: dict[tuple[ComparableSet, str, str, int], Record] = {}
    for record in records:
        key = (set_of(record), record.experiment, record.cell_id, record.round)
        if key not in kept or _rank(record) >= _rank(kept[key]):
            kept[key] = record
    return list(kept.values())


def _rank(record: Record) -> tuple[bool, datetime]:
    return record.status == "ok", started(record)


def metric_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row per (cell, replicate, metric) of the records that are ok, with columns `METRIC_COLUMNS`."""
    rows = [
        _cell_row(record)
        | {"metric": name, "unit": metric.unit, "value": metric.value, "num_samples": len(metric.samples)}
        for record in keep_latest(records)
        if record.status == "ok"
        for name, metric in record.metrics.items()
    ]
    return _typed(rows, METRIC_COLUMNS)


def status_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row per (cell, replicate), failed ones included, with columns `STATUS_COLUMNS`."""
    rows = [
        _cell_row(record) | {"status": record.status, "error": record.error}
        for record in keep_latest(records)
    ]
    return _typed(rows, STATUS_COLUMNS)


def _cell_row(record: Record) -> dict[str, Any]:
    """Return the columns that every row of a record shares."""
    parts: list[tuple[object, Sequence[str]]] = [
        (set_of(record), SET_COLUMNS),
        (record, (*_RECORD_FIELDS, "round")),
        (record.model, (*_MODEL_FIELDS, *_PARAMS)),
        (record.point, (*_POINT_TEXTS, *_POINT_COUNTS)),
    ]
    row = {name: getattr(part, name) for part, names in parts for name in names}
    return row | {
        "session": session_of(record),
        "model": record.model.name,
        "started_at": started(record),
    }


def _typed(rows: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    """Return a frame of exactly these columns and types, even without rows."""
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)
