"""The report of a check: decided items, missing points, differing facts, notes, and the exit code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from retbench.errors import INTERRUPTED
from retbench.regress.comparability import FactDifference
from retbench.regress.items import MeasurementPoint, Times
from retbench.stats.intervals import Interval

REGRESSED, NOT_COMPARABLE, INCONCLUSIVE = 1, 3, 4

Gap = Literal["broken", "fixed", "absent", "both"]
Outcome = Literal["passed", "failure", "error", "skipped"]

_FAILURES = ("regressed", "changed", "not in the baseline", "not measured")
VERDICTS = (*_FAILURES, "improved", "inconclusive", "not compared", "same", "equal")
"""In the order of tables and headlines."""

SIDES = {"broken": "second", "fixed": "first", "both": "both"}
"""The side without a value, by the kind of gap; of the other kind either side may lack it."""
_GAP_WORDS: dict[Gap, str] = {
    "broken": "failed on the second side",
    "fixed": "failed on the first side alone",
    "absent": "missing on one side",
    "both": "failed on both sides",
}


@dataclass(frozen=True)
class DecidedItem:
    """One compared item with its verdict.

    Attributes:
        kind: "time", "ratio", "curve", or "quantity".
        verdict: One of `VERDICTS`.
        outcome: Its effect on the check. "skipped" means undecided, "error" that the item is on one side only.
        first: Its value on the first side, as text; empty for a curve.
        change: Second side over first; None for a quantity or without rounds.
        margin: Ratio that counts as moved.
        workload: The workload of a time, ratio or curve.
        data: The item as JSON-able data.
    """

    name: str
    kind: str
    verdict: str
    outcome: Outcome
    first: str = ""
    second: str = ""
    note: str = ""
    change: Interval | None = None
    margin: float = 1.0
    workload: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MissingPoint:
    """A point without a value on the "first" side, the "second" or "both", in some round or in all.

    Its kind is "broken" where the second side failed in rounds in which the first did not, "fixed" for the reverse,
    "both" where they failed alike, and "absent" where a side never tried.
    """

    point: MeasurementPoint
    side: str
    reason: str
    kind: Gap

    def __str__(self) -> str:
        where = "both sides" if self.side == "both" else f"the {self.side} side"
        return f"{self.point}: {self.reason} on {where}"


@dataclass(frozen=True)
class MeasuredRound:
    """The times of one round on both sides.

    Rounds are numbered from 1, and so are repeats, which measure flagged items again.
    """

    number: int
    is_repeat: bool
    times: Times


@dataclass(frozen=True)
class CheckReport:
    """The result of comparing a second side, which is judged, with a first; without items if they cannot be compared.

    Attributes:
        method: The way in which the values were measured.
        values: The value of every point on both sides, in the unit of its workload.
        rounds: The rounds behind the values, if both sides were measured in turn for this report.
        comparability_keys: Comparability keys that differ.
        confounders: Confounders that differ.
        sentences: The curves that moved.
        notes: Records that were left out, and other remarks.
        same_code: Nothing was measured, because both sides run the same code.
        quantities: The items are machine-independent quantities, and not times.
        is_interrupted: The user stopped the measurement, so that nothing was decided.
    """

    first: str
    second: str
    method: str
    items: tuple[DecidedItem, ...] = ()
    values: Mapping[MeasurementPoint, tuple[float, float]] = field(default_factory=dict)
    rounds: tuple[MeasuredRound, ...] = ()
    comparability_keys: tuple[FactDifference, ...] = ()
    confounders: tuple[FactDifference, ...] = ()
    missing: tuple[MissingPoint, ...] = ()
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    same_code: bool = False
    quantities: bool = False
    is_interrupted: bool = False

    def exit_code(self, *, strict: bool) -> int:
        """Return 0 if fine, 1 if regressed, 3 if not comparable in whole or in part, 4 if inconclusive and `strict`.

        A report without items is not comparable, unless the code is the same. An interrupted measurement has 130.
        """
        if self.is_interrupted:
            return INTERRUPTED
        if self.comparability_keys:
            return NOT_COMPARABLE
        gaps = {one.kind for one in self.missing}
        outcomes = {item.outcome for item in self.items}
        if "failure" in outcomes or "broken" in gaps:
            return REGRESSED
        if self.same_code:
            return 0
        if "error" in outcomes or "absent" in gaps or not self.items:
            return NOT_COMPARABLE
        return INCONCLUSIVE if strict and "skipped" in outcomes else 0

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        if self.comparability_keys:
            count = len(self.comparability_keys)
            return f"not comparable: {'1 fact differs' if count == 1 else f'{count} facts differ'}"
        verdicts = [item.verdict for item in self.items]
        nothing = "the code that measures is the same" if self.same_code else "nothing could be compared"
        counts = [(verdicts.count(verdict), verdict) for verdict in VERDICTS]
        parts = [f"{count} {verdict}" for count, verdict in counts if count] or [nothing]
        gaps = [one.kind for one in self.missing]
        parts += [f"{gaps.count(kind)} {word}" for kind, word in _GAP_WORDS.items() if kind in gaps]
        return ", ".join(parts)

    def to_json(self, *, strict: bool) -> dict[str, Any]:
        """Return the report as JSON-able data, times in seconds."""
        return {
            "first": self.first,
            "second": self.second,
            "method": self.method,
            "outcome": self.headline,
            "exit_code": self.exit_code(strict=strict),
            "sentences": list(self.sentences),
            "findings" if self.quantities else "items": [item.data for item in self.items],
            "values": [
                {**vars(point), "first": first, "second": second}
                for point, (first, second) in self.values.items()
            ],
            "rounds": [
                {
                    **vars(point),
                    "round": one.number,
                    "is_repeat": one.is_repeat,
                    "first": first,
                    "second": second,
                }
                for one in self.rounds
                for point, (first, second) in one.times.items()
            ],
            "missing": [
                {**vars(one.point), "side": one.side, "reason": one.reason, "kind": one.kind}
                for one in self.missing
            ],
            "comparability_keys": [vars(one) for one in self.comparability_keys],
            "confounders": [vars(one) for one in self.confounders],
            "notes": list(self.notes),
        }
