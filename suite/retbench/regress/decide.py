"""Decisions on a comparison of times: verdicts, confounders, decided items, and sentences on what moved."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from retbench.regress.comparability import SESSION, FactDifference
from retbench.regress.evidence import Evidence
from retbench.regress.items import (
    WALL_TIME,
    ComparedItem,
    MeasurementPoint,
    Pair,
    curve_of,
    curves_of,
    is_timed,
    make_items,
    make_test,
    time_of,
)
from retbench.regress.render import describe_ratio
from retbench.regress.report import CheckReport, DecidedItem, Outcome
from retbench.stats.sequential import Decision, DecisionRules, InterimAnalysis, Verdict
from retbench.units import format_bytes, format_percent, format_seconds, format_tokens

Decisions = Mapping[ComparedItem, Decision]

_EITHER = "regressed, but either model may have moved: a measurement session shifts the times of both"


def conclude(
    report: CheckReport,
    evidence: Evidence,
    reference: str | None,
    rules: DecisionRules,
    *,
    accept_confounders: bool,
) -> CheckReport:
    """Decide on the existing rounds of both sides in one analysis, and add the decisions to a report.

    An item is inconclusive if something is missing for a verdict, or if a confounder may have moved it and the user
    does not `accept_confounders`. A ratio is formed to the model `reference`.
    """
    items = make_items(evidence.shared_points, reference)
    changes = {item: change for item in items if (change := evidence.change_of(item))}
    seconds: dict[MeasurementPoint, float] = {}
    for values in reversed(evidence.sides[0]):
        seconds |= {point: value for point, value in values.items() if is_timed(point.workload)}
    num_rounds = max((change.num_rounds for change in changes.values()), default=1)
    test = make_test(items, seconds, rules, [InterimAnalysis(num_rounds, 1.0)])
    test.analyse(changes)
    decisions = test.decisions(changes)
    verdicts = {item: decision.verdict for item, decision in decisions.items()}
    facts = () if accept_confounders else report.confounders
    for item, decision in tuple(decisions.items()):
        doubt = evidence.lack_of(item)
        if not doubt and is_timed(item.workload) and decision.verdict in {"regressed", "improved"}:
            is_shifted = not (evidence.in_turn or accept_confounders) and _may_be_shifted(item, verdicts)
            doubt = _EITHER if is_shifted else _explain(item, decision.verdict, facts)
        if doubt:
            decisions[item] = replace(decision, verdict="inconclusive", detectable=None, note=doubt)
    return with_decisions(report, decisions, evidence)


def _may_be_shifted(item: ComparedItem, verdicts: Mapping[ComparedItem, Verdict]) -> bool:
    """Return whether a ratio of two measurement sessions may be worse because of the other model.

    A session shifts the times of both models. A model is slower where its own time is longer, and every time of the
    reference is the same.
    """
    if item.kind != "ratio" or verdicts[item] != "regressed":
        return False
    mine, reference = item.points
    times = {
        one: verdict for one, verdict in verdicts.items() if one.kind == "time" and is_timed(one.workload)
    }
    return verdicts[time_of(mine)] != "regressed" or any(
        verdict != "same" for one, verdict in times.items() if one.subject == reference.model
    )


def _explain(item: ComparedItem, verdict: Verdict, differences: Sequence[FactDifference]) -> str | None:
    """Return the confounders that may have moved a time; a measurement session leaves ratios alone."""
    facts = [one.fact for one in differences if one.fact != SESSION or item.kind != "ratio"]
    return f"{verdict}, unless this explains it: {', '.join(facts)}" if facts else None


def with_decisions(report: CheckReport, decisions: Decisions, evidence: Evidence) -> CheckReport:
    """Add decided items, values and sentences to a report."""
    found = {point: evidence.values_of(time_of(point)) for point in evidence.shared_points}
    values = {point: pair for point, pair in found.items() if pair}
    outcomes = {
        item: _outcome(item, decision.verdict, decisions, in_turn=evidence.in_turn)
        for item, decision in decisions.items()
    }
    items = tuple(
        _decided_item(item, decision, evidence.values_of(item), outcomes[item])
        for item, decision in decisions.items()
    )
    sentences = tuple(_describe_moves(decisions, evidence))
    return replace(report, items=items, values=values, sentences=sentences)


def is_exit_code_fixed(decided: Decisions, undecided: Iterable[ComparedItem], *, strict: bool) -> bool:
    """Return whether the exit code is the same whatever is decided on the rest, where sides were measured in turn."""
    for item, decision in decided.items():
        is_final = item.kind != "ratio" or time_of(item.points[0]) in decided
        if is_final and _outcome(item, decision.verdict, decided, in_turn=True) == "failure":
            return True
    if any(_outcome(item, "regressed", decided, in_turn=True) == "failure" for item in undecided):
        return False
    return not strict or any(decision.verdict == "inconclusive" for decision in decided.values())


def _outcome(item: ComparedItem, verdict: Verdict, decisions: Decisions, *, in_turn: bool) -> Outcome:
    """Return the outcome of an item; a ratio that is worse because its reference is better passes."""
    if verdict == "inconclusive":
        return "skipped"
    if verdict != "regressed":
        return "passed"
    mine = decisions.get(time_of(item.points[0]))
    if item.kind != "ratio" or mine is None or mine.change is None:
        return "failure"
    may_have_shifted = not in_turn and is_timed(item.workload)
    return "failure" if may_have_shifted or mine.change.estimate > mine.margin else "passed"


def _decided_item(
    item: ComparedItem, decision: Decision, values: Pair | None, outcome: Outcome
) -> DecidedItem:
    interval = decision.change.interval() if decision.change else None
    first, second = _show_values(item, values)
    detectable = decision.detectable
    notes = [decision.note] if decision.note else []
    if detectable is not None and detectable < 10:
        notes.append(f"{format_percent(detectable)} or more would have been found")
    data = {
        "item": str(item),
        "kind": item.kind,
        "subject": item.subject,
        "workload": item.workload,
        "batch_size": item.points[0].batch_size,
        "context_len": [point.context_len for point in item.points],
        "verdict": decision.verdict,
        "ratio": _finite(interval.value) if interval else None,
        "low": _finite(interval.low) if interval else None,
        "high": _finite(interval.high) if interval else None,
        "num_rounds": interval.num_rounds if interval else 0,
        "detectable": _finite(detectable),
        "note": decision.note,
    }
    return DecidedItem(
        name=str(item),
        kind=item.kind,
        verdict=decision.verdict,
        outcome=outcome,
        first=first,
        second=second,
        note="; ".join(notes),
        change=interval,
        margin=math.exp(decision.margin),
        workload=item.workload,
        data=data,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and value < math.inf else None


def _show_values(item: ComparedItem, values: Pair | None) -> tuple[str, str]:
    """Return the values of an item on both sides; a curve has no single value."""
    if item.kind == "curve":
        return "", ""
    if values is None:
        return "–", "–"
    first, second = (
        f"{value:.3f}" if item.kind == "ratio" else format_value(item.points[0], value) for value in values
    )
    return first, second


def format_value(point: MeasurementPoint, value: float) -> str:
    """Return a value of a point with its unit."""
    return format_seconds(value) if is_timed(point.workload) else format_bytes(value)


_WORDS = {("regressed", True): "slower", ("regressed", False): "larger"}
_WORDS |= {("improved", True): "faster", ("improved", False): "smaller"}


def _describe_moves(decisions: Decisions, evidence: Evidence) -> list[str]:
    """Return a sentence per curve that moved: 'decode of retnet slower at 8K and above: 1.120 [1.090, 1.150]'."""
    sentences = []
    for curve in curves_of(item.points[0] for item in decisions if item.kind == "time"):
        verdicts = {point: decisions[time_of(point)].verdict for point in curve}
        whole = decisions.get(curve_of(curve))
        for verdict in ("regressed", "improved"):
            moved = [point for point in curve if verdicts[point] == verdict]
            where = describe_lengths([one.context_len for one in moved], [one.context_len for one in curve])
            if not moved and whole is not None and whole.verdict == verdict:
                moved, where = curve, "over all lengths together"
            if moved:
                point, item = moved[0], curve_of(moved) if len(moved) > 1 else time_of(moved[0])
                decided = decisions.get(item)  # on its own rounds, which the table shows
                change = (decided.change if decided else None) or evidence.change_of(item)
                batch = f", batch {point.batch_size}" if point.batch_size > 1 else ""
                word = _WORDS[verdict, is_timed(point.workload)]
                ratio = f": {describe_ratio(change.interval())}" if change else ""
                place = "" if point.workload == WALL_TIME else f" {where}"
                sentences.append(f"{point.workload} of {point.model}{batch} {word}{place}{ratio}")
    return sentences


def describe_lengths(moved: list[int], measured: list[int]) -> str:
    """Return where a curve moved: at every length, from a length on, up to a length, or at some lengths."""
    shown = [format_tokens(length) for length in moved]
    if moved and moved == measured:
        return f"at {shown[0]}" if len(moved) == 1 else f"at every length from {shown[0]} to {shown[-1]}"
    if len(moved) > 1 and moved == measured[-len(moved) :]:
        return f"at {shown[0]} and above"
    if len(moved) > 1 and moved == measured[: len(moved)]:
        return f"at {shown[-1]} and below"
    return f"at {', '.join(shown)}"
