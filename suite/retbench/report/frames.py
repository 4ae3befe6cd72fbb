"""Records of a folder as typed frames: one row a (cell, round, metric), or one a (cell, round).

Nothing is aggregated here. Every row carries what it may be compared with (`SET_COLUMNS`): rows that differ
in any of those never meet in one value, interval or ratio.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from retbench.errors import RecordError
from retbench.records.record import Documents, Record, computing_versions, read_records

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
    "pair_id",
)

_CELL_COLUMNS: dict[str, str] = {
    **dict.fromkeys(SET_COLUMNS, _TEXT),
    "threads": _COUNT,
    "experiment": _TEXT,
    "profile": _TEXT,
    "run_id": _TEXT,
    "cell_id": _TEXT,
    "model": _TEXT,
    "architecture": _TEXT,
    "variant": _TEXT,
    "size": _TEXT,
    "num_params": _COUNT,
    "num_params_nonembedding": _COUNT,
    "workload": _TEXT,
    "batch_size": _COUNT,
    "context_len": _COUNT,
    "round": _COUNT,
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
    """What a results folder holds.

    Attributes:
        records: Every readable record, duplicates included, in the order of files and lines.
        problems: A sentence for every line that could not be read.
        folders: Where the results of single documents lie, of each record that has such.
    """

    records: tuple[Record, ...]
    problems: tuple[str, ...]
    folders: Mapping[Documents, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparableSet:
    """What must agree before two records may stand in one table or ratio; None where it is not recorded."""

    machine: str | None
    device: str | None
    dtype: str | None
    threads: int | None
    code_revision: str | None
    torch_version: str | None
    python_version: str | None
    library_versions: str | None
    """Of every other library that could move a number: numpy 2.4.1, triton 3.6.0."""
    pair_id: str | None


def load_results(root: Path) -> Results:
    """Every record in a file or below a folder.

    Raises:
        RecordError: there is no such place, or no record in it can be read; the message says what to run.
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
    """The comparable set that a record belongs to."""
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
        pair_id=record.pair_id,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def started(record: Record) -> datetime:
    """When a record was begun, in UTC; the beginning of time where its text is no time."""
    try:
        moment = datetime.fromisoformat(record.started_at)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def keep_latest(records: Iterable[Record]) -> list[Record]:
    """One record a (set, experiment, cell, round): the latest that is ok, or the latest where none is."""
    kept: dict[tuple[ComparableSet, str, str, int], Record] = {}
    for record in records:
        key = (set_of(record), record.experiment, record.cell_id, record.round)
        if key not in kept or _rank(record) >= _rank(kept[key]):
            kept[key] = record
    return list(kept.values())


def _rank(record: Record) -> tuple[bool, datetime]:
    return record.status == "ok", started(record)


def metric_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a (cell, round, metric) of the records that are ok; columns and types are `METRIC_COLUMNS`."""
    rows = [
        _cell_row(record)
        | {"metric": name, "unit": metric.unit, "value": metric.value, "num_samples": len(metric.samples)}
        for record in keep_latest(records)
        if record.status == "ok"
        for name, metric in record.metrics.items()
    ]
    return _typed(rows, METRIC_COLUMNS)


def status_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a (cell, round), whatever came of it; columns and types are `STATUS_COLUMNS`."""
    rows = [
        _cell_row(record) | {"status": record.status, "error": record.error}
        for record in keep_latest(records)
    ]
    return _typed(rows, STATUS_COLUMNS)


def _cell_row(record: Record) -> dict[str, Any]:
    """What every row of a record has in common."""
    return asdict(set_of(record)) | {
        "experiment": record.experiment,
        "profile": record.profile,
        "run_id": record.run_id,
        "cell_id": record.cell_id,
        "model": record.model.name,
        "architecture": record.model.architecture,
        "variant": record.model.variant,
        "size": record.model.size,
        "num_params": record.model.num_params,
        "num_params_nonembedding": record.model.num_params_nonembedding,
        "workload": record.workload,
        "batch_size": record.point.batch_size,
        "context_len": record.point.context_len,
        "round": record.round,
        "started_at": started(record),
    }


def _typed(rows: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    """A frame of exactly these columns in this order, with these types, however few rows there are."""
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)
