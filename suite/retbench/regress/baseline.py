"""A baseline: a window of accepted runs of one sweep on one fingerprint, with the value of every round.

It is one JSON file, small enough to be committed. A hash of its contents stands in it: what was truncated, edited by
hand, or merged line by line is refused, for a baseline that nobody measured would fail or pass whatever is compared.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import Field, FiniteFloat, ValidationError

from retbench.errors import RecordError, UnsupportedError
from retbench.files import write_atomic
from retbench.records.record import Record
from retbench.regress.facts import hard_facts, sm_clock_hz, soft_facts
from retbench.regress.items import Place
from retbench.regress.sides import Side, place_of
from retbench.report.frames import started
from retbench.strict import Strict

SCHEMA_VERSION = 1
WINDOW = 20
"""Runs that a baseline keeps: the latest."""

_HASH = "content_sha256"
_AGAIN = "Restore it from version control, or make it again with `retbench baseline accept`"
_USES = {
    "runs": "which `retbench compare` compares with",
    "quantities": "which `retbench check --baseline` compares with",
}
"""What each kind of baseline is for, by the field that it alone has."""

Kind = TypeVar("Kind", bound=Strict)


class StoredPlace(Strict):
    """A place as it stands in the file."""

    experiment: str
    workload: str
    model: str
    batch_size: int
    context_len: int

    @property
    def place(self) -> Place:
        """The place."""
        return Place(self.experiment, self.workload, self.model, self.batch_size, self.context_len)


class StoredPoint(StoredPlace):
    """What a run measured at a place."""

    values: dict[int, FiniteFloat] = Field(min_length=1)
    """By round."""


class StoredFacts(StoredPlace):
    """The hard facts of a place that are not those of all."""

    facts: dict[str, str]


class StoredRun(Strict):
    """One accepted run."""

    run_id: str
    started_at: str
    code_revision: str
    soft: dict[str, str]
    """What may explain a difference; see `facts.soft_facts`."""
    sm_clock_hz: FiniteFloat | None = None
    """The GPU's, which may explain one too."""
    points: tuple[StoredPoint, ...] = Field(min_length=1)

    def rounds(self) -> list[dict[Place, float]]:
        """The values of every round."""
        found: dict[int, dict[Place, float]] = {}
        for point in self.points:
            for number, value in point.values.items():
                found.setdefault(number, {})[point.place] = value
        return [found[number] for number in sorted(found)]


class Baseline(Strict):
    """A window of runs.

    Attributes:
        schema_version: Of the file.
        experiment: What was measured.
        profile: In which profile.
        reason: Why the window begins where it does.
        shared_facts: Hard facts that all places share.
        place_facts: The rest of them.
        runs: Oldest first.
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
        """Where it was measured."""
        return self.shared_facts.get("machine", "unknown")

    def hard_facts(self) -> dict[Place, dict[str, str]]:
        """The hard facts of every place."""
        return {one.place: {**self.shared_facts, **one.facts} for one in self.place_facts}

    def with_run(self, run: StoredRun) -> "Baseline":
        """The window with one more run, and without the oldest where it is full."""
        return self.model_copy(update={"runs": (*self.runs, run)[-WINDOW:]})


def make_baseline(side: Side, reason: str) -> Baseline:
    """A window that begins with one run.

    Raises:
        RecordError: the records are of several experiments or profiles, or none has a value.
    """
    sweeps = {(record.experiment, record.profile) for record in side.records}
    if len(sweeps) > 1:
        found = ", ".join(f"{experiment}/{profile}" for experiment, profile in sorted(sweeps))
        raise RecordError(
            f"'{side.name}' holds records of {found}, and a baseline is of one experiment and profile. Name the file "
            "or the folder of one."
        )
    ((experiment, profile),) = sweeps
    facts = {place_of(record): hard_facts(record) for record in side.records if record.status == "ok"}
    shared = shared_facts(list(facts.values()))
    places = tuple(
        StoredFacts(**vars(place), facts={name: text for name, text in own.items() if name not in shared})
        for place, own in sorted(facts.items())
    )
    return Baseline(
        experiment=experiment,
        profile=profile,
        reason=reason,
        shared_facts=shared,
        place_facts=places,
        runs=(make_run(side),),
    )


def shared_facts(all_facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The facts that are the same everywhere."""
    first, *others = all_facts or [{}]
    return {name: text for name, text in first.items() if all(facts.get(name) == text for facts in others)}


def make_run(side: Side) -> StoredRun:
    """The records of a side as one run.

    Raises:
        RecordError: none has a value.
    """
    points: dict[Place, dict[int, float]] = {}
    for number, values in side.values().items():
        for place, value in values.items():
            points.setdefault(place, {})[number] = value
    if not points:
        raise RecordError(f"'{side.name}' holds no value that could be stored: every cell of it failed.")
    latest: Record = max(side.records, key=started)
    return StoredRun(
        run_id=latest.run_id,
        started_at=min(record.started_at for record in side.records),
        code_revision=side.revisions,
        soft=soft_facts(side.records),
        sm_clock_hz=sm_clock_hz(side.records),
        points=tuple(StoredPoint(**vars(place), values=values) for place, values in sorted(points.items())),
    )


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline in one piece.

    Raises:
        StorageError: it cannot be written; what was there is unharmed.
    """
    write_hashed(path, baseline.model_dump(mode="json"))


def write_hashed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with the hash of its contents, in one piece.

    Raises:
        StorageError: it cannot be written; what was there is unharmed.
    """
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read: every key a string
    text = json.dumps({_HASH: content_hash(content), **content}, indent=1, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def content_hash(content: Mapping[str, Any]) -> str:
    """Hash of a JSON object, whatever the order and spacing of its text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        RecordError: it is not there, damaged, edited, or holds no run.
        UnsupportedError: it is of a newer schema.
    """
    baseline = read_hashed(path, Baseline, SCHEMA_VERSION)
    if not baseline.runs:
        raise RecordError(f"{path}: it holds no run: there is nothing to compare with. {_AGAIN}.")
    return baseline


def read_hashed(path: Path, kind: type[Kind], schema_version: int) -> Kind:
    """What a file of `write_hashed` holds, once its schema and its hash are found right.

    Raises:
        RecordError: it is not there, damaged, edited, or of another kind.
        UnsupportedError: it is of a newer schema.
    """
    content = _read_content(path, schema_version)
    for field, use in _USES.items():
        if field in content and field not in kind.model_fields:
            raise RecordError(
                f"{path}: it holds {field}, {use}. Give it to that command, or another file here."
            )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise RecordError(f"{path}: field '{place}': {fault['msg']}. {_AGAIN}.") from error


def _read_content(path: Path, schema_version: int) -> dict[str, Any]:
    """The JSON object of a file, without its hash."""
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=lambda name: _not_finite(path, name)
        )
    except OSError as error:
        raise RecordError(
            f"{path}: the baseline cannot be read: {error.strerror}. Make one with `retbench baseline accept`."
        ) from error
    except ValueError as error:
        raise RecordError(
            f"{path}: not a whole JSON file (truncated, or merged by lines?). {_AGAIN}."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("schema_version"), int):
        raise RecordError(f"{path}: not a baseline: it has no schema_version. {_AGAIN}.")
    if content["schema_version"] > schema_version:
        raise UnsupportedError(
            f"{path}: schema_version is {content['schema_version']}, and this retbench reads up to {schema_version}. "
            "Use the version that wrote it, or a newer one."
        )
    if content.pop(_HASH, None) != content_hash(content):
        raise RecordError(
            f"{path}: its contents are not those that were written: it was edited by hand, or damaged. {_AGAIN}."
        )
    return content


def _not_finite(path: Path, name: str) -> NoReturn:
    """A number that JSON does not have."""
    raise RecordError(f"{path}: it holds {name}, and every value of a baseline is finite. {_AGAIN}.")
