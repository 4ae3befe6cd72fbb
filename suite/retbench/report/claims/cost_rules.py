"""Verdict of each kind of rule on costs, on one set of records.

Intervals decide. A time takes two rounds or more; bytes are counted, so that one value decides. An interval that is too
wide gives no verdict: noise neither confirms a claim nor refutes it. `partly` is an interval that is all of it an
advantage, but smaller than printed. Other conditions than the paper's are judged at the nearest smaller point that was
measured.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from retbench.papers.claims import (
    Claim,
    GateRule,
    GrowsRule,
    LevelRule,
    RatioRule,
    ShareRule,
    Verdict,
)
from retbench.records.dates import started
from retbench.records.record import Record
from retbench.report.claims.judged import ClaimFinding, decided
from retbench.report.comparisons import LEVEL_MARGIN, Rounds, compare_rounds, line_through
from retbench.report.points import CostPoint, group
from retbench.report.provenance import checks_of, share_of_limit
from retbench.report.results import session_of
from retbench.report.wording import describe_status, format_factor, with_interval
from retbench.stats.intervals import Interval, geometric_interval, ratio_interval, slope_equivalence
from retbench.units import format_percent, format_tokens
from retbench.workloads.workload import WORKLOADS

TOLERANCE = 0.1
"""Share of the printed advantage that may be lacking: 7.66 still reproduces 8.4."""

_SET_ROUNDS = re.compile(r" --set '?rounds *= *\d+'?")

Cells = Mapping[CostPoint, Sequence[Record]]
"""Records of one model and workload by point, whatever their status."""


class Setup(NamedTuple):
    """Cost records of one model run one way; `reference` is empty where a claim is about one model."""

    challenger: tuple[Record, ...]
    reference: tuple[Record, ...] = ()

    @property
    def records(self) -> tuple[Record, ...]:
        """Records of both models."""
        return (*self.challenger, *self.reference)

    @property
    def latest(self) -> Record:
        """Record that was started last."""
        return max(self.records, key=started)


def judge_cost(claim: Claim, setup: Setup, *, at_scale: bool) -> ClaimFinding | None:
    """Judge a claim with a rule of cost; None where the setup has no value that bears on it.

    Only the paper's own points count where the setup is `at_scale`: it has the paper's conditions.
    """
    match claim.rule:
        case RatioRule() as rule:
            return _judge_ratio(claim, rule, setup, at_scale)
        case LevelRule() as rule:
            series = _series(rule, setup, 2, at_scale)
            return series and _judge_level(rule, setup, series)._replace(distance=series.distance)
        case GrowsRule() as rule:
            series = _series(rule, setup, 3, at_scale)  # a line goes through any two points
            return series and _judge_growth(rule, setup, series)._replace(distance=series.distance)
        case ShareRule() as rule:
            return _judge_share(claim, rule, setup, at_scale)
        case GateRule():
            return _judge_equivalence(setup)
    raise TypeError(f"'{claim.name}' is no claim of cost")


def _cells(records: Iterable[Record], workload: str) -> Cells:
    measured = (record for record in records if record.workload == workload)
    return group(measured, lambda record: (record.point.batch_size, record.point.context_len))


def _with(metric: str, cell: Iterable[Record]) -> list[Record]:
    """Return the records that have a metric."""
    return [record for record in cell if record.status == "ok" and metric in record.metrics]


def _values(cell: Iterable[Record], metric: str) -> Rounds:
    """Return a metric by measurement session and round, of the rounds that have it."""
    return {
        (session_of(record), record.round): record.metrics[metric].value for record in _with(metric, cell)
    }


def _counts(cell: Iterable[Record], metric: str) -> Rounds:
    """Return a metric that every session counts alike by round, as if there were one session."""
    return {("", number): value for (_, number), value in _values(cell, metric).items()}


def _shared_rounds(tables: Collection[Rounds]) -> list[tuple[str, int]]:
    return sorted(set.intersection(*(set(values) for values in tables)))


def _of_one_session(tables: Mapping[int, Rounds]) -> dict[int, Rounds]:
    """Return the steps that a session has, of the one with the most steps; of several the latest."""
    sessions = {step: {session for session, _ in values} for step, values in tables.items()}
    every = [session for found in sessions.values() for session in found]
    widest = max(every, key=lambda session: (every.count(session), session), default="")
    return {step: values for step, values in tables.items() if widest in sessions[step]}


def _nearest(points: Collection[CostPoint], wanted: CostPoint, at_scale: bool) -> CostPoint | None:
    """Return `wanted` where it was measured; else, unless `at_scale`, the nearest of no larger context and batch."""
    if wanted in points or at_scale:
        return wanted if wanted in points else None
    below = [point for point in points if point[0] <= wanted[0] and point[1] <= wanted[1]]
    return min(below, key=lambda point: (_distance(point, wanted), -point[1]), default=None)


def _distance(point: CostPoint, wanted: CostPoint) -> tuple[float]:
    """Return how many doublings of batch size and context length lie between two points."""
    return (sum(abs(math.log2(one / other)) for one, other in zip(point, wanted, strict=True)),)


def _failure(sides: Sequence[Cells], point: CostPoint) -> str:
    """Describe why a model has no value at a point; empty where every model has one."""
    for cells in sides:
        statuses = [record.status for record in cells[point]]
        if "ok" not in statuses:
            return f"{cells[point][0].model.name} {_at(point)}: {describe_status(statuses[-1])}"
    return ""


def _is_counted(rule: RatioRule | LevelRule | GrowsRule) -> bool:
    """Return whether the metric of a rule is the same in every round, so that one value decides."""
    return not WORKLOADS[rule.workload].metric(rule.metric).has_interval


class _Series(NamedTuple):
    """A cost along a range: by step, the values in the rounds that all steps share."""

    costs: Mapping[int, Sequence[float]]
    range_words: str
    distance: tuple[float, float]


def _series(rule: LevelRule | GrowsRule, setup: Setup, fewest: int, at_scale: bool) -> _Series | None:
    """Return the cost along a range; None where there are fewer than `fewest` steps, or no shared round.

    At the paper's scale the range has to be complete. Otherwise, the other coordinate is the largest one up to the
    paper's that has enough steps. Times are those of one measurement session, which shifts all of its times.
    """
    axis = ("batch_size", "context_len").index(rule.along)
    first, last = rule.within
    cells = _cells(setup.challenger, rule.workload)
    points = [point for point in cells if first <= point[axis] <= last]
    others = {point[1 - axis] for point in points if point[1 - axis] <= rule.at}
    read = _counts if _is_counted(rule) else _values
    for other in sorted(others & {rule.at} if at_scale else others, reverse=True):
        measured = {
            point[axis]: values
            for point in sorted(points)
            if point[1 - axis] == other
            and (values := {n: value for n, value in read(cells[point], rule.metric).items() if value > 0})
        }
        tables = _of_one_session(measured)
        if len(tables) >= fewest and (not at_scale or {first, last} <= tables.keys()):
            rounds = _shared_rounds(tables.values())
            if not rounds:
                return None
            costs = {step: [values[number] for number in rounds] for step, values in tables.items()}
            steps = list(costs)
            unmeasured = math.log2(steps[0] / first) + math.log2(last / steps[-1])
            distance = unmeasured, math.log2(rule.at / other)
            return _Series(costs, _range_words(rule, steps, other), distance)
    return None


def _at(point: CostPoint) -> str:
    return f"at batch {point[0]}, {format_tokens(point[1])}"


def _range_words(rule: LevelRule | GrowsRule, steps: Sequence[int], other: int) -> str:
    if rule.along == "batch_size":
        return f"from {steps[0]} to {steps[-1]} sequences at {format_tokens(other)}"
    return f"from {format_tokens(steps[0])} to {format_tokens(steps[-1])} at batch {other}"


def _ratio_words(interval: Interval) -> str:
    """Format a ratio with its interval: '8.46× [8.10, 8.83]'."""
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return f"{format_factor(interval.value)}×"
    return with_interval(
        f"{format_factor(interval.value)}×", format_factor(interval.low), format_factor(interval.high)
    )


def _saving_words(advantage: Interval) -> str:
    """Format the share that an advantage saves, with its interval: '63 % [61 %, 65 %] less', or '41 % more'."""
    # An end of an interval over very different rounds is 0 in a double.
    shares = [1 - 1 / each if each > 0 else -math.inf for each in (advantage.value, *_ends(advantage))]
    if shares[0] < 0:
        shares = [-shares[0], -shares[2], -shares[1]]
    value, low, high = map(format_percent, shares)
    sense = "less" if advantage.value >= 1 else "more"
    return f"{value if low == high else with_interval(value, low, high)} {sense}"


def _more_rounds(setup: Setup) -> str:
    """Say that an interval is too wide, with the command that adds as many rounds as there are."""
    num_rounds = 1 + max(record.round for record in setup.records)  # more than those compared if some failed
    # A key is set once: the number of rounds of the run gives way.
    command = f"{_SET_ROUNDS.sub('', setup.latest.command)} --set rounds={2 * num_rounds}"
    return f"the interval is too wide for a verdict, add rounds: `{command}`"


def _judge_ratio(claim: Claim, rule: RatioRule, setup: Setup, at_scale: bool) -> ClaimFinding | None:
    """Compare the advantage at the paper's point, by its interval, with the printed one."""
    sides = [_cells(records, rule.workload) for records in (setup.challenger, setup.reference)]
    shared = sides[0].keys() & sides[1].keys()
    wanted = rule.batch_size, rule.context_len
    point = _nearest(shared, wanted, at_scale)
    if point is None:
        return None
    failure = _failure(sides, point)
    if failure:
        point = _nearest([each for each in shared if not _failure(sides, each)], wanted, at_scale)
    if point is None:
        return ClaimFinding("not_testable", failure)
    mine, theirs = (_values(cells[point], rule.metric) for cells in sides)
    found = compare_rounds(theirs, mine) if rule.better == "lower" else compare_rounds(mine, theirs)
    if found is None:
        return None
    advantage, unpaired = found
    words = f"{(_saving_words if rule.saved else _ratio_words)(advantage)} {_at(point)}"
    words += " (unpaired: measured in different sessions)" if unpaired else ""
    distance = _distance(point, wanted)
    if advantage.low is None and not _is_counted(rule):
        return _one_round(words)._replace(distance=distance)
    verdict, is_open = _ratio_verdict(advantage, 1 / (1 - claim.printed) if rule.saved else claim.printed)
    printed = format_percent(claim.printed) if rule.saved else f"{claim.printed:.3g}×"
    more = _more_rounds(setup) if is_open else ""
    notes = tuple(filter(None, (f"the paper {printed}", failure, more)))
    return ClaimFinding(verdict, words, notes, distance, is_wide=is_open)


def _one_round(words: str) -> ClaimFinding:
    return ClaimFinding("not_testable", f"one round: {words} without an interval")


def _ratio_verdict(advantage: Interval, printed: float) -> tuple[Verdict, bool]:
    """Return the verdict on an advantage, and True where the interval is too wide for one.

    As a tenth of the printed advantage may be lacking, an interval with 1 in it that leaves room for a tenth at most
    shows that there is none.
    """
    low, high = _ends(advantage)
    enough, none = (1 + (printed - 1) * share for share in (1 - TOLERANCE, TOLERANCE))
    if low >= enough:
        return "reproduced", False
    if low > 1:
        return ("partly", False) if high < enough else ("not_testable", True)
    return ("not_reproduced", False) if high <= max(1, none) else ("not_testable", True)


def _ends(ratio: Interval) -> tuple[float, float]:
    """Return the ends of an interval; a value that was counted once has no width."""
    return (ratio.value, ratio.value) if ratio.low is None or ratio.high is None else (ratio.low, ratio.high)


def _judge_level(rule: LevelRule, setup: Setup, series: _Series) -> ClaimFinding:
    """Compare the cost at the last step with that at the first, and look for an outlier between them."""
    costs, range_words, _ = series
    margin = LEVEL_MARGIN if rule.margin is None else rule.margin
    steps, by_round = list(costs), list(zip(*costs.values(), strict=True))
    if _is_counted(rule):
        ratio = max(by_round[0]) / min(by_round[0])
        return decided(ratio <= 1 + margin, f"{ratio:.3f}× {range_words}")
    found = slope_equivalence(steps, by_round, margin)
    words = f"{_ratio_words(found.measured)} {range_words}"
    if found.low is None or found.high is None:
        return _one_round(words)
    words += f", a line rises {found.ratio:.3f}× (90 % CI [{found.low:.3f}, {found.high:.3f}])"
    if found.apart is not None and found.apart[0] != steps[-1]:
        step, ratio_there = found.apart
        place = f"{step} sequences" if rule.along == "batch_size" else format_tokens(step)
        words += f", and {_ratio_words(ratio_there)} at {place}"
    if found.equivalent or found.differs:
        return decided(bool(found.equivalent), words)
    return ClaimFinding("not_testable", words, (_more_rounds(setup),), is_wide=True)


def _judge_growth(rule: GrowsRule, setup: Setup, series: _Series) -> ClaimFinding:
    """Look for a rise at every step, and where the claim says so for a straight line."""
    by_length, range_words, _ = series
    is_counted = _is_counted(rule)
    costs = [values[:1] if is_counted else values for values in by_length.values()]
    whole = ratio_interval(costs[-1], costs[0])
    words = f"{_ratio_words(whole)} {range_words}"
    if whole.low is None and not is_counted:
        return _one_round(words)
    rises = [_ends(ratio_interval(later, earlier)) for earlier, later in pairwise(costs)]
    if any(low <= 1 for low, _ in rises):
        is_flat = any(high <= 1 for _, high in (_ends(whole), *rises))
        verdict: Verdict = "not_reproduced" if is_flat else "not_testable"
        verdict = "partly" if _ends(whole)[0] > 1 else verdict
        is_wide = verdict == "not_testable"
        more = (_more_rounds(setup),) if is_wide else ()
        return ClaimFinding(verdict, f"{words}, not shown to rise at every length", more, is_wide=is_wide)
    if not rule.linear:
        return ClaimFinding("reproduced", words)
    line = line_through(list(by_length), [geometric_interval(values).value for values in costs])
    words = f"{words}, within {format_percent(line.largest_residual)} of a line"
    return ClaimFinding("reproduced" if line.fits else "partly", words)


def _judge_share(claim: Claim, rule: ShareRule, setup: Setup, at_scale: bool) -> ClaimFinding | None:
    """Compare the sum of some bytes over others with the printed share."""
    cells = _cells(setup.challenger, rule.workload)
    wanted = rule.batch_size, rule.context_len
    point = _nearest(cells, wanted, at_scale)
    if point is None:
        return None
    tables = {name: _counts(cells[point], name) for name in (*rule.parts, rule.of)}
    rounds = [number for number in _shared_rounds(tables.values()) if tables[rule.of][number] > 0]
    if not rounds:
        return None
    share = sum(tables[name][rounds[0]] for name in rule.parts) / tables[rule.of][rounds[0]]
    printed = f"the paper {format_percent(claim.printed)}"
    is_reproduced = share <= claim.printed * (1 + TOLERANCE)
    finding = decided(is_reproduced, f"{format_percent(share)} {_at(point)}", printed)
    return finding._replace(distance=_distance(point, wanted))


def _judge_equivalence(setup: Setup) -> ClaimFinding | None:
    """Return whether every equivalence check of the setup passed, with the largest error."""
    worst = max((check for *_, check in checks_of(setup.challenger)), key=share_of_limit, default=None)
    if worst is None:
        return None
    gates = [record.gate for record in setup.challenger if record.gate and record.gate.checks]
    text = f"largest error {worst.error:.2g} ({worst.name}, {worst.length} tokens), limit {worst.limit:.2g}"
    return decided(all(gate.passed for gate in gates), text)


def largest_error(records: Iterable[Record]) -> float:
    """Return the largest error of the equivalence checks of records over its limit; -1 without a check."""
    return max((share_of_limit(check) for *_, check in checks_of(records)), default=-1.0)
