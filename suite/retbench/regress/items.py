"""What of a sweep is judged: each time, the ratio of a model to its reference, and each curve as a whole.

Each is a sum of log-ratios of times with fixed weights, so that one arithmetic serves all: a time is itself, the ratio
of RetNet to the Transformer is one time less the other, and a curve is the mean over its context lengths, in which the
noise of single lengths cancels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from retbench.regress.evidence import Evidence, paired
from retbench.stats.sequential import Rules
from retbench.units import format_tokens

Kind = Literal["time", "ratio", "curve"]
Pair = tuple[float, float]
"""Seconds on the first and on the second side."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a time was taken: a model at a point of a workload."""

    experiment: str
    workload: str
    model: str
    batch_size: int
    context_len: int

    @property
    def curve(self) -> tuple[str, str, str, int]:
        """What it shares with the other context lengths of its curve."""
        return self.experiment, self.workload, self.model, self.batch_size

    def __str__(self) -> str:
        return f"{self.workload} of {self.model}, batch {self.batch_size}, {format_tokens(self.context_len)}"


Times = Mapping[Place, Pair]
"""What one round gave."""

Values = Mapping[Place, float]
"""The values of one round on one side: seconds, or bytes where a workload is compared by those."""


@dataclass(frozen=True)
class Item:
    """One thing that is judged.

    Attributes:
        kind: What it is.
        subject: The model, or "retnet/transformer" for a ratio.
        weights: The places whose log-ratios it is the sum of, each with its weight.
    """

    kind: Kind
    subject: str
    weights: tuple[tuple[Place, float], ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """The places that it needs."""
        return tuple(place for place, _ in self.weights)

    @property
    def lengths(self) -> str:
        """Its context length, or those of its curve from the shortest to the longest."""
        lengths = sorted({place.context_len for place in self.places})
        ends = [format_tokens(length) for length in (lengths[0], lengths[-1])]
        return ends[0] if len(lengths) == 1 else f"{ends[0]} to {ends[1]}"

    def log_value(self, values: Values) -> float | None:
        """The sum of its logarithms on one side in one round; None where a value is missing."""
        if not all(place in values for place in self.places):
            return None
        return math.fsum(weight * math.log(values[place]) for place, weight in self.weights)

    def log_ratio(self, times: Times) -> float | None:
        """Its log-ratio in one round; None where a time is missing."""
        return self.log_value({place: second / first for place, (first, second) in times.items()})

    def __str__(self) -> str:
        place = self.places[0]
        return f"{place.workload} of {self.subject}, batch {place.batch_size}, {self.lengths}"


def time_of(place: Place) -> Item:
    """The time of a place, as an item."""
    return Item("time", place.model, ((place, 1.0),))


def combine_visits(visits: Sequence[Pair]) -> Pair:
    """The pair that a round's visits of one place come to: their ratio is the median of the visits' ratios.

    Each visit took both sides one right after the other: whatever disturbs a visit disturbs one ratio of several.
    """
    first = median(one for one, _ in visits)
    return first, first * math.exp(median(math.log(second / first) for first, second in visits))


def make_items(places: Iterable[Place], reference: str | None) -> list[Item]:
    """Everything that is judged of a sweep: times, ratios to the reference, curves of two lengths or more.

    Args:
        places: Where times are taken.
        reference: The model that the others are put in ratio to; None where there is none.
    """
    ordered = sorted(set(places))
    known = set(ordered)
    items = [time_of(place) for place in ordered]
    for place in ordered:
        if reference is not None and place.model != reference:
            other = Place(place.experiment, place.workload, reference, place.batch_size, place.context_len)
            if other in known:
                items.append(Item("ratio", f"{place.model}/{reference}", ((place, 1.0), (other, -1.0))))
    curves: dict[tuple[str, str, str, int], list[Place]] = {}
    for place in ordered:
        curves.setdefault(place.curve, []).append(place)
    for members in curves.values():
        if len(members) > 1:
            share = 1 / len(members)
            items.append(Item("curve", members[0].model, tuple((place, share) for place in members)))
    return items


def item_margins(items: Sequence[Item], seconds: Mapping[Place, float], rules: Rules) -> dict[Item, float]:
    """The log-ratio that counts as moved, of every item: the widest of its places'.

    Args:
        items: The items.
        seconds: What a place roughly takes, for the floor; one that is not known has none.
        rules: Margin and floor.
    """
    return {
        item: max(rules.log_margin(seconds.get(place, math.inf)) for place in item.places) for item in items
    }


def item_weights(items: Sequence[Item]) -> dict[Item, int]:
    """How the rate of false alarms is shared out: half to the curves, which are few and have the least noise.

    What slows a step slows it at most lengths, so that a curve is where it is looked for. Without curves, or without
    anything else, all items have the same.
    """
    num_curves = sum(item.kind == "curve" for item in items)
    num_others = len(items) - num_curves
    if not num_curves or not num_others:
        return dict.fromkeys(items, 1)
    return {item: num_others if item.kind == "curve" else num_curves for item in items}


def paired_evidence(items: Iterable[Item], rounds: Sequence[Times]) -> dict[Item, Evidence]:
    """What rounds say of every item that one of them has."""
    found: dict[Item, Evidence] = {}
    for item in items:
        logs = [log for times in rounds if (log := item.log_ratio(times)) is not None]
        if logs:
            found[item] = paired(logs)
    return found
