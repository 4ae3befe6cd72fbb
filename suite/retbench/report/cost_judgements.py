"""Claims of cost judged on intervals over rounds: ratios, level costs, growing ones, shares, and equal forms.

A time takes two rounds or more; a number of bytes is counted, and its one value decides. What an interval is too wide
to tell has no verdict: noise neither confirms a claim nor refutes it. `partly` is an advantage that is shown, and not
shown to be as large as printed. Where a point of the paper was not measured, a setup of another scale is judged at the
nearest one below it, and says so.
"""

from collections.abc import Mapping, Sequence, Set
from itertools import pairwise
from typing import Literal

from retbench.records.record import Record
from retbench.report.claim_types import (
    Claim,
    CostRule,
    Finding,
    GateRule,
    GrowsRule,
    LevelRule,
    RatioRule,
    ShareRule,
    Verdict,
)
from retbench.report.comparisons import line_through
from retbench.report.setups import Setup, failure_at, points_of, values_at
from retbench.report.wording import describe_status
from retbench.stats.intervals import Interval, geometric_interval, ratio_interval, slope_equivalence
from retbench.units import format_percent, format_tokens

TOLERANCE = 0.1
"""Share of the printed advantage that may be lacking: 7.66 of 8.4 is still the claim."""

Point = tuple[int, int]
"""Batch size and context length."""

Shown = Literal["above", "not above", "undecided"]
"""Where a ratio is shown to lie: above 1 or not, or that it is not shown."""


def judge_cost(claim: Claim, rule: CostRule, setup: Setup, *, at_scale: bool) -> Finding | None:
    """What one setup says of a claim; None where it has nothing on it.

    Args:
        claim: The claim.
        rule: Its rule.
        setup: Records of one way of running the models.
        at_scale: Whether the setup has the paper's conditions: then only the paper's own points count.
    """
    match rule:
        case RatioRule():
            return _judge_ratio(claim, rule, setup, at_scale)
        case LevelRule():
            return _judge_level(rule, setup, at_scale)
        case GrowsRule():
            return _judge_growth(rule, setup, at_scale)
        case ShareRule():
            return _judge_share(claim, rule, setup, at_scale)
        case GateRule():
            return _judge_gate(setup)


def _nearest(points: set[Point], wanted: Point, at_scale: bool) -> Point | None:
    """The point wanted, or, away from the paper's scale, the largest batch and context that do not exceed it."""
    if wanted in points or at_scale:
        return wanted if wanted in points else None
    below = [point for point in points if point[0] <= wanted[0] and point[1] <= wanted[1]]
    return max(below, key=lambda point: (point[1], point[0]), default=None)


def _at(point: Point) -> str:
    return f"at batch {point[0]}, {format_tokens(point[1])}"


def _judge_ratio(claim: Claim, rule: RatioRule, setup: Setup, at_scale: bool) -> Finding | None:
    """The advantage at the point, with its interval, beside the printed one."""
    shared = points_of(setup.challenger, rule.workload) & points_of(setup.reference, rule.workload)
    wanted = rule.batch_size, rule.context_len
    point = _nearest(shared, wanted, at_scale)
    if point is None:
        return None
    failure = _failure(setup, rule.workload, point)
    if failure:
        whole = {each for each in shared if not _failure(setup, rule.workload, each)}
        point = None if at_scale else _nearest(whole, wanted, at_scale)
        if point is None:
            return Finding("not_testable", failure)
    mine, theirs = (
        values_at(records, rule.workload, rule.metric, *point)
        for records in (setup.challenger, setup.reference)
    )
    rounds = sorted(mine.keys() & theirs.keys())
    if not rounds:
        return None
    top, bottom = (theirs, mine) if rule.better == "lower" else (mine, theirs)
    advantage = ratio_interval([top[number] for number in rounds], [bottom[number] for number in rounds])
    show = _saving_words if rule.saved else _ratio_words
    if advantage.low is None and not _is_counted(rule.metric):
        return Finding("not_testable", f"one round {_at(point)}: {show(advantage)} without an interval")
    verdict, is_open = _ratio_verdict(advantage, 1 / (1 - claim.printed) if rule.saved else claim.printed)
    printed = format_percent(claim.printed) if rule.saved else f"{claim.printed:.3g}x"
    more = _more_rounds(setup, len(rounds)) if is_open else ""
    beyond = f"; {failure}" if failure else ""
    return Finding(verdict, f"{show(advantage)} {_at(point)}; the paper {printed}{beyond}{more}")


def _failure(setup: Setup, workload: str, point: Point) -> str:
    """Which model has no value at a point, and why; empty where both have one."""
    for records in (setup.challenger, setup.reference):
        failure = failure_at(records, workload, *point)
        if failure is not None:
            return f"{records[0].model.name} {_at(point)}: {describe_status(failure)}"
    return ""


def _is_counted(metric: str) -> bool:
    """Whether a metric is counted, not timed."""
    return metric.endswith(("_bytes", "_batch"))


def _ratio_verdict(advantage: Interval, printed: float) -> tuple[Verdict, bool]:
    """Whether an advantage is shown, and one as large as printed; and whether the interval leaves either open."""
    low, high = _ends(advantage)
    enough = 1 + (printed - 1) * (1 - TOLERANCE)
    if low >= enough:
        return "reproduced", False
    match _side(advantage):
        case "above":
            return "partly", high >= enough
        case "not above":
            return "not_reproduced", False
        case "undecided":
            return "not_testable", True


def _ends(ratio: Interval) -> tuple[float, float]:
    """Of an interval; what was counted once has no width."""
    return (
        ratio.value if ratio.low is None else ratio.low,
        ratio.value if ratio.high is None else ratio.high,
    )


def _side(ratio: Interval) -> Shown:
    """Of a ratio by its interval."""
    low, high = _ends(ratio)
    return "above" if low > 1 else "not above" if high <= 1 else "undecided"


def _more_rounds(setup: Setup, num_rounds: int) -> str:
    """That an interval is too wide, and the command that adds as many rounds as there are."""
    command = f"{setup.latest.command} --set rounds={2 * num_rounds}"
    return f"; the interval is too wide to tell, more rounds: `{command}`"


def _ratio_words(interval: Interval) -> str:
    """A ratio with its interval: '8.46x [8.10, 8.83]'."""
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return f"{interval.value:.3g}x"
    return f"{interval.value:.3g}x [{interval.low:.3g}, {interval.high:.3g}]"


def _saving_words(advantage: Interval) -> str:
    """The share that an advantage saves, with its interval: '63 % [61 %, 65 %]'."""
    value, low, high = (format_percent(1 - 1 / each) for each in (advantage.value, *_ends(advantage)))
    return value if low == high else f"{value} [{low}, {high}]"


def _judge_level(rule: LevelRule, setup: Setup, at_scale: bool) -> Finding | None:
    """The cost at the last point over that at the first, and whether a point between them is apart."""
    other, table = _along(rule, setup.challenger, at_scale)
    if not table:
        return None
    steps = sorted(table)
    rounds = sorted(set.intersection(*(set(values) for values in table.values())))
    if not rounds:
        return None
    words = _range_words(rule, steps, other)
    by_round = [[table[step][number] for step in steps] for number in rounds]
    if _is_counted(rule.metric):
        ratio = max(by_round[0]) / min(by_round[0])
        verdict: Verdict = "reproduced" if ratio <= 1 + rule.margin else "not_reproduced"
        return Finding(verdict, f"{ratio:.3f}x {words}")
    found = slope_equivalence(steps, by_round, rule.margin)
    if found.low is None or found.high is None:
        return Finding("not_testable", f"one round: {found.ratio:.3f}x {words} without an interval")
    words = f"{found.ratio:.3f}x [{found.low:.3f}, {found.high:.3f}] {words}"
    if found.apart is not None and found.apart[0] != steps[-1]:
        words += f", and {_ratio_words(found.apart[1])} at {_step_words(rule, found.apart[0])}"
    if found.equivalent or found.differs:
        return Finding("reproduced" if found.equivalent else "not_reproduced", words)
    return Finding("not_testable", f"{words}{_more_rounds(setup, len(rounds))}")


def _step_words(rule: LevelRule, step: int) -> str:
    """A point of the range: a length or a number of sequences."""
    return f"{step} sequences" if rule.along == "batch_size" else format_tokens(step)


def _range_words(rule: LevelRule | GrowsRule, steps: Sequence[int], other: int) -> str:
    """The range and the other coordinate in words."""
    if isinstance(rule, LevelRule) and rule.along == "batch_size":
        return f"from {steps[0]} to {steps[-1]} sequences at {format_tokens(other)}"
    return f"from {format_tokens(steps[0])} to {format_tokens(steps[-1])} at batch {other}"


def _along(
    rule: LevelRule | GrowsRule, records: Sequence[Record], at_scale: bool
) -> tuple[int, dict[int, dict[int, float]]]:
    """The other coordinate, and values by step of the range, then by round; none where there are too few steps.

    Two make a level; a line goes through any two, and takes three. At the paper's scale the other coordinate is the
    paper's, and the range whole; elsewhere the coordinate is the largest that does not exceed it and has enough steps.
    """
    first, last = rule.within
    at, fewest = (rule.at, 2) if isinstance(rule, LevelRule) else (rule.batch_size, 3)
    index = 0 if isinstance(rule, LevelRule) and rule.along == "batch_size" else 1
    points = [point for point in points_of(records, rule.workload) if first <= point[index] <= last]
    others = {point[1 - index] for point in points if point[1 - index] <= at}
    for other in sorted(others & {at} if at_scale else others, reverse=True):
        table = {}
        for step in (point[index] for point in points if point[1 - index] == other):
            point = (step, other) if index == 0 else (other, step)
            if values := values_at(records, rule.workload, rule.metric, *point):
                table[step] = values
        if len(table) >= fewest and (not at_scale or {first, last} <= table.keys()):
            return other, table
    return at, {}


def _judge_growth(rule: GrowsRule, setup: Setup, at_scale: bool) -> Finding | None:
    """Whether the cost is shown to rise at every step, and lies on a line where the claim says so."""
    batch_size, table = _along(rule, setup.challenger, at_scale)
    if not table:
        return None
    lengths = sorted(table)
    rounds = sorted(set.intersection(*(set(values) for values in table.values())))
    if not rounds:
        return None
    if _is_counted(rule.metric):
        rounds = rounds[:1]
    costs = {length: [table[length][number] for number in rounds] for length in lengths}
    whole = ratio_interval(costs[lengths[-1]], costs[lengths[0]])
    words = f"{_ratio_words(whole)} {_range_words(rule, lengths, batch_size)}"
    if whole.low is None and not _is_counted(rule.metric):
        return Finding("not_testable", f"one round: {words} without an interval")
    steps = {_side(ratio_interval(costs[later], costs[earlier])) for earlier, later in pairwise(lengths)}
    if steps != {"above"}:
        verdict = _uneven_verdict(_side(whole), steps)
        more = _more_rounds(setup, len(rounds)) if verdict == "not_testable" else ""
        return Finding(verdict, f"{words}, not shown to rise at every length{more}")
    if not rule.linear:
        return Finding("reproduced", words)
    line = line_through(lengths, [geometric_interval(costs[length]).value for length in lengths])
    words = f"{words}, within {format_percent(line.largest_residual)} of a line"
    return Finding("reproduced" if line.fits else "partly", words)


def _uneven_verdict(whole: Shown, steps: Set[Shown]) -> Verdict:
    """Of a cost that is not shown to rise at every step: by what it does from the first length to the last."""
    if whole == "above":
        return "partly"
    return "not_reproduced" if "not above" in {whole, *steps} else "not_testable"


def _judge_share(claim: Claim, rule: ShareRule, setup: Setup, at_scale: bool) -> Finding | None:
    """Some bytes over others."""
    point = _nearest(
        points_of(setup.challenger, rule.workload), (rule.batch_size, rule.context_len), at_scale
    )
    if point is None:
        return None
    sums: Mapping[str, dict[int, float]] = {
        name: values_at(setup.challenger, rule.workload, name, *point) for name in (*rule.parts, rule.of)
    }
    rounds = sorted(set.intersection(*(set(values) for values in sums.values())))
    if not rounds:
        return None
    share = sum(sums[name][rounds[0]] for name in rule.parts) / sums[rule.of][rounds[0]]
    verdict: Verdict = "reproduced" if share <= claim.printed * (1 + TOLERANCE) else "not_reproduced"
    return Finding(
        verdict, f"{format_percent(share)} {_at(point)}; the paper {format_percent(claim.printed)}"
    )


def _judge_gate(setup: Setup) -> Finding | None:
    """Whether the forms were equal wherever they were compared."""
    gates = [record.gate for record in setup.challenger if record.gate is not None]
    if not gates:
        return None
    checks = [check for gate in gates for check in gate.checks]
    worst = max(checks, key=lambda check: check.error / check.limit)
    verdict: Verdict = "reproduced" if all(gate.passed for gate in gates) else "not_reproduced"
    return Finding(
        verdict,
        f"largest error {worst.error:.2g} ({worst.name}, {worst.length} tokens), limit {worst.limit:.2g}",
    )
