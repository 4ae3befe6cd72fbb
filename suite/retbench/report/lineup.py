"""Models that are shown together: their order and labels, the reference, and which are not compared with it."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from retbench.architectures import recorded
from retbench.architectures.matching import MAX_MISMATCH
from retbench.architectures.recorded import concatenates_cache
from retbench.architectures.registry import architectures as registered
from retbench.architectures.registry import is_baseline, title_of
from retbench.records.record import Record
from retbench.report.points import fact
from retbench.report.results import by_parts, session_of
from retbench.units import format_percent

UNMATCHED = "a model of another library is not matched to a size"
"""Why such a model is shown beside the others and not compared with them."""


@dataclass(frozen=True)
class Lineup:
    """Models that are shown together, in the order in which they are shown.

    Attributes:
        models: Names, baselines last.
        reference: The baseline that the others are compared with; None without a baseline.
        labels: A readable name of each.
        architectures: The architecture of each.
        refusals: Why a model is not compared with the reference, by model.
    """

    models: tuple[str, ...]
    reference: str | None
    labels: Mapping[str, str]
    architectures: Mapping[str, str]
    refusals: Mapping[str, str] = field(default_factory=dict)

    @property
    def challengers(self) -> tuple[str, ...]:
        """Models that are compared with the reference."""
        if self.reference is None:
            return ()
        return tuple(name for name in self.models if name != self.reference and name not in self.refusals)

    def named(self, model: str) -> str:
        """Return the name of a model in a sentence: 'RetNet', 'the Transformer', 'the fused Transformer'."""
        article = "the " if is_baseline(self.architectures[model]) else ""
        return f"{article}{self.labels[model]}"


def lineup(records: Sequence[Record]) -> Lineup:
    """Return the models of these records."""
    infos = {record.model.name: record.model for record in records}
    kinds = {name: info.architecture for name, info in infos.items()}
    weak = {name for name, info in infos.items() if concatenates_cache(info)}
    places = {name: place for place, name in enumerate(registered())}

    def place(name: str) -> tuple[bool, int, bool, bool, str]:
        kind = kinds[name]
        return is_baseline(kind), places.get(kind, len(places)), name in weak, name != kind, name

    architectures = {name: kinds[name] for name in sorted(kinds, key=place)}
    baselines = [name for name, kind in architectures.items() if is_baseline(kind)]
    reference = baselines[0] if baselines else None
    labels = _labels(architectures, weak)
    labels |= {
        record.model.name: f"{record.model.name} (unmatched)" for record in records if not is_matched(record)
    }
    return Lineup(tuple(architectures), reference, labels, architectures, _refusals(records, reference))


def _labels(architectures: Mapping[str, str], weak: Container[str]) -> dict[str, str]:
    """Return a readable name of each model; of the weak ones it says that their cache is concatenated."""
    kinds, labels = list(architectures.values()), {}
    for name, kind in architectures.items():
        label = _own_label(kind, name) if kinds.count(kind) > 1 else title_of(kind)
        labels[name] = f"{label} (concat cache)" if name in weak else label
    return labels


def _own_label(architecture: str, name: str) -> str:
    """Name a model among others of its architecture: 'chunkwise RetNet', 'RetNet (wide)'.

    The name of the architecture may begin or end the model's: retnet_chunkwise, gated_retnet.
    """
    own = name.removeprefix(f"{architecture}_").removesuffix(f"_{architecture}")
    title = title_of(architecture)
    if name == architecture:
        return title
    return f"{title} ({name})" if own == name else f"{own.replace('_', ' ')} {title}"


def is_matched(record: Record) -> bool:
    """Return whether the model of a record was made to match a size, as models of other libraries are not."""
    return _is_matched(record.model)


_is_matched = by_parts(recorded.is_matched)


def _refusals(records: Sequence[Record], reference: str | None) -> dict[str, str]:
    """Return why models are matched with the reference at no size that both have, or at none at all."""
    by_size = {(record.model.name, record.model.size): record for record in records}
    reasons: dict[str, list[str | None]] = {}
    for (name, size), record in by_size.items():
        if name != reference and (str(reference), size) in by_size:
            reasons.setdefault(name, []).append(mismatch(record, by_size[str(reference), size]))
    own = {record.model.name: UNMATCHED for record in records if not is_matched(record)}
    refused = {name: str(found[0]) for name, found in reasons.items() if all(found)}
    return refused | (own if reference is not None else {})


def mismatch(mine: Record, theirs: Record) -> str | None:
    """Return why two models are not matched: their parameters differ by more than `MAX_MISMATCH`; None if they are.

    Models of an experiment that allows a mismatch are compared all the same: one run refuses others. So are those of
    older records with one pair_id, which their experiment has matched.
    """
    if not (is_matched(mine) and is_matched(theirs)):
        return UNMATCHED
    is_older_pair = mine.pair_id is not None and mine.pair_id == theirs.pair_id
    is_allowed = all(fact(record, "allow_mismatch") for record in (mine, theirs))
    if is_older_pair or is_allowed or session_of(mine) == session_of(theirs):
        return None
    low, high = sorted(record.model.num_params_nonembedding for record in (mine, theirs))
    if high - low <= MAX_MISMATCH * high:
        return None
    return (
        f"the models are not matched: {low:,} and {high:,} parameters without embedding and head differ by "
        f"{format_percent((high - low) / high)}, more than {format_percent(MAX_MISMATCH)}"
    )
