"""Selection of the records that a table or report shows: the newest comparable ones, with a note on all others.

Records of another machine, device, dtype, thread count, code revision, version of Python or of a library that computes
are never shown together. Costs, evaluations and trainings have one such set each. Of a cost every experiment has its
newest size and protocol (warm-up, steps, graph), and of each model the newest way of running it (backend, chunk). Of
quality every (task point, model instance) has its newest record.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from retbench.errors import RecordError, unknown_name
from retbench.records.dates import dates_of, started
from retbench.records.environment import conditions
from retbench.records.record import Documents, ModelInfo, Record
from retbench.report.latest import keep_latest, on_one_node
from retbench.report.lineup import is_matched
from retbench.report.points import group, instance_of, is_final, learning_rate, task_point_of
from retbench.report.results import ComparableSet, by_parts, set_of
from retbench.units import format_items
from retbench.workloads.workload import measures_cost, replicate_of

MODEL_SETTINGS = ("backend", "chunk_size")
"""Settings that belong to one model; all others are shared by the models of an experiment."""

_SET_WORDS = {
    "code_revision": "code revision",
    "torch_version": "torch",
    "python_version": "Python",
    "library_versions": "libraries",
}
"""Names of comparability keys in sentences, where they differ from the field's."""


@dataclass(frozen=True)
class Selection:
    """Records that may be compared with each other.

    Attributes:
        records: One per (cell, round).
        left_out: One sentence per group of records that were found and are not among them.
        workloads_left_out: Workloads that have a value in records that were found, and in none of these.
        everything: All records that were found, for looking up trainings.
        folders: Folder of the per-document results of each record; without it quality is not compared.
        is_published: Whether these are the records that come with the project, not the reader's own.
        part: Experiments of a further set of published records, "kin, kin_quality", and its machine where an earlier
            one is of the same experiments; empty for the first set.
    """

    records: tuple[Record, ...]
    left_out: tuple[str, ...] = ()
    workloads_left_out: frozenset[str] = frozenset()
    everything: tuple[Record, ...] = ()
    folders: Mapping[Documents, Path] = field(default_factory=dict)
    is_published: bool = False
    part: str = ""

    @property
    def title(self) -> str:
        """Heading of what these records show."""
        if not self.is_published:
            return "Measured on this machine"
        return f"Published results: {self.part}" if self.part else "Published results"

    @property
    def anchor(self) -> str:
        """Name of the section that shows these records, unique in a report."""
        if not self.is_published:
            return "measured"
        return "-".join(["published", *self.part.replace("_", "-").split(", ")]).rstrip("-")

    @property
    def costs(self) -> tuple[Record, ...]:
        """Records of cost."""
        return tuple(record for record in self.records if measures_cost(record))

    @property
    def quality(self) -> tuple[Record, ...]:
        """Records of quality."""
        return tuple(record for record in self.records if not measures_cost(record))


def select(
    records: Sequence[Record],
    experiment: str | None = None,
    folders: Mapping[Documents, Path] | None = None,
) -> Selection:
    """Return the newest comparable records of one experiment, or of all.

    A set that holds a measured value is preferred to one that holds only failures.

    Raises:
        RecordError: there are no records.
        ConfigError: there are none of that experiment; the message suggests the nearest name.
    """
    chosen: list[Record] = []
    left_out: list[str] = []
    families = group(_of_experiment(records, experiment), replicate_of)
    for replicate in sorted(families, key=["round", "document", "seed"].index):
        found = families[replicate]
        of_nodes = on_one_node(found)
        if elsewhere := len(found) - len(of_nodes):
            left_out.append(_of_other_nodes(elsewhere))
        kept = keep_latest(of_nodes)
        if len(kept) < len(of_nodes):
            left_out.append(_repeated(len(of_nodes) - len(kept)))
        comparable, other_sets = choose_conditions(kept)
        newest, older = (_one_protocol if replicate == "round" else newest_evaluations)(comparable)
        chosen += newest
        left_out += other_sets + older
    left_workloads = frozenset(_measured(records) - _measured(chosen))
    return Selection(tuple(chosen), tuple(left_out), left_workloads, tuple(records), folders or {})


def _measured(records: Iterable[Record]) -> set[str]:
    """Return the workloads that have a value."""
    return {record.workload for record in records if record.status == "ok"}


def _of_experiment(records: Sequence[Record], experiment: str | None) -> Sequence[Record]:
    if not records:
        raise RecordError("there are no records to select from. Measure first: `retbench run latency`.")
    if experiment is None:
        return records
    present = {record.experiment for record in records}
    if experiment not in present:
        raise unknown_name("experiment", experiment, present, where="the results")
    return [record for record in records if record.experiment == experiment]


def choose_conditions(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Return the records of the newest comparable set, and a sentence on each other set."""
    return _newest(records, set_of, "that may not be pooled with these")


def _newest(
    records: Sequence[Record], key: Callable[[Record], ComparableSet | str], words: str = ""
) -> tuple[list[Record], list[str]]:
    """Return the records by one key: those that hold a value and were started last.

    Returns:
        These records; and, with `words`, a sentence on the records of each other key, with what differs.
    """
    groups = group(records, key)
    newest = max(
        groups, key=lambda one: (any(r.status == "ok" for r in groups[one]), max(map(started, groups[one])))
    )
    notes = [
        f"{', '.join(sorted({record.experiment for record in others}))}: {describe_count(others)} {words} "
        f"({_difference(other, newest)})."
        for other, others in groups.items()
        if words and other != newest
    ]
    return groups[newest], notes


def _one_protocol(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Return the records of one protocol per experiment, and of one way of running each of its models."""
    chosen: list[Record] = []
    notes: list[str] = []
    for _, of_one in sorted(group(records, lambda record: record.experiment).items()):
        of_protocol, others = _newest_protocol(of_one)
        notes += others
        for model, of_model in group(of_protocol, lambda record: record.model.name).items():
            of_way, others = _newest(of_model, model_settings, f"of {model} run another way")
            notes += others
            for of_workload in group(of_way, lambda record: record.workload).values():
                chosen += _newest(of_workload, lambda record: str(record.environment.get("workload_code")))[0]
    return chosen, notes


def _newest_protocol(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Return the records of one experiment with the newest settings and size, and a sentence on each other set.

    A model of another library has a size of its own, and is shown with the others of any size.
    """
    words = "with other settings"
    if all(map(is_matched, records)):
        return _newest(records, shared_settings, words)
    of_settings, notes = _newest(records, _settings_without_size, words)
    matched = [record for record in of_settings if is_matched(record)]
    if not matched:
        return of_settings, notes
    of_size, others = _newest(matched, shared_settings, words)
    chosen = set(map(id, of_size))
    kept = [record for record in of_settings if id(record) in chosen or not is_matched(record)]
    return kept, notes + others


def _settings_without_size(record: Record) -> str:
    return _shared_settings(record.settings, None, record.environment)


def shared_settings(record: Record) -> str:
    """Return the settings and conditions that an experiment's models share, size included, as JSON with sorted keys."""
    return _shared_settings(record.settings, record.model, record.environment)


@by_parts
def _shared_settings(
    settings: Mapping[str, Any], model: ModelInfo | None, environment: Mapping[str, Any]
) -> str:
    shared = {name: value for name, value in settings.items() if name not in MODEL_SETTINGS}
    for name, value in conditions(environment).items():
        shared |= (
            {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        )
    return json.dumps({**shared, "size": model and model.size}, sort_keys=True, default=str)


def model_settings(record: Record) -> str:
    """Return one model's own settings, configuration and code as JSON with sorted keys."""
    return _model_settings(record.settings, record.model, record.environment)


@by_parts
def _model_settings(settings: Mapping[str, Any], model: ModelInfo, environment: Mapping[str, Any]) -> str:
    own = {name: settings.get(name) for name in MODEL_SETTINGS}
    names = {"architecture": model.architecture, "variant": model.variant}
    code = {"model code": environment.get("model_code")}
    return json.dumps({**model.config, **names, **own, **code}, sort_keys=True, default=str)


def _difference(other: ComparableSet | str, chosen: ComparableSet | str) -> str:
    """Return the differences of two sets or settings: 'min_steps 5, here 20'."""
    mine, theirs = (json.loads(one) if isinstance(one, str) else asdict(one) for one in (chosen, other))
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    return ", ".join(
        f"{_SET_WORDS.get(name, name)} {theirs.get(name)}, here {mine.get(name)}" for name in names
    )


def describe_count(records: Sequence[Record]) -> str:
    """Return number, dates and failures of records: '12 records of 2026-01-02 (3 without a value)'."""
    failed = sum(record.status != "ok" for record in records)
    note = f" ({failed} without a value)" if failed else ""
    return f"{format_items(len(records), 'record')} of {dates_of(records)}{note}"


def _of_other_nodes(count: int) -> str:
    noun = "1 record is" if count == 1 else f"{count} records are"
    return f"{noun} of another node or GPU; the rounds of a cell are those of one."


def _repeated(count: int) -> str:
    noun = "1 record was" if count == 1 else f"{count} records were"
    return f"{noun} measured again; the latest successful one per cell and round counts."


def newest_evaluations(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Return the latest record with a value per (task point, model instance), and notes on those it replaces.

    Among records that differ only in their number of documents, the one with the most counts: a short trial run
    replaces no complete evaluation.
    """
    newest: dict[tuple[object, ...], datetime] = {}
    for record in sorted(records, key=started):
        newest[record.status, _version(record)] = started(record)
    ordered = sorted(
        records,
        key=lambda record: (
            record.status == "ok",
            newest[record.status, _version(record)],
            _num_documents(record),
            started(record),
        ),
    )
    latest = {_place(record): record for record in ordered}
    older = (record for record in records if record is not latest[_place(record)])
    replaced = group(older, lambda r: (r.experiment, _why_replaced(r, latest[_place(r)])))
    notes = [
        f"{experiment}: {describe_count(others)} of quality {reason}."
        for (experiment, reason), others in replaced.items()
    ]
    return [record for record in records if record is latest[_place(record)]], notes


def _why_replaced(record: Record, by: Record) -> str:
    """Return why another record replaces this one, as the end of a sentence."""
    mine, theirs = _num_documents(record), _num_documents(by)
    if _version(record) == _version(by) and mine < theirs:
        noun = "document" if mine == 1 else "documents"
        return f"on {mine:,} {noun}, replaced by those of the same task point on {theirs:,}"
    return (
        "replaced by newer ones of the same model, size, seed and task point "
        "(other weights, documents or settings)"
    )


def _num_documents(record: Record) -> int:
    return record.documents.num_documents if record.documents else 0


def _version(record: Record) -> tuple[object, ...]:
    """Return what identifies an evaluation, weights and settings included, but not its number of documents."""
    settings = json.dumps({**record.settings, "limit": None}, sort_keys=True, default=str)
    weights = record.model.weights.fingerprint if record.model.weights else None
    return _place(record), weights, settings


def _place(record: Record) -> tuple[object, ...]:
    """Return the key under which one record of quality is kept."""
    tuned = None if is_final(record) else learning_rate(record)
    return task_point_of(record), record.model.name, instance_of(record), tuned


def matched_groups(records: Iterable[Record]) -> list[tuple[Record, ...]]:
    """Return records by the models that their experiment has at one size, in the order of the experiments.

    Experiments with the same models at the same size share a group. A model of another library, which has a size of its
    own, is in every group of its experiment.
    """
    ordered = sorted(_at_each_size(records), key=lambda pair: pair[1].experiment)
    lineups: dict[Hashable, list[Record]] = {}
    for pairs in group(ordered, lambda pair: (pair[1].experiment, pair[0])).values():
        of_one = [record for _, record in pairs]
        models = {_without_weights(record.model) for record in of_one}
        lineups.setdefault(frozenset(models), []).extend(of_one)
    return [tuple(found) for found in lineups.values()]


def _at_each_size(records: Iterable[Record]) -> Iterator[tuple[str, Record]]:
    """Yield every record with its size; that of an unmatched model with each size of its experiment."""
    found = list(records)
    sizes: dict[str, dict[str, None]] = {}
    for record in found:
        if is_matched(record):
            sizes.setdefault(record.experiment, {})[record.model.size] = None
    for record in found:
        own = [record.model.size]
        for size in own if is_matched(record) else [*sizes.get(record.experiment, own)]:
            yield size, record


@by_parts
def _without_weights(model: ModelInfo) -> str:
    return model.model_copy(update={"weights": None}).model_dump_json()
