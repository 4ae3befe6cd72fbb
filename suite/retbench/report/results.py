"""Records of a results folder, and what identifies them: their run, comparable set, session and hardware.

Records of different comparable sets never enter one value, interval or ratio.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from retbench.errors import RecordError
from retbench.records.dates import date_sentences
from retbench.records.environment import computing_versions
from retbench.records.record import Documents, Record
from retbench.records.store import read_files, visible
from retbench.units import format_items

Value = TypeVar("Value")

PUBLISHED = "published"
"""Folder of the records that come with the project; all others were measured by its user."""

_MAX_REMEMBERED = 4096
"""Values that a function of parts of records remembers; records with the same parts mostly follow each other."""

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
            f"'{root}' holds no record that can be read, and {format_items(len(problems), 'line')} that cannot. "
            f"The first: {problems[0]} {advice}"
        )
    if not records:
        raise RecordError(f"no results at '{root}': it holds no record (*.jsonl). {advice}")
    return Results(tuple(records), tuple(problems), folders, sources)


def by_parts(function: Callable[..., Value]) -> Callable[..., Value]:
    """Remember the values of a function of parts of records, which are the same objects in the records of a run.

    They are not compared, which would take longer than most such functions. They are kept, so that no other object
    takes their identity, until `_MAX_REMEMBERED` others were asked for.
    """
    known: dict[tuple[int, ...], tuple[object, Value]] = {}

    @wraps(function)
    def remembered(*parts: object) -> Value:
        key = tuple(map(id, parts))
        if key not in known:
            if len(known) >= _MAX_REMEMBERED:
                del known[next(iter(known))]
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
