"""What a comparison came to: verdicts, what is missing, what differed, in sentences, and the exit code."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retbench.regress.evidence import Evidence
from retbench.regress.facts import Difference
from retbench.regress.items import Item, Place, time_of
from retbench.regress.sides import TIMED
from retbench.stats.sequential import Decision
from retbench.units import format_tokens

REGRESSED, NOT_COMPARABLE, INCONCLUSIVE = 1, 3, 4

Gap = Literal["broken", "fixed", "absent", "both"]

EvidenceOf = Callable[[Item], Evidence | None]
"""What all rounds say of any item."""


_GAP_WORDS: dict[Gap, str] = {
    "broken": "failed on the second side",
    "fixed": "failed on the first side alone",
    "absent": "missing on one side",
    "both": "failed on both sides",
}


@dataclass(frozen=True)
class Missing:
    """A place that lacks a value on a side, in some round or in all.

    Attributes:
        place: Where.
        side: "first", "second" or "both".
        reason: Why, in words.
        kind: "broken" where the second side failed in rounds in which the first did not, "fixed" where it is the other
            way round, "both" where they failed alike, "absent" where a side never tried.
    """

    place: Place
    side: str
    reason: str
    kind: Gap

    def __str__(self) -> str:
        where = "both sides" if self.side == "both" else f"the {self.side} side"
        return f"{self.place}: {self.reason} on {where}"


@dataclass(frozen=True)
class Report:
    """Two sides compared.

    Attributes:
        first: The side that is compared with: its name and code.
        second: The side that is judged.
        method: How the times were taken, as a sentence.
        decisions: Of every item; empty where the sides cannot be compared.
        values: Of every place, on both sides, in the unit of its workload.
        hard: Facts that keep the sides from being compared.
        soft: Facts that may explain a difference.
        missing: Places that lack a value.
        sentences: What moved, curve by curve.
        notes: What was left out, and whatever else a reader should know.
        same_code: Nothing was measured, as both sides run the same code.
        in_turn: The rounds of both sides were measured in one sitting, so that a time moves with the code alone.
    """

    first: str
    second: str
    method: str
    decisions: Mapping[Item, Decision]
    values: Mapping[Place, tuple[float, float]]
    hard: tuple[Difference, ...] = ()
    soft: tuple[Difference, ...] = ()
    missing: tuple[Missing, ...] = ()
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    same_code: bool = False
    in_turn: bool = True

    @property
    def regressions(self) -> list[Item]:
        """Items that fail the check; a ratio that is worse because its reference is better is none of them."""
        return [
            item
            for item, decision in self.decisions.items()
            if decision.verdict == "regressed" and not self._is_relative(item)
        ]

    def _is_relative(self, item: Item) -> bool:
        """Whether a ratio has moved while the model's own time has not: its reference is better."""
        place = item.places[0]
        mine = self.decisions.get(time_of(place))
        if item.kind != "ratio" or mine is None or mine.evidence is None:
            return False
        if not self.in_turn and place.workload in TIMED:
            return False
        return mine.evidence.estimate <= mine.margin

    def exit_code(self, *, strict: bool) -> int:
        """0 fine, 1 regressed, 3 not comparable in whole or in part, 4 inconclusive where that matters.

        What compared nothing has found nothing out: unless the code is the same, that is 3.
        """
        if self.hard:
            return NOT_COMPARABLE
        gaps = {one.kind for one in self.missing}
        if self.regressions or "broken" in gaps:
            return REGRESSED
        if self.same_code:
            return 0
        if "absent" in gaps or not self.decisions:
            return NOT_COMPARABLE
        undecided = any(decision.verdict == "inconclusive" for decision in self.decisions.values())
        return INCONCLUSIVE if strict and undecided else 0

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        if self.hard:
            return f"not comparable: {len(self.hard)} facts differ"
        counts = {
            verdict: sum(decision.verdict == verdict for decision in self.decisions.values())
            for verdict in ("regressed", "improved", "same", "inconclusive")
        }
        nothing = "the code that measures is the same" if self.same_code else "nothing could be compared"
        parts = [f"{count} {verdict}" for verdict, count in counts.items() if count] or [nothing]
        gaps = [one.kind for one in self.missing]
        parts += [f"{gaps.count(kind)} {word}" for kind, word in _GAP_WORDS.items() if kind in gaps]
        return ", ".join(parts)

    def to_json(self, *, strict: bool) -> dict[str, Any]:
        """All of it as JSON-able data, times in seconds."""
        return {
            "first": self.first,
            "second": self.second,
            "method": self.method,
            "outcome": self.headline,
            "exit_code": self.exit_code(strict=strict),
            "sentences": list(self.sentences),
            "items": [_item_json(item, decision) for item, decision in self.decisions.items()],
            "values": [
                {**_place_json(place), "first": first, "second": second}
                for place, (first, second) in self.values.items()
            ],
            "missing": [
                {**_place_json(one.place), "side": one.side, "reason": one.reason, "kind": one.kind}
                for one in self.missing
            ],
            "hard": [_difference_json(one) for one in self.hard],
            "soft": [_difference_json(one) for one in self.soft],
            "notes": list(self.notes),
        }


def _item_json(item: Item, decision: Decision) -> dict[str, Any]:
    """An item with its verdict; an end that is not there, or that no double holds, is null."""
    interval = decision.evidence.interval() if decision.evidence else None
    return {
        "item": str(item),
        "kind": item.kind,
        "subject": item.subject,
        "workload": item.places[0].workload,
        "batch_size": item.places[0].batch_size,
        "context_len": [place.context_len for place in item.places],
        "verdict": decision.verdict,
        "ratio": interval.value if interval else None,
        "low": _finite(interval.low) if interval else None,
        "high": _finite(interval.high) if interval else None,
        "num_rounds": interval.num_rounds if interval else 0,
        "detectable": _finite(decision.detectable),
        "note": decision.note,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and value < float("inf") else None


def _place_json(place: Place) -> dict[str, Any]:
    return {
        "experiment": place.experiment,
        "workload": place.workload,
        "model": place.model,
        "batch_size": place.batch_size,
        "context_len": place.context_len,
    }


def _difference_json(difference: Difference) -> dict[str, str]:
    return {"fact": difference.fact, "first": difference.first, "second": difference.second}


def describe_moves(decisions: Mapping[Item, Decision], evidence_of: EvidenceOf) -> tuple[str, ...]:
    """A sentence for each curve that has moved: which way, from where on, and by how much."""
    curves: dict[tuple[str, str, str, int], list[Place]] = {}
    for item in decisions:
        if item.kind == "time":
            curves.setdefault(item.places[0].curve, []).append(item.places[0])
    sentences = []
    for places in curves.values():
        ordered = sorted(places)
        verdicts = {place: decisions[time_of(place)].verdict for place in ordered}
        for verdict, word in (("regressed", _WORSE), ("improved", _BETTER)):
            moved = [place for place in ordered if verdicts[place] == verdict]
            where = describe_lengths(
                [place.context_len for place in moved], [one.context_len for one in ordered]
            )
            if (
                not moved
                and _curve_verdict(decisions, ordered) == verdict
                and verdict not in verdicts.values()
            ):
                moved, where = ordered, "over all lengths together"
            if moved:
                sentences.append(_sentence(moved, word[moved[0].workload == "memory"], where, evidence_of))
    return tuple(sentences)


_WORSE, _BETTER = ("slower", "larger"), ("faster", "smaller")


def _curve_verdict(decisions: Mapping[Item, Decision], places: list[Place]) -> str | None:
    """The verdict on a curve as a whole; None where it has one length."""
    for item, decision in decisions.items():
        if item.kind == "curve" and set(item.places) == set(places):
            return decision.verdict
    return None


def _sentence(places: list[Place], word: str, where: str, evidence_of: EvidenceOf) -> str:
    """One curve's move: 'decode of retnet slower at 8K and above: 1.120 [1.090, 1.150]'."""
    share = 1 / len(places)
    evidence = evidence_of(Item("curve", places[0].model, tuple((place, share) for place in places)))
    place = places[0]
    batch = f", batch {place.batch_size}" if place.batch_size > 1 else ""
    ratio = f": {describe_ratio(evidence)}" if evidence else ""
    return f"{place.workload} of {place.model}{batch} {word} {where}{ratio}"


def describe_lengths(moved: list[int], measured: list[int]) -> str:
    """Where along a curve something moved: everywhere, from a length on, up to one, or at some."""
    shown = [format_tokens(length) for length in moved]
    if moved == measured:
        return f"at {shown[0]}" if len(moved) == 1 else f"at every length from {shown[0]} to {shown[-1]}"
    if len(moved) > 1 and moved == measured[-len(moved) :]:
        return f"at {shown[0]} and above"
    if len(moved) > 1 and moved == measured[: len(moved)]:
        return f"at {shown[-1]} and below"
    return f"at {', '.join(shown)}"


def describe_ratio(evidence: Evidence) -> str:
    """A ratio with its interval: '1.120 [1.090, 1.150]'."""
    interval = evidence.interval()
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
