"""Records of a folder, and the observations that they hold: (model, point, replicate, metric, value).

Nothing is aggregated here. Records of different comparable sets never enter one value, interval or ratio.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from retbench.errors import RecordError
from retbench.records.record import Documents, Record, computing_versions, read_records

_TEXT, _COUNT, _NUMBER = "string", "Int64", "float64"

_RECORD_FIELDS = ("experiment", "workload", "status", "error")
_POINT_COUNTS = ("batch_size", "context_len", "num_fewshot")
_POINT_TEXTS = ("task", "protocol")

OBSERVATION_COLUMNS: dict[str, str] = {
    **dict.fromkeys((*_RECORD_FIELDS, "model", "size", *_POINT_TEXTS, "session", "metric", "unit"), _TEXT),
    **dict.fromkeys((*_POINT_COUNTS, "round"), _COUNT),
    "value": _NUMBER,
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


def observations(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row per (cell, replicate, metric); a record without a metric has one row with its status.

    Returns:
        Columns `OBSERVATION_COLUMNS`, with their types also without rows.
    """
    rows = [
        _cell_row(record) | values
        for record in keep_latest(records)
        for values in (_values(record) or [{"metric": None, "unit": None, "value": None}])
    ]
    return pd.DataFrame(rows, columns=list(OBSERVATION_COLUMNS)).astype(OBSERVATION_COLUMNS)


def _values(record: Record) -> list[dict[str, Any]]:
    metrics = record.metrics.items() if record.status == "ok" else ()
    return [{"metric": name, "unit": metric.unit, "value": metric.value} for name, metric in metrics]


def _cell_row(record: Record) -> dict[str, Any]:
    """Return the columns that every row of a record shares."""
    own = {name: getattr(record, name) for name in (*_RECORD_FIELDS, "round")}
    point = {name: getattr(record.point, name) for name in (*_POINT_COUNTS, *_POINT_TEXTS)}
    model = {"model": record.model.name, "size": record.model.size}
    return {**own, **point, **model, "session": session_of(record)}
