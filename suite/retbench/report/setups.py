"""Records of cost as claims see them: one way of running a model, alone or beside one way of running another.

Every setup's records share experiment, machine, dtype, code and settings; what differs is told apart in words.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from retbench.config.experiment import RetNetSpec
from retbench.records.record import Record
from retbench.report.claim_types import Feature, Side
from retbench.report.frames import keep_latest, set_of, started
from retbench.report.selection import model_settings, shared_settings
from retbench.report.wording import device_name

FEATURE_WORDS: dict[Feature, tuple[str, str]] = {
    "fused": ("fused attention", "plain attention"),
    "grouped": ("grouped queries", "all key heads"),
    "graphs": ("graphs", "no graphs"),
}
"""What a Transformer is called that has a feature, and one that does not."""

Group = dict[tuple[str, str], list[Record]]
"""Records by the name of their model and its own settings."""


@dataclass(frozen=True)
class Setup:
    """One way of running a model, and of another that it is held against.

    Attributes:
        challenger: Records of the model that a claim is about.
        reference: Records of the other; empty where a claim is about one model.
    """

    challenger: tuple[Record, ...]
    reference: tuple[Record, ...] = ()

    @property
    def records(self) -> tuple[Record, ...]:
        """Of both."""
        return (*self.challenger, *self.reference)

    @property
    def features(self) -> frozenset[Feature]:
        """What the Transformer among them has, by a record of it that ran."""
        for record in self.records:
            if _is_transformer_that_ran(record):
                return features_of(record)
        return frozenset()

    @property
    def latest(self) -> Record:
        """The record begun last."""
        return max(self.records, key=started)

    @property
    def words(self) -> str:
        """Size, device and dtype, what a RetNet has that is not the usual, and how the Transformer ran."""
        record = self.challenger[0]
        parts = [record.model.size, device_name(record), str(set_of(record).dtype), *_unusual(record)]
        if any(_is_transformer_that_ran(each) for each in self.records):
            parts.append(_describe(self.features))
        return ", ".join(parts)


def _unusual(record: Record) -> list[str]:
    """In what a RetNet is another than one of which an experiment says nothing."""
    if record.model.architecture != "retnet":
        return []
    usual = RetNetSpec(architecture="retnet", decay="eq8").model_dump()
    has = {**record.settings, **record.model.config}
    names = ("variant", "decay", "swish_gate", "head_norm", "backend", "chunk_size")
    return [
        f"{name.replace('_', ' ')} {has[name]}" for name in names if has.get(name, usual[name]) != usual[name]
    ]


def _is_transformer_that_ran(record: Record) -> bool:
    """Whether a record tells how a Transformer ran: one that failed does not."""
    return record.model.architecture == "transformer" and record.status == "ok"


def features_of(record: Record) -> frozenset[Feature]:
    """What a Transformer's record has of a strong baseline, by what ran."""
    found: set[Feature] = set()
    ran = str(record.backend.get("decode", record.backend.get("training", record.backend.get("prefill", ""))))
    if ran.startswith("flash") or (ran.startswith("sdpa") and not ran.endswith(":math")):
        found.add("fused")
    config = record.model.config
    if config.get("num_kv_heads", 0) < config.get("num_heads", 0):
        found.add("grouped")
    if record.backend.get("cuda_graph") or record.backend.get("compile"):
        found.add("graphs")
    return frozenset(found)


def _describe(features: frozenset[Feature]) -> str:
    """How a Transformer ran, in words; of graphs only that there were some."""
    words = [has if name in features else lacks for name, (has, lacks) in FEATURE_WORDS.items()]
    return " + ".join(word for word in words if word != FEATURE_WORDS["graphs"][1])


def find_setups(records: Sequence[Record], challenger: Side, reference: Side | None) -> list[Setup]:
    """Every setup that records hold, the newest first."""
    setups = [
        setup for group in _groups(keep_latest(records)) for setup in _setups(group, challenger, reference)
    ]
    return sorted(setups, key=lambda setup: started(setup.latest), reverse=True)


def _groups(records: Iterable[Record]) -> list[Group]:
    """Records that may stand side by side, by model and way of running it."""
    groups: dict[object, Group] = {}
    for record in records:
        key = (set_of(record), record.experiment, shared_settings(record))
        way = (record.model.name, model_settings(record))
        groups.setdefault(key, {}).setdefault(way, []).append(record)
    return list(groups.values())


def _setups(
    group: Mapping[tuple[str, str], Sequence[Record]], challenger: Side, reference: Side | None
) -> Iterator[Setup]:
    """Every way of the challenger, beside every way of the reference."""
    for mine in group.values():
        if not challenger.has(mine[0]):
            continue
        if reference is None:
            yield Setup(tuple(mine))
            continue
        for theirs in group.values():
            if reference.has(theirs[0]) and theirs is not mine:
                yield Setup(tuple(mine), tuple(theirs))


def values_at(
    records: Iterable[Record], workload: str, metric: str, batch_size: int, context_len: int
) -> dict[int, float]:
    """A metric of one model at a point, by round; only of rounds that have it."""
    return {
        record.round: record.metrics[metric].value
        for record in records
        if record.workload == workload
        and record.status == "ok"
        and (record.point.batch_size, record.point.context_len) == (batch_size, context_len)
        and metric in record.metrics
    }


def points_of(records: Iterable[Record], workload: str) -> set[tuple[int, int]]:
    """Batch size and context length of every cell of a workload, measured or failed."""
    return {
        (record.point.batch_size, record.point.context_len)
        for record in records
        if record.workload == workload
    }


def failure_at(records: Iterable[Record], workload: str, batch_size: int, context_len: int) -> str | None:
    """The status of a cell that has no round that is ok; None where one is, or there is no such cell."""
    statuses = [
        record.status
        for record in records
        if record.workload == workload
        and (record.point.batch_size, record.point.context_len) == (batch_size, context_len)
    ]
    return None if not statuses or "ok" in statuses else statuses[-1]
