"""One run against a window of accepted ones: what differs from sitting to sitting is in the spread of the window."""

import math
from dataclasses import replace
from statistics import fmean

from retbench.errors import RecordError
from retbench.regress.baseline import Baseline, StoredRun
from retbench.regress.compare import doubt_ratios, find_doubts, find_missing, judge
from retbench.regress.evidence import Evidence, against_history
from retbench.regress.facts import (
    Difference,
    compare_clocks,
    compare_facts,
    hard_facts,
    sm_clock_hz,
    soft_facts,
)
from retbench.regress.items import Item, Place, make_items, time_of
from retbench.regress.rendering_report import Report, describe_moves
from retbench.regress.sides import Attempts, Side, middle, place_of, typical
from retbench.stats.sequential import WITHOUT_REPEAT, Decision, Rules

MIN_RUNS = 8
"""With fewer runs their spread says too little of the next one: nothing is decided."""


def compare_history(
    name: str, baseline: Baseline, side: Side, rules: Rules = WITHOUT_REPEAT, *, accept_soft: bool = False
) -> Report:
    """Compare one run with a baseline.

    Args:
        name: Of the baseline.
        baseline: The window.
        side: The run.
        rules: Margins and error rates.
        accept_soft: Judge what has moved although soft facts differ from those of every run in the window.

    Returns:
        The report; without decisions where a hard fact differs.

    Raises:
        RecordError: they have no place in common.
    """
    known = baseline.hard_facts()
    if not known.keys() & side.places(measured=False):
        raise RecordError(
            f"'{name}' is of {baseline.experiment}, profile {baseline.profile}, and '{side.name}' has no point of it. "
            "Give records of the same experiment and profile."
        )
    soft = tuple(_soft_differences(baseline, side))
    tried = side.attempts()
    # A window keeps no failures, and so every run of it may have had those that a machine has each time.
    window = {place: one for place, one in tried.items() if not one.has_value and one.is_expected}
    window |= dict.fromkeys(known, Attempts(1, {}))
    report = Report(
        first=f"{name}: {len(baseline.runs)} runs ({baseline.runs[-1].code_revision})",
        second=f"{side.name} ({side.revisions})",
        method=f"one run against {len(baseline.runs)} accepted ones: the interval is that of predicting a run",
        decisions={},
        values={},
        hard=tuple(_hard_differences(known, side)),
        soft=soft,
        missing=tuple(find_missing(window, tried)),
        notes=(*side.notes, *side.ratio_notes),
        in_turn=False,
    )
    return report if report.hard else _judged(report, baseline, side, rules, accept_soft=accept_soft)


def _judged(report: Report, baseline: Baseline, side: Side, rules: Rules, *, accept_soft: bool) -> Report:
    """The report with its decisions."""
    windows, mine = [run.rounds() for run in baseline.runs], list(side.values().values())
    places = baseline.hard_facts().keys() & side.places(measured=True)
    items = make_items(places, side.reference)

    def evidence_of(item: Item) -> Evidence | None:
        history = [mean for rounds in windows if (mean := _mean_log(item, rounds)) is not None]
        new = _mean_log(item, mine)
        return against_history(history, new) if history and new is not None else None

    evidence = {item: found for item in items if (found := evidence_of(item))}
    decisions = judge(items, evidence, typical(windows[-1]), rules)
    if not accept_soft:
        decisions = find_doubts(doubt_ratios(decisions), report.soft)
    decisions = {item: _with_enough_runs(decision) for item, decision in decisions.items()}
    earlier = [rounds for window in windows for rounds in window]
    values = {place: (middle(earlier, place), middle(mine, place)) for place in sorted(places)}
    return replace(
        report, decisions=decisions, values=values, sentences=describe_moves(decisions, evidence_of)
    )


def _with_enough_runs(decision: Decision) -> Decision:
    """A decision that rests on enough runs, or none."""
    num_runs = decision.evidence.num_rounds if decision.evidence else 0
    if num_runs >= MIN_RUNS:
        return decision
    note = f"{num_runs} of the {MIN_RUNS} runs that a verdict takes are there"
    return replace(decision, verdict="inconclusive", detectable=None, note=note)


def _mean_log(item: Item, rounds: list[dict[Place, float]]) -> float | None:
    """Mean of an item's logarithm over the rounds of a run; None where no round has it."""
    logs = [log for values in rounds if (log := item.log_value(values)) is not None]
    return fmean(logs) if logs else None


def _hard_differences(known: dict[Place, dict[str, str]], side: Side) -> list[Difference]:
    """Facts that keep a run from being compared with the window, each once."""
    found: dict[Difference, None] = {}
    for record in side.records:
        if record.status == "ok" and (facts := known.get(place_of(record))) is not None:
            found |= dict.fromkeys(compare_facts(facts, hard_facts(record)))
    return sorted(found, key=lambda difference: difference.fact)


def _soft_differences(baseline: Baseline, side: Side) -> list[Difference]:
    """Facts of a run that no run of the window has."""
    mine, windows = soft_facts(side.records), [run.soft for run in baseline.runs]
    latest = compare_facts(windows[-1], mine)
    found = [one for one in latest if all(run.get(one.fact) != mine.get(one.fact) for run in windows)]
    clocks = [compare_clocks(run.sm_clock_hz, sm_clock_hz(side.records)) for run in baseline.runs]
    return found + (clocks[-1] if all(clocks) else [])


def spread(runs: list[StoredRun], place: Place) -> tuple[float, float | None]:
    """Geometric mean of a place over runs, and the standard deviation of the runs' logarithms; None with one run."""
    logs = [mean for run in runs if (mean := _mean_log(time_of(place), run.rounds())) is not None]
    mean = fmean(logs)
    deviation = math.sqrt(sum((log - mean) ** 2 for log in logs) / (len(logs) - 1)) if len(logs) > 1 else None
    return math.exp(mean), deviation
