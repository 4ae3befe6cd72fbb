"""Baselines: accepted runs of one sweep under the same comparability keys, with the value of every round.

A baseline is one JSON file that is small enough to commit. It holds a hash of its contents. A file that was truncated,
edited by hand, or merged line by line is refused, because nobody measured its values.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from filelock import FileLock
from pydantic import Field, FiniteFloat, ValidationError

from retbench.errors import RecordError, UnsupportedError, shown
from retbench.files import own_path, write_atomic
from retbench.parsing import parse_json
from retbench.records.dates import started
from retbench.regress.comparability import comparability_keys, confounders, sm_clock_hz
from retbench.regress.items import MeasurementPoint
from retbench.regress.record_sets import RecordSet, point_of
from retbench.strict import Strict, reason_of

SCHEMA_VERSION = 1
MAX_RUNS = 20
"""Runs that a baseline keeps: the latest."""

ACCEPT = "retbench baseline accept"
"""Command that makes a baseline of runs anew."""

_HASH = "content_sha256"
_AGAIN = "Restore it from version control, or make it again with `{}`"
_USES = {
    "runs": "which `retbench compare` compares with",
    "quantities": "which `retbench check --baseline` compares with",
}
"""The command that reads each kind of baseline, by the field that only this kind has."""

Kind = TypeVar("Kind", bound=Strict)


class StoredAt(Strict):
    """A measurement point in the file."""

    experiment: str
    workload: str
    model: str
    batch_size: int
    context_len: int

    @property
    def point(self) -> MeasurementPoint:
        """The point."""
        return MeasurementPoint(self.experiment, self.workload, self.model, self.batch_size, self.context_len)


class StoredPoint(StoredAt):
    """The values of a run at a point."""

    values: dict[int, Annotated[FiniteFloat, Field(gt=0)]] = Field(min_length=1)
    """By round."""


class StoredFacts(StoredAt):
    """The comparability keys of a point that not all points share."""

    facts: dict[str, str]


class StoredRun(Strict):
    """One accepted run."""

    run_id: str
    started_at: str
    code_revision: str
    confounders: dict[str, str]
    """Confounders; see `comparability.confounders`."""
    sm_clock_hz: FiniteFloat | None = None
    """The GPU's clock, another confounder."""
    points: tuple[StoredPoint, ...] = Field(min_length=1)

    def rounds(self) -> list[dict[MeasurementPoint, float]]:
        """Return the values of every round."""
        found: dict[int, dict[MeasurementPoint, float]] = {}
        for stored in self.points:
            for number, value in stored.values.items():
                found.setdefault(number, {})[stored.point] = value
        return [found[number] for number in sorted(found)]


class Baseline(Strict):
    """A window of accepted runs, oldest first, and why it begins with its first run.

    `shared_facts` are the comparability keys that all points share, `place_facts` the others.
    """

    schema_version: int = SCHEMA_VERSION
    experiment: str
    profile: str
    reason: str
    shared_facts: dict[str, str]
    place_facts: tuple[StoredFacts, ...]
    runs: tuple[StoredRun, ...]

    @property
    def machine(self) -> str:
        """The machine of all runs."""
        return self.shared_facts.get("machine", "unknown")

    def keys_by_point(self) -> dict[MeasurementPoint, dict[str, str]]:
        """Return the comparability keys of every point."""
        return {one.point: {**self.shared_facts, **one.facts} for one in self.place_facts}


def make_baseline(side: RecordSet, reason: str) -> Baseline:
    """Begin a window with one run."""
    sweeps = {(record.experiment, record.profile) for record in side.records}
    if len(sweeps) > 1:
        found = ", ".join(f"{experiment}/{profile}" for experiment, profile in sorted(sweeps))
        raise RecordError(
            f"'{side.name}' holds records of {found}, and a baseline is of one experiment and profile. Name the file "
            "or the folder of one."
        )
    ((experiment, profile),) = sweeps
    keys = {point_of(record): comparability_keys(record) for record in side.records if record.status == "ok"}
    first, *others = keys.values() or [{}]
    shared = {name: text for name, text in first.items() if all(own.get(name) == text for own in others)}
    facts = tuple(
        StoredFacts(**vars(point), facts={name: text for name, text in own.items() if name not in shared})
        for point, own in sorted(keys.items())
    )
    return Baseline(
        experiment=experiment,
        profile=profile,
        reason=reason,
        shared_facts=shared,
        place_facts=facts,
        runs=(make_run(side),),
    )


def baseline_path(folder: Path, baseline: Baseline) -> Path:
    """Return the path of a baseline in a folder of baselines; ConfigError if its names would leave the folder."""
    return own_path(folder, baseline.machine, f"{baseline.experiment}-{baseline.profile}.json")


def baseline_lock(path: Path) -> FileLock:
    """Return the lock to hold while a baseline is changed: other processes may save or accept runs too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def identity(side: RecordSet) -> tuple[str, str]:
    """Return the identifier of a side's newest run, and when its first measurement began."""
    return max(side.records, key=started).run_id, min(record.started_at for record in side.records)


def make_run(side: RecordSet) -> StoredRun:
    """Return the records of a side as one run."""
    points: dict[MeasurementPoint, dict[int, float]] = {}
    for number, values in side.values().items():
        for point, value in values.items():
            points.setdefault(point, {})[number] = value
    if not points:
        raise RecordError(f"'{side.name}' holds no value that could be stored: every cell of it failed.")
    run_id, started_at = identity(side)
    return StoredRun(
        run_id=run_id,
        started_at=started_at,
        code_revision=side.revisions,
        confounders=confounders(side.records),
        sm_clock_hz=sm_clock_hz(side.records),
        points=tuple(StoredPoint(**vars(point), values=values) for point, values in sorted(points.items())),
    )


def write_hashed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with the hash of its contents, atomically."""
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read: every key a string
    text = json.dumps({_HASH: content_hash(content), **content}, indent=1, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def content_hash(content: Mapping[str, Any]) -> str:
    """Return the hash of a JSON object, whatever the order and spacing of its text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_baseline(path: Path) -> Baseline:
    """Read a baseline."""
    baseline = read_hashed(path, Baseline, SCHEMA_VERSION)
    if not baseline.runs:
        raise RecordError(
            f"{path}: it holds no run: there is nothing to compare with. {_AGAIN.format(ACCEPT)}."
        )
    return baseline


def read_hashed(path: Path, kind: type[Kind], schema_version: int, command: str = ACCEPT) -> Kind:
    """Read a file of `write_hashed`, and check its schema and its hash.

    Args:
        path: The file.
        kind: Class of its contents.
        schema_version: The latest version that can be read.
        command: The command that makes such a file, for messages.

    Raises:
        RecordError: it is missing, damaged, edited, or of another kind.
        UnsupportedError: it is of a newer schema.
    """
    again = _AGAIN.format(command)
    content = _read_json(path, command)
    if not isinstance(content, dict) or not isinstance(content.get("schema_version"), int):
        raise RecordError(f"{path}: not a baseline: it has no schema_version. {again}.")
    if content["schema_version"] > schema_version:
        raise UnsupportedError(
            f"{path}: schema_version is {content['schema_version']}, and this retbench reads up to {schema_version}. "
            "Use the version that wrote it, or a newer one."
        )
    if content.pop(_HASH, None) != content_hash(content):
        raise RecordError(
            f"{path}: its contents do not match its hash: it was edited by hand, or damaged. {again}."
        )
    for field, use in _USES.items():
        if field in content and field not in kind.model_fields:
            raise RecordError(
                f"{path}: it holds {field}, {use}. Give it to that command, or another file here."
            )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        location = ".".join(str(part) for part in fault["loc"])
        raise RecordError(f"{path}: field {shown(location)}: {reason_of(fault)}. {again}.") from error


def _read_json(path: Path, command: str) -> object:
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise RecordError(
            f"{path}: the baseline cannot be read: {error.strerror}. Make one with `{command}`."
        ) from error
    except ValueError as error:
        raise RecordError(
            f"{path}: not a whole JSON file (truncated, or merged by lines?): {shown(str(error))}. "
            f"{_AGAIN.format(command)}."
        ) from error
