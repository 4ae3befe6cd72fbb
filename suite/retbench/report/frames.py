"""Records of a folder, and the observations that they hold: (model, point, replicate, metric, value).

Nothing is aggregated here. Records of different comparable sets never enter one value, interval or ratio.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from retbench.errors import RecordError
from retbench.records.dates import date_sentences, recorded_start, started
from retbench.records.record import FAULTY_CEILING, SHARES, Documents, Record, computing_versions
from retbench.records.store import read_files, visible
from retbench.workloads.workload import measures_cost

Value = TypeVar("Value")

OBSERVATION_COLUMNS: dict[str, str] = {
    **dict.fromkeys(("experiment", "workload", "status", "error", "model", "session"), "string"),
    **dict.fromkeys(("batch_size", "context_len", "round"), "Int64"),
    **dict.fromkeys(("metric", "unit"), "string"),
    "value": "float64",
}

RESULT_COLUMNS: dict[str, str] = {
    **dict.fromkeys(("experiment", "profile", "workload", "status", "error"), "string"),
    "started_at": "datetime64[us, UTC]",
    **dict.fromkeys(("model", "architecture", "variant", "size"), "string"),
    **dict.fromkeys(("num_params", "num_params_nonembedding"), "Int64"),
    "checkpoint": "string",
    **dict.fromkeys(("seed", "batch_size", "context_len"), "Int64"),
    **dict.fromkeys(("task", "protocol"), "string"),
    **dict.fromkeys(("num_fewshot", "num_pairs", "round"), "Int64"),
    **dict.fromkeys(("session", "machine", "device", "dtype"), "string"),
    "threads": "Int64",
    "executed": "string",
    **dict.fromkeys(("compiled", "cuda_graph"), "boolean"),
    **dict.fromkeys(("code_revision", "torch_version", "file"), "string"),
    "is_published": "bool",
    **dict.fromkeys(("metric", "unit"), "string"),
    "value": "float64",
}
"""Columns of `results_frame` with their types, which docs/results.md explains."""

_PHASES = ("decode", "prefill", "training", "evaluation")
"""Keys of a record's `backend` of which it has one: the form or kernel that was executed."""

PUBLISHED = "published"
"""Folder of the records that come with the project; all others were measured by its user."""

RunKey = tuple[str, str, str]
"""Machine, experiment and run, which name a record file."""


class Source(NamedTuple):
    """File of the records of a run."""

    path: str
    """Path below the results folder."""
    is_published: bool
    """True below a folder `published`."""


@dataclass(frozen=True)
class Results:
    """Contents of a results folder.

    Attributes:
        records: Every readable record, in the order of files and lines; of copies of one record the first.
        problems: One sentence per line that could not be read.
        folders: Folder of the per-document results, for each record that has some.
        sources: File of each run.
    """

    records: tuple[Record, ...]
    problems: tuple[str, ...]
    folders: Mapping[Documents, Path] = field(default_factory=dict)
    sources: Mapping[RunKey, Source] = field(default_factory=dict)

    def source_of(self, record: Record) -> Source:
        """Return the file of a record; of one that was not read from a file, the place that it would have."""
        machine, experiment, run = key = run_of(record)
        return self.sources.get(key, Source(f"{machine}/{experiment}/{run}.jsonl", is_published=False))


def run_of(record: Record) -> RunKey:
    """Return machine, experiment and run of a record."""
    return str(record.environment.get("machine")), record.experiment, record.run_id


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
    """Return every record in a file or below a folder; a folder may hold copies of others.

    Raises:
        RecordError: the path does not exist, or no record in it can be read; the message says what to run.
    """
    advice = "Measure first: `retbench run latency`, or name the folder that holds results."
    if not root.exists():
        raise RecordError(f"no results at '{root}': there is no such file or folder. {advice}")
    records: list[Record] = []
    first: dict[tuple[object, ...], Record] = {}
    problems: list[str] = []
    folders: dict[Documents, Path] = {}
    sources: dict[RunKey, Source] = {}
    for path, found, faults in read_files(root):
        for record in found:
            same = first.setdefault((run_of(record), record.cell_id, record.round, record.started_at), record)
            if same is record or same != record:
                records.append(record)
        below = path.relative_to(root).as_posix() if path != root else path.name
        source = Source(visible(below), is_published=PUBLISHED in (*path.parts, root.resolve().name))
        sources = dict.fromkeys(map(run_of, found), source) | sources
        problems += faults + date_sentences(path, found)
        folders |= {record.documents: path.parent for record in found if record.documents}
    if not records and problems:
        raise RecordError(
            f"'{root}' holds no record that can be read, and {len(problems)} lines that cannot. The first: "
            f"{problems[0]} {advice}"
        )
    if not records:
        raise RecordError(f"no results at '{root}': it holds no record (*.jsonl). {advice}")
    return Results(tuple(records), tuple(problems), folders, sources)


def by_parts(function: Callable[..., Value]) -> Callable[..., Value]:
    """Remember the values of a function of parts of records, which are the same objects in the records of a run.

    They are not compared, which would take longer than most such functions. They are kept, so that no other object
    takes their identity.
    """
    known: dict[tuple[int, ...], tuple[object, Value]] = {}

    @wraps(function)
    def remembered(*parts: object) -> Value:
        key = tuple(map(id, parts))
        if key not in known:
            known[key] = parts, function(*parts)
        return known[key][1]

    return remembered


def set_of(record: Record) -> ComparableSet:
    """Return the comparable set of a record."""
    return _set_of(record.settings, record.environment)


@by_parts
def _set_of(settings: Mapping[str, Any], environment: Mapping[str, Any]) -> ComparableSet:
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


def hardware_of(record: Record) -> tuple[str, str]:
    """Return the node and the GPU of a record. Equal ones differ, so that rounds of two are never one cell's."""
    names = ("node_id", "gpu_uuid")
    node, gpu = (str(record.environment.get(name, "")) for name in names)
    return node, gpu


def keep_latest(records: Iterable[Record]) -> list[Record]:
    """Return one record per (set, experiment, cell, round): the latest with a result, else the latest failure.

    Results are values and failed equivalence checks: a model whose forms disagree has no times that count.

    Of one run the record that was written last is the latest, whatever its clock said. Of several runs it is that of
    the run which was started last. The models of a point have the rounds of one node and GPU, of that with the most
    measured rounds and of such ones of the latest; a model that was not measured there has those of another.
    """
    records = on_one_node(records)
    begun: dict[str, datetime] = {}
    for record in records:
        start = started(record)
        begun[record.run_id] = max(start, begun.get(record.run_id, start))
    kept: dict[tuple[ComparableSet, str, str, int], Record] = {}
    for record in records:
        key = (set_of(record), record.experiment, record.cell_id, record.round)
        other = kept.get(key)
        if other is None or _rank(record, begun) >= _rank(other, begun):
            kept[key] = record
    return list(kept.values())


def on_one_node(records: Iterable[Record]) -> list[Record]:
    """Return the costs of each cell that are of one node and GPU, which the models of a point share if they can.

    Quality does not depend on the node: its records are all returned.
    """
    records = list(records)
    points = [_compared_at(record) if measures_cost(record) else None for record in records]
    places = list(zip(points, map(hardware_of, records), strict=True))
    if len(set(places)) == len(set(points)):
        return records
    measured: dict[tuple[object, ...], set[tuple[str, int]]] = {}
    latest: dict[tuple[object, ...], datetime] = {}
    for record, place in zip(records, places, strict=True):
        start = started(record)
        latest[place] = max(start, latest.get(place, start))
        found = measured.setdefault(place, set())
        if record.status == "ok":
            found.add((record.cell_id, record.round))
    chosen: dict[tuple[object, str], tuple[int, datetime, tuple[str, str]]] = {}
    for record, (point, hardware) in zip(records, places, strict=True):
        rank = (len(measured[point, hardware]), latest[point, hardware], hardware)
        cell = (point, record.cell_id)
        chosen[cell] = max(rank, chosen.get(cell, rank))
    return [
        record
        for record, (point, hardware) in zip(records, places, strict=True)
        if point is None or hardware == chosen[point, record.cell_id][2]
    ]


def _compared_at(record: Record) -> tuple[object, ...]:
    """Return what the records have in common whose models are compared."""
    return set_of(record), record.experiment, record.model.size, record.workload, record.point


def _rank(record: Record, begun: Mapping[str, datetime]) -> tuple[bool, datetime]:
    return record.status in ("ok", "gate_failed"), begun[record.run_id]


def faulty_shares(record: Record) -> list[str]:
    """Return the shares of ceilings that are above 1 in a record, or absent because they were.

    The other rounds of the same cell then have none either: those in which the ceiling happened to be higher would
    stand for all.
    """
    return [
        name
        for name in SHARES
        if record.absent.get(name) == FAULTY_CEILING
        or (name in record.metrics and record.metrics[name].value > 1)
    ]


def observations(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row per record and metric; a record without a metric has one row with its status.

    Returns:
        Columns `OBSERVATION_COLUMNS`, with their types also without rows.
    """
    rows: list[tuple[object, ...]] = []
    for record, metrics in _sound_metrics(records):
        words = (record.experiment, record.workload, record.status, record.error, record.model.name)
        cell = (*words, session_of(record), record.point.batch_size, record.point.context_len, record.round)
        rows += [(*cell, *metric) for metric in metrics]
    return pd.DataFrame(rows, columns=list(OBSERVATION_COLUMNS)).astype(OBSERVATION_COLUMNS)


def _sound_metrics(records: Sequence[Record]) -> Iterator[tuple[Record, list[tuple[object, ...]]]]:
    """Yield each record with (name, unit, value) of its metrics; three times None where it has none."""
    faulty = {(record.cell_id, share) for record in records for share in faulty_shares(record)}
    for record in records:
        metrics = record.metrics.items() if record.status == "ok" else ()
        sound: list[tuple[object, ...]] = [
            (name, metric.unit, metric.value)
            for name, metric in metrics
            if (record.cell_id, name) not in faulty
        ]
        yield record, sound or [(None, None, None)]


def results_frame(results: Results) -> pd.DataFrame:
    """Return one row per measured value, as `docs/results.md` documents the columns.

    Of records of the same cell and round the latest is kept, as in reports; of costs that of every node and GPU, which
    the column `session` tells apart. A record without a metric has one row.
    """
    places: dict[object, list[Record]] = {}
    for record in results.records:
        places.setdefault(hardware_of(record) if measures_cost(record) else None, []).append(record)
    latest = {id(record) for found in places.values() for record in keep_latest(found)}
    kept = [record for record in results.records if id(record) in latest]
    rows = [
        (*_facts(results, record), *metric) for record, metrics in _sound_metrics(kept) for metric in metrics
    ]
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS)).astype(RESULT_COLUMNS)


def _facts(results: Results, record: Record) -> tuple[object, ...]:
    """Return the columns of a record before those of its metrics."""
    model, point, weights = record.model, record.point, record.model.weights
    found, source = set_of(record), results.source_of(record)
    return (
        *(
            record.experiment,
            record.profile,
            record.workload,
            record.status,
            record.error,
            recorded_start(record),
        ),
        *(model.name, model.architecture, model.variant, model.size),
        *(model.num_params, model.num_params_nonembedding),
        *(weights.source if weights else None, weights.seed if weights else None),
        *(
            point.batch_size,
            point.context_len,
            point.task,
            point.protocol,
            point.num_fewshot,
            point.num_pairs,
        ),
        *(record.round, session_of(record), found.machine, found.device, found.dtype, found.threads),
        next((record.backend[phase] for phase in _PHASES if phase in record.backend), None),
        *(record.backend.get(name) for name in ("compile", "cuda_graph")),
        *(found.code_revision, found.torch_version, source.path, source.is_published),
    )
