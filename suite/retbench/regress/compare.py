"""Two sets of records compared: first whether they may be, then place by place."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from retbench.errors import RecordError
from retbench.records.record import Record
from retbench.regress.evidence import Evidence, paired, unpaired
from retbench.regress.facts import (
    Difference,
    compare_clocks,
    compare_facts,
    hard_facts,
    sm_clock_hz,
    soft_facts,
)
from retbench.regress.items import Item, Place, item_margins, item_weights, make_items, time_of
from retbench.regress.rendering_report import Gap, Missing, Report, describe_moves
from retbench.regress.sides import TIMED, Attempts, Side, are_interleaved, middle, place_of, typical
from retbench.report.frames import started
from retbench.stats.sequential import WITHOUT_REPEAT, Decision, Rules, Sweep, single_look

SITTING = "sitting"

_PAIRED = "paired rounds: each round of both sides was measured before the next of either"
_APART = "two sittings: the rounds of the sides share nothing"
_EITHER = "regressed, but either model may have moved: a sitting shifts the times of both"


def compare_sides(
    first: Side, second: Side, rules: Rules = WITHOUT_REPEAT, *, accept_soft: bool = False
) -> Report:
    """Compare two record sets of one machine.

    Args:
        first: The side that is compared with.
        second: The side that is judged.
        rules: Margins and error rates.
        accept_soft: Judge what has moved although soft facts differ.

    Returns:
        The report; without decisions where a hard fact differs.

    Raises:
        RecordError: the sides have no place in common.
    """
    shared = first.places(measured=False) & second.places(measured=False)
    if not shared:
        raise RecordError(
            f"'{first.name}' and '{second.name}' have no point in common: {_some(first)} on the one side, "
            f"{_some(second)} on the other. Give records of the same experiment and profile."
        )
    hard = hard_differences(first.records, second.records)
    interleaved = are_interleaved(first, second)
    soft = tuple(soft_differences(first, second, interleaved=interleaved))
    report = Report(
        first=f"{first.name} ({first.revisions})",
        second=f"{second.name} ({second.revisions})",
        method=_PAIRED if interleaved else _APART,
        decisions={},
        values={},
        hard=tuple(hard),
        soft=soft,
        missing=tuple(find_missing(first.attempts(), second.attempts())),
        notes=(*first.notes, *second.notes, *first.ratio_notes),
        in_turn=interleaved,
    )
    return (
        report
        if hard
        else _judged(report, first, second, rules, interleaved=interleaved, accept_soft=accept_soft)
    )


def _judged(
    report: Report, first: Side, second: Side, rules: Rules, *, interleaved: bool, accept_soft: bool
) -> Report:
    """The report with its decisions."""
    sides = list(first.values().items()), list(second.values().items())
    places = first.places(measured=True) & second.places(measured=True)
    values = [[of_round for _, of_round in side] for side in sides]
    items = make_items(places, first.reference)

    def evidence_of(item: Item) -> Evidence | None:
        if interleaved:
            seen = dict(sides[1])
            logs = [
                (item.log_value(of_round), item.log_value(seen.get(number, {})))
                for number, of_round in sides[0]
            ]
            both = [after - before for before, after in logs if before is not None and after is not None]
            return paired(both) if both else None
        first_logs, second_logs = (
            [log for one in side if (log := item.log_value(one)) is not None] for side in values
        )
        if not first_logs or not second_logs:
            return None
        found = unpaired(first_logs, second_logs)
        return found if item.places[0].workload in TIMED else counted(found)

    evidence = {item: found for item in items if (found := evidence_of(item))}
    decisions = judge(items, evidence, typical(values[0]), rules)
    if not accept_soft:
        decisions = find_doubts(decisions if interleaved else doubt_ratios(decisions), report.soft)
    both = {place: (middle(values[0], place), middle(values[1], place)) for place in sorted(places)}
    return replace(report, decisions=decisions, values=both, sentences=describe_moves(decisions, evidence_of))


def judge(
    items: Sequence[Item], evidence: Mapping[Item, Evidence], seconds: Mapping[Place, float], rules: Rules
) -> dict[Item, Decision]:
    """The verdicts of rounds that are there already: one look at all of them."""
    timed = {place: value for place, value in seconds.items() if place.workload in TIMED}
    most = max((one.num_rounds for one in evidence.values()), default=1)
    sweep = Sweep(item_margins(items, timed, rules), rules, single_look(most), item_weights(items))
    sweep.look(evidence)
    return sweep.decisions(evidence)


def counted(evidence: Evidence) -> Evidence:
    """Evidence of what is counted and not timed: one round tells as much as many, where all rounds agree."""
    return replace(evidence, degrees=1.0) if evidence.degrees <= 0 else evidence


def hard_differences(first: Sequence[Record], second: Sequence[Record]) -> list[Difference]:
    """Facts that keep two sides from being compared, each once, of the places that both have."""
    groups = [_by_place(records) for records in (first, second)]
    found: dict[Difference, None] = {}
    for place in sorted(groups[0].keys() & groups[1].keys()):
        sides = [groups[0][place], groups[1][place]]
        whole = all(any(record.status == "ok" for record in side) for side in sides)
        one, other = (_distinct_facts(side, whole=whole) for side in sides)
        alone = [facts for facts in one if facts not in other], [facts for facts in other if facts not in one]
        if any(alone):
            for mine, theirs in product(alone[0] or one, alone[1] or other):
                found |= dict.fromkeys(compare_facts(mine, theirs))
    return sorted(found, key=lambda difference: difference.fact)


def _by_place(records: Sequence[Record]) -> dict[Place, list[Record]]:
    """The records of each place."""
    groups: dict[Place, list[Record]] = {}
    for record in records:
        groups.setdefault(place_of(record), []).append(record)
    return groups


def _distinct_facts(records: Sequence[Record], *, whole: bool) -> list[dict[str, str]]:
    """The hard facts of a place, once for each way in which they occur in its rounds.

    Args:
        records: Of the place, on one side.
        whole: Whether both sides have a value: then of those alone, and else without what ran, which a failure cannot
            tell.
    """
    found: list[dict[str, str]] = []
    for record in records:
        if whole and record.status != "ok":
            continue
        facts = hard_facts(record)
        kept = facts if whole else {name: facts[name] for name in facts if not name.startswith("ran.")}
        if kept not in found:
            found.append(kept)
    return found


def soft_differences(first: Side, second: Side, *, interleaved: bool) -> list[Difference]:
    """Facts that may explain why something moved."""
    found = compare_facts(soft_facts(first.records), soft_facts(second.records))
    found += compare_clocks(sm_clock_hz(first.records), sm_clock_hz(second.records))
    if not interleaved:
        moments = [min(started(record) for record in side.records) for side in (first, second)]
        found.append(Difference(SITTING, *(f"{moment:%Y-%m-%d %H:%M}" for moment in moments)))
    return found


def find_missing(first: Mapping[Place, Attempts], second: Mapping[Place, Attempts]) -> list[Missing]:
    """Places that a side never tried, or failed at in some round."""
    found = []
    for place in sorted({*first, *second}):
        one, other = first.get(place), second.get(place)
        if one is None or other is None:
            found.append(Missing(place, "first" if one is None else "second", "not measured", "absent"))
        elif gap := _find_gap(one, other):
            side = {"broken": "second", "fixed": "first"}.get(gap, "both")
            found.append(Missing(place, side, str(one if gap == "fixed" else other), gap))
    return found


def _find_gap(first: Attempts, second: Attempts) -> Gap | None:
    """Which side failed where the other did not; None where neither failed."""
    if first.has_value != second.has_value:
        return "broken" if first.has_value else "fixed"
    if first.has_value and second.failures.keys() - first.failures.keys():
        return "broken"
    if first.has_value and first.failures.keys() - second.failures.keys():
        return "fixed"
    return "both" if first.failures else None


def doubt_ratios(decisions: Mapping[Item, Decision]) -> dict[Item, Decision]:
    """The decisions where the sides were not measured in turn: of a ratio that is worse either model may have moved.

    A sitting shifts the times of both models. It is the model that is slower where its own time is longer and the
    sitting has left every time of the reference as it was.
    """
    timed = {item: one for item, one in decisions.items() if item.places[0].workload in TIMED}
    shifted = {item.subject for item, one in timed.items() if item.kind == "time" and one.verdict != "same"}
    found = dict(decisions)
    for item, decision in timed.items():
        if item.kind == "ratio" and decision.verdict == "regressed":
            mine, reference = item.places
            if decisions[time_of(mine)].verdict != "regressed" or reference.model in shifted:
                found[item] = replace(decision, verdict="inconclusive", note=_EITHER)
    return found


def find_doubts(decisions: Mapping[Item, Decision], soft: Sequence[Difference]) -> dict[Item, Decision]:
    """Every decision in the light of what else differed."""
    return {item: _find_doubt(item, decision, soft) for item, decision in decisions.items()}


def _find_doubt(item: Item, decision: Decision, soft: Sequence[Difference]) -> Decision:
    """A decision in the light of what else differed; what a sitting does to both models leaves their ratio alone."""
    relevant = [one.fact for one in soft if not (one.fact == SITTING and item.kind == "ratio")]
    if (
        item.places[0].workload not in TIMED
        or decision.verdict not in {"regressed", "improved"}
        or not relevant
    ):
        return decision
    note = f"{decision.verdict}, unless it is this that moved it: {', '.join(relevant)}"
    return replace(decision, verdict="inconclusive", note=note)


def _some(side: Side) -> str:
    """One of the places of a side, and how many there are."""
    places = sorted(side.places(measured=False))
    return f"{places[0]} and {len(places) - 1} others" if len(places) > 1 else str(places[0])
