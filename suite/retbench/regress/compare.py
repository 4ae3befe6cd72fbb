"""Comparison of existing records: two record sets, or one run with a baseline."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from retbench.errors import ConfigError, NotComparableError, RecordError, RegressionError
from retbench.files import check_writable
from retbench.records.dates import started
from retbench.regress import comparability
from retbench.regress.baseline import (
    MAX_RUNS,
    Baseline,
    StoredRun,
    baseline_lock,
    baseline_path,
    identity,
    make_baseline,
    make_run,
    read_baseline,
    write_hashed,
)
from retbench.regress.comparability import FactDifference
from retbench.regress.decide import conclude
from retbench.regress.evidence import (
    BaselineEvidence,
    Evidence,
    PairedEvidence,
    UnpairedEvidence,
    describe_rounds,
)
from retbench.regress.items import MeasurementPoint, Times, time_of
from retbench.regress.record_sets import PointAttempts, RecordSet, are_interleaved, point_of
from retbench.regress.render import render
from retbench.regress.report import SIDES, CheckReport, Gap, MissingPoint
from retbench.stats.sequential import WITHOUT_REPEAT, DecisionRules
from retbench.units import format_items

FIRST = "first runs"
"""The reason of a window that no change began."""

_PAIRED = "paired rounds: each round of both sides was measured before the next of either"
_UNPAIRED = "two measurement sessions: the rounds of the sides are independent"


def compare_record_sets(
    first: RecordSet,
    second: RecordSet,
    rules: DecisionRules = WITHOUT_REPEAT,
    *,
    accept_confounders: bool = False,
) -> CheckReport:
    """Compare a second record set, which is judged, with a first one of the same machine.

    The report has no items where a comparability key differs. `accept_confounders` judges what has moved although
    confounders differ. RecordError means that the sides have no point in common.
    """
    tried = first.attempts(), second.attempts()
    if not tried[0].keys() & tried[1].keys():
        raise RecordError(
            f"'{first.name}' and '{second.name}' have no point in common: the first has {_some(first)}, the second "
            f"{_some(second)}. Give records of the same experiment and profile."
        )
    known = {(one.run_id, one.cell_id, one.round): one for one in first.records}
    if any(known.get((one.run_id, one.cell_id, one.round)) == one for one in second.records):
        raise RecordError(
            f"'{first.name}' and '{second.name}' have the same records, so that nothing can differ. Give two sets that "
            "were measured apart."
        )
    interleaved = are_interleaved(first, second)
    differences = comparability.key_differences(first.records, second.records)
    report = CheckReport(
        first=f"{first.name} ({first.revisions})",
        second=f"{second.name} ({second.revisions})",
        method=_PAIRED if interleaved else _UNPAIRED,
        comparability_keys=tuple(differences),
        confounders=tuple(comparability.confounder_differences(first, second, interleaved=interleaved)),
        missing=tuple(_find_missing(*tried)),
        notes=(*comparability.trial_notes(differences), *first.notes, *second.notes, *first.ratio_notes),
    )
    if report.comparability_keys:
        return report
    evidence = _evidence_of(first, second, interleaved=interleaved)
    return conclude(report, evidence, first.reference, rules, accept_confounders=accept_confounders)


def _evidence_of(first: RecordSet, second: RecordSet, *, interleaved: bool) -> Evidence:
    """Return the rounds of two record sets, in pairs if the sets are interleaved."""
    mine, theirs = first.values(), second.values()
    sides = list(mine.values()), list(theirs.values())
    if not interleaved:
        return UnpairedEvidence(sides)
    pairs: list[Times] = []
    for number, one in mine.items():
        other = theirs.get(number, {})
        pairs.append({point: (one[point], other[point]) for point in one.keys() & other.keys()})
    return PairedEvidence(sides, pairs)


def compare_with_baseline(
    name: str,
    baseline: Baseline,
    run: RecordSet,
    rules: DecisionRules = WITHOUT_REPEAT,
    *,
    accept_confounders: bool = False,
) -> CheckReport:
    """Compare one run with a baseline; what differs between sessions is in the spread of the baseline's runs.

    As `compare_record_sets`, where confounders count that differ from those of every accepted run. ConfigError means
    that the run is one of those.
    """
    keys = baseline.keys_by_point()
    tried = run.attempts()
    if not keys.keys() & tried.keys():
        raise RecordError(
            f"'{name}' is of {baseline.experiment}, profile {baseline.profile}, and '{run.name}' has no point of it. "
            "Give records of the same experiment and profile."
        )
    if identity(run) in ((one.run_id, one.started_at) for one in baseline.runs):
        raise ConfigError(f"'{run.name}': run {identity(run)[0]} is in {name} already. Give another run.")
    differences = _baseline_differences(baseline, run)
    count = format_items(len(baseline.runs), "run")
    # A baseline keeps no failures: every accepted run may have had those that the machine has each time.
    accepted = {point: one for point, one in tried.items() if not one.has_value and one.is_expected}
    accepted |= dict.fromkeys(keys, PointAttempts(1, {}))
    report = CheckReport(
        first=f"{name}: {count} ({baseline.runs[-1].code_revision})",
        second=f"{run.name} ({run.revisions})",
        method=f"one run against {count.replace(' ', ' accepted ')}, with the prediction interval of a run",
        comparability_keys=tuple(differences),
        confounders=tuple(_baseline_confounders(baseline, run)),
        missing=tuple(_find_missing(accepted, tried)),
        notes=(*comparability.trial_notes(differences), *run.notes, *run.ratio_notes),
    )
    if report.comparability_keys:
        return report
    evidence = _evidence_of_run(baseline, run)
    return conclude(report, evidence, run.reference, rules, accept_confounders=accept_confounders)


def _evidence_of_run(baseline: Baseline, run: RecordSet) -> BaselineEvidence:
    return BaselineEvidence.of([one.rounds() for one in baseline.runs], list(run.values().values()))


def _baseline_differences(baseline: Baseline, run: RecordSet) -> list[FactDifference]:
    """Return the comparability keys in which a run differs from a baseline at the points of both, each once."""
    keys = baseline.keys_by_point()
    found = {
        difference
        for record in run.records
        if record.status == "ok" and (facts := keys.get(point_of(record))) is not None
        for difference in comparability.compare_facts(facts, comparability.comparability_keys(record))
    }
    return sorted(found, key=str)


def _baseline_confounders(baseline: Baseline, run: RecordSet) -> list[FactDifference]:
    """Return the confounders of a run that no accepted run has."""
    mine, accepted = comparability.confounders(run.records), [one.confounders for one in baseline.runs]
    latest = comparability.compare_facts(accepted[-1], mine)
    found = [one for one in latest if all(facts.get(one.fact) != mine.get(one.fact) for facts in accepted)]
    clock = comparability.sm_clock_hz(run.records)
    clocks = [comparability.compare_clocks(one.sm_clock_hz, clock) for one in baseline.runs]
    return found + (clocks[-1] if all(clocks) else [])


def _find_missing(
    first: Mapping[MeasurementPoint, PointAttempts], second: Mapping[MeasurementPoint, PointAttempts]
) -> Iterable[MissingPoint]:
    """Return the points that a side never tried, or where it failed in some round."""
    for point in sorted({*first, *second}):
        one, other = first.get(point), second.get(point)
        if one is None or other is None:
            yield MissingPoint(point, "first" if one is None else "second", "not measured", "absent")
        elif gap := _find_gap(one, other):
            yield MissingPoint(point, SIDES[gap], str(one if gap == "fixed" else other), gap)


def _find_gap(first: PointAttempts, second: PointAttempts) -> Gap | None:
    """Return which side failed where the other did not; None where neither failed."""
    if first.has_value != second.has_value:
        return "broken" if first.has_value else "fixed"
    if first.has_value and second.failures.keys() - first.failures.keys():
        return "broken"
    if first.has_value and first.failures.keys() - second.failures.keys():
        return "fixed"
    return "both" if first.failures else None


def spread_between(runs: Sequence[StoredRun]) -> list[tuple[MeasurementPoint, float, float | None]]:
    """Return every point with its geometric mean and the log standard deviation of the runs, None with one run."""
    found = []
    for point in sorted({stored.point for run in runs for stored in run.points}):
        means = [fmean(logs) for run in runs if (logs := time_of(point).log_values(run.rounds()))]
        found.append((point, math.exp(fmean(means)), stdev(means) if len(means) > 1 else None))
    return found


def save_runs(sides: Sequence[RecordSet], folder: Path) -> tuple[Path, int]:
    """Add runs to the baseline of their machine and sweep, all or none; return its path and number of runs.

    Raises:
        RecordError: a run has no values, or the baseline cannot be read.
        ConfigError: a run is in the window already, or the folder is not writable.
        NotComparableError: a run measured something else or in other numbers of rounds, failed somewhere, or was
            interrupted.
        RegressionError: a run has moved against the window, in either direction.
    """
    for side in sides:
        _check_complete(side)
    path = baseline_path(folder, make_baseline(sides[0], FIRST))
    check_writable(path.parent, "--folder")
    with baseline_lock(path):
        baseline = read_baseline(path) if path.exists() else None
        for side in sides:
            baseline = _with_run(path, baseline, side) if baseline else make_baseline(side, FIRST)
        assert baseline is not None
        write_hashed(path, baseline.model_dump(mode="json"))
    return path, len(baseline.runs)


def _check_complete(side: RecordSet) -> None:
    """Raise NotComparableError if a cell failed in some round or lacks one, except for an out-of-memory in all."""
    check_whole(side)
    failed = [f"{point}: {one}" for point, one in sorted(side.attempts().items()) if not one.is_expected]
    if failed:
        raise NotComparableError(
            f"'{side.name}' holds cells that failed:\n  " + "\n  ".join(failed) + "\n"
            "A run of a baseline has no failures. Measure again, and give the whole run."
        )


def check_whole(side: RecordSet) -> None:
    """Raise NotComparableError if points lack rounds, as after an interruption.

    Every model that a workload measures has the same points, and each has the rounds that any of them has or that the
    run, as it was last begun, was to measure. Records of older schema versions do not state the latter.
    """
    tried = side.attempts()
    lines: list[str] = []
    for sweep in sorted({point.curve[:2] for point in tried}):  # of one experiment and workload
        own = {point: one.num_rounds for point, one in tried.items() if point.curve[:2] == sweep}
        records = [record for record in side.records if point_of(record).curve[:2] == sweep]
        planned = max(records, key=started).num_rounds or 0
        models, needed = {point.model for point in own}, max(planned, *own.values())
        found = {replace(point, model=model): 0 for point in own for model in models} | own
        lines += [
            f"{point}: {count} of {format_items(needed, 'round')}"
            for point, count in sorted(found.items())
            if count < needed
        ]
    if lines:
        raise NotComparableError(
            f"'{side.name}' lacks rounds, as an interrupted run does:\n  " + "\n  ".join(lines) + "\n"
            "Continue the run with its command, then give all of its records."
        )


def _with_run(path: Path, baseline: Baseline, side: RecordSet) -> Baseline:
    """Return the window with one more run, which must agree with it."""
    # Confounders may explain why a run has moved, but then it does not predict the next run either.
    report = compare_with_baseline(str(path), baseline, side, accept_confounders=True)
    gaps = [one for one in report.missing if one.kind != "both"]
    lines = [str(one) for one in (*report.comparability_keys, *gaps)]
    evidence = _evidence_of_run(baseline, side)
    for point in report.values:
        found, needed = evidence.count_rounds(time_of(point))
        if found != needed:
            lines.append(f"{point}: {describe_rounds(found, needed)}")
    if lines:
        raise NotComparableError(
            f"'{side.name}' did not measure what {path} holds:\n  " + "\n  ".join(lines) + "\n"
            "Measure under the same conditions, or begin anew with `retbench baseline accept`."
        )
    if any(item.verdict in {"regressed", "improved"} for item in report.items):
        raise RegressionError(
            f"'{side.name}' has moved against {path}:\n{render(report, 'text', strict=False)}"
            "After an intended change, `retbench baseline accept` begins the window anew."
        )
    return baseline.model_copy(update={"runs": (*baseline.runs, make_run(side))[-MAX_RUNS:]})


def _some(side: RecordSet) -> str:
    """Return one of the points of a side, and how many others there are."""
    points = sorted(side.attempts())
    return f"{points[0]} and {len(points) - 1} others" if len(points) > 1 else str(points[0])
