"""Which records a table or report is made of: the newest set that may be compared, and what was left out.

Records of another machine, device, dtype, thread count, code revision, version of Python or of a library that computes
are never shown together. Inside a set every experiment has its newest pair of models, its newest protocol (warm-up,
steps, graph), and of each model the newest way of running it (backend, chunk); what is of different pairs stands apart.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from retbench.errors import RecordError, unknown_name
from retbench.records.record import Record
from retbench.report.frames import ComparableSet, keep_latest, set_of, started

Key = TypeVar("Key", bound=Hashable)

MODEL_SETTINGS = ("backend", "chunk_size")
"""Settings that belong to one model; all others are shared by the models of an experiment."""

_SET_WORDS = {
    "machine": "machine",
    "device": "device",
    "dtype": "dtype",
    "threads": "threads",
    "code_revision": "code revision",
    "torch_version": "torch",
    "python_version": "Python",
    "library_versions": "libraries",
    "pair_id": "pair",
}


@dataclass(frozen=True)
class Selection:
    """Records that may be compared with each other.

    Attributes:
        key: The set they share; its pair is that of the newest record.
        records: One a (cell, round).
        left_out: A sentence for everything that was found and is not among them.
    """

    key: ComparableSet
    records: tuple[Record, ...]
    left_out: tuple[str, ...]

    @property
    def experiments(self) -> tuple[str, ...]:
        """Names of the experiments, sorted."""
        return tuple(sorted({record.experiment for record in self.records}))

    def of(self, experiment: str) -> "Selection":
        """The part of one experiment."""
        records = tuple(record for record in self.records if record.experiment == experiment)
        return Selection(self.key, records, self.left_out)

    def pairs(self) -> list["Selection"]:
        """The parts whose models were matched with each other, that of the first experiment first."""
        ordered = sorted(self.records, key=lambda record: record.experiment)
        by_pair = _group(ordered, lambda record: record.pair_id)
        return [
            Selection(replace(self.key, pair_id=pair), tuple(records), self.left_out)
            for pair, records in by_pair.items()
        ]


def select(records: Sequence[Record], experiment: str | None = None) -> Selection:
    """The newest comparable set, of one experiment or of all.

    A set that holds a measured value goes before one that holds only failures.

    Raises:
        RecordError: there are no records.
        ConfigError: there are none of that experiment; the nearest name is suggested.
    """
    records = of_experiment(records, experiment)
    kept = keep_latest(records)
    left_out = [_repeated(len(records) - len(kept))] if len(kept) < len(records) else []
    shared, notes = choose_conditions(kept)
    left_out += notes
    chosen: list[Record] = []
    for of_one in _group(shared, lambda record: record.experiment).values():
        by_set = _group(of_one, set_of)
        newest = _newest(by_set)
        left_out += [_describe_set(other, newest, by_set[other]) for other in by_set if other != newest]
        chosen += by_set[newest]
    chosen, notes = _one_protocol(chosen)
    return Selection(set_of(max(chosen, key=started)), tuple(chosen), tuple(left_out + notes))


def of_experiment(records: Sequence[Record], experiment: str | None) -> Sequence[Record]:
    """The records of an experiment; all when None.

    Raises:
        RecordError: there are no records.
        ConfigError: there are none of that experiment; the nearest name is suggested.
    """
    if not records:
        raise RecordError("there are no records to select from. Measure first: `retbench run latency`.")
    if experiment is None:
        return records
    known = {record.experiment for record in records}
    if experiment not in known:
        raise unknown_name("experiment", experiment, known, where="the results")
    return [record for record in records if record.experiment == experiment]


def choose_conditions(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The records of the newest conditions, whatever their pair, and a sentence on those of each other set."""
    by_conditions = _group(records, lambda record: replace(set_of(record), pair_id=""))
    shared = _newest(by_conditions)
    notes = [_describe_set(other, shared, by_conditions[other]) for other in by_conditions if other != shared]
    return by_conditions[shared], notes


def _group(records: Iterable[Record], key: Callable[[Record], Key]) -> dict[Key, list[Record]]:
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _newest(groups: dict[Key, list[Record]]) -> Key:
    """The group that holds a value and was begun last."""
    return max(
        groups,
        key=lambda key: (
            any(record.status == "ok" for record in groups[key]),
            max(started(record) for record in groups[key]),
        ),
    )


def _one_protocol(records: list[Record]) -> tuple[list[Record], list[str]]:
    """The records of one way of measuring an experiment, and one way of running each model of it."""
    chosen: list[Record] = []
    notes: list[str] = []
    for experiment, of_one in sorted(_group(records, lambda record: record.experiment).items()):
        protocols = _group(of_one, shared_settings)
        newest = _newest(protocols)
        notes += [
            f"{experiment}: {describe_count(others)} with other settings ({_difference(protocol, newest)})."
            for protocol, others in protocols.items()
            if protocol != newest
        ]
        for model, of_model in _group(protocols[newest], lambda record: record.model.name).items():
            ways = _group(of_model, model_settings)
            way = _newest(ways)
            chosen += ways[way]
            notes += [
                f"{experiment}: {describe_count(others)} of {model} run another way ({_difference(other, way)})."
                for other, others in ways.items()
                if other != way
            ]
    return chosen, notes


def shared_settings(record: Record) -> str:
    """The settings that an experiment's models share, as JSON with sorted keys."""
    shared = {name: value for name, value in record.settings.items() if name not in MODEL_SETTINGS}
    return json.dumps(shared, sort_keys=True)


def model_settings(record: Record) -> str:
    """The settings that are one model's own, as JSON with sorted keys."""
    return json.dumps({name: record.settings.get(name) for name in MODEL_SETTINGS}, sort_keys=True)


def _difference(other: str, chosen: str) -> str:
    """What two settings differ in, e.g. 'min_steps 5, here 20'."""
    mine, theirs = json.loads(chosen), json.loads(other)
    names = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
    return ", ".join(f"{name} {theirs.get(name)}, here {mine.get(name)}" for name in names)


def _describe_set(other: ComparableSet, chosen: ComparableSet, records: list[Record]) -> str:
    """A sentence on a set that was not chosen: what it holds and what keeps it apart."""
    mine, theirs = asdict(chosen), asdict(other)
    apart = ", ".join(
        f"{word} {theirs[field]}, here {mine[field]}"
        for field, word in _SET_WORDS.items()
        if mine[field] != theirs[field]
    )
    experiments = ", ".join(sorted({record.experiment for record in records}))
    return f"{experiments}: {describe_count(records)} that may not be pooled with these ({apart})."


def describe_count(records: list[Record]) -> str:
    """How many records, of when, and how many are empty: '12 records of 2026-01-02 (3 without a value)'."""
    dates = sorted({started(record).date().isoformat() for record in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    failed = sum(record.status != "ok" for record in records)
    note = f" ({failed} without a value)" if failed else ""
    return f"{len(records)} record{'s' if len(records) > 1 else ''} of {when}{note}"


def _repeated(count: int) -> str:
    noun = "1 record was" if count == 1 else f"{count} records were"
    return f"{noun} measured again; of each cell and round the latest that succeeded counts."
