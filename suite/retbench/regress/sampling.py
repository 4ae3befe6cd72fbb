"""Rounds until every item is decided or the budget ends, and what is flagged once more before anything is said."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from retbench.regress.items import (
    Item,
    Place,
    Times,
    item_margins,
    item_weights,
    make_items,
    paired_evidence,
)
from retbench.stats.sequential import MIN_ROUNDS, Decision, Look, Rules, Sweep, plan_looks

Ending = Literal["decided", "rounds", "budget", "nothing"]


class Source(Protocol):
    """Where rounds come from: two sides measured in turn, or rounds that were measured before."""

    def measure(self, places: frozenset[Place], /) -> Times:
        """One more round of these places; what could not be measured in it is missing."""

    def has_budget(self) -> bool:
        """Whether another round may be begun. A repeat of what is flagged is never kept from being made."""


@dataclass(frozen=True)
class Sampled:
    """What came of a sweep.

    Attributes:
        decisions: Of every item of the places that the first round gave.
        rounds: Every round, in order.
        repeats: Those measured anew for what was flagged.
        ending: Why there were no more rounds: all was decided, the limit of rounds or of time was reached, or the
            first gave nothing.
    """

    decisions: dict[Item, Decision]
    rounds: tuple[Times, ...]
    repeats: tuple[Times, ...]
    ending: Ending


def sample(
    places: Sequence[Place], reference: str | None, source: Source, rules: Rules, max_rounds: int
) -> Sampled:
    """Measure until everything is decided.

    What is judged is fixed by which places the first round gave, before anything is known of their times: one that
    cannot be measured is never decided, and would keep the rest of its curve from being so.

    Args:
        places: Everything that is to be measured.
        reference: The model that the others are put in ratio to.
        source: Gives the rounds.
        rules: The error rates.
        max_rounds: Rounds at most, repeats apart.

    Raises:
        ConfigError: so few rounds that an interval would say nothing.
    """
    looks = plan_looks(max_rounds)
    rounds = [source.measure(frozenset(places))]
    seconds = {place: times[0] for place, times in rounds[0].items()}
    items = make_items(seconds, reference)
    if not items:
        return Sampled({}, tuple(rounds), (), "nothing")
    sweep = Sweep(item_margins(items, seconds, rules), rules, looks, item_weights(items))
    ending = _first_rounds(sweep, items, source, rounds)
    repeats = _repeat(sweep, source, looks) if sweep.flagged and rules.confirm_rate is not None else []
    decisions = sweep.decisions(paired_evidence(items, rounds))
    return Sampled(decisions, tuple(rounds), tuple(repeats), ending)


def _first_rounds(sweep: Sweep[Item], items: list[Item], source: Source, rounds: list[Times]) -> Ending:
    """Rounds up to each look, until there is none; they are added to `rounds`."""
    while look := sweep.next_look:
        wanted = _places_of(sweep.undecided)
        while len(rounds) < look.rounds:
            if not source.has_budget():
                # The clock ended it and not the numbers, so what later looks would have spent is spent now.
                if len(rounds) >= MIN_ROUNDS:
                    sweep.look_last(paired_evidence(items, rounds))
                return "budget" if sweep.undecided else "decided"
            rounds.append(source.measure(wanted))
        sweep.look(paired_evidence(items, rounds))
    return "rounds" if sweep.undecided else "decided"


def _repeat(sweep: Sweep[Item], source: Source, looks: Sequence[Look]) -> list[Times]:
    """As many rounds anew of what is flagged as flagging took, and what they confirm."""
    flagged = sweep.flagged
    count = max(looks[0].rounds, *(sweep.rounds_of(item) for item in flagged))
    repeats = [source.measure(_places_of(flagged)) for _ in range(count)]
    sweep.confirm(paired_evidence(flagged, repeats))
    return repeats


def _places_of(items: Iterable[Item]) -> frozenset[Place]:
    """Every place that one of the items needs."""
    return frozenset(place for item in items for place in item.places)
