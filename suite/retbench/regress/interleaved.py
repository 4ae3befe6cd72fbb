"""The interleaved check: measure base and head in turn until every item is decided, then report."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from retbench.architectures.registry import is_baseline
from retbench.errors import ConfigError, UnsupportedError
from retbench.measure import nvml
from retbench.measure.devices import device_uuid
from retbench.measure.machine import usable_cores
from retbench.planning.plan import Plan
from retbench.records.store import new_run_id
from retbench.regress.decide import is_exit_code_fixed, with_decisions
from retbench.regress.evidence import PairedEvidence
from retbench.regress.items import (
    ComparedItem,
    MeasurementPoint,
    Times,
    is_timed,
    make_items,
    make_test,
    paired_changes,
)
from retbench.regress.report import CheckReport, MeasuredRound, MissingPoint
from retbench.regress.revisions import Notify, Revision, StopRequest, checkout_root, commit, working_tree
from retbench.regress.session import DifferentWork, InterleavedSession, SessionLimits
from retbench.running.locks import Interrupted, catch_signals, timing_lock
from retbench.running.process import wait_or_stop
from retbench.stats.sequential import (
    MIN_ROUNDS,
    Decision,
    DecisionRules,
    SequentialTest,
    plan_analyses,
    plan_confirmations,
)
from retbench.workloads.workload import WORKLOADS

_ENDINGS = {
    "decided": "every point was decided",
    "unconfirmed": "what was flagged was not found when measured again, and everything else was decided",
    "settled": "no further round can change the exit code (--all-points goes on)",
    "rounds": "the limit of rounds was reached",
    "budget": "the time was over",
    "failed": "what was undecided could no longer be measured on both sides",
    "interrupted": "the user interrupted it, so that nothing was decided",
    "nothing": "no point could be measured on both sides",
}


class RoundSource(Protocol):
    """A source of rounds: two sides measured in turn, or recorded rounds."""

    def measure(self, points: frozenset[MeasurementPoint], /) -> Times:
        """Measure one more round of these points; failed points are left out, and are not asked for again."""

    def has_budget(self) -> bool:
        """Return whether another round may begin; flagged items are measured again in any case."""


StopRule = Callable[[Mapping[ComparedItem, Decision], Collection[ComparedItem]], bool]
"""Returns whether the decided items fix the result, whatever is decided on the items that are still open."""


def sample(
    points: Sequence[MeasurementPoint],
    reference: str | None,
    source: RoundSource,
    rules: DecisionRules,
    max_rounds: int,
    stop_rule: StopRule = lambda *_: False,
) -> "SampledRounds":
    """Measure rounds until everything is decided, the stop rule holds, or the budget ends.

    The items are those of the points in the first round, whatever their times. A point that cannot be measured would
    never be decided, and would keep its curve undecided. Repeats do not count towards `max_rounds`.

    If the user requests a stop after the first round, the rounds so far are returned; Interrupted is raised before.
    """
    analyses = plan_analyses(max_rounds)
    first = source.measure(frozenset(points))
    seconds = {point: times[0] for point, times in first.items()}
    items = make_items(seconds, reference)
    test = make_test(items, seconds, rules, analyses)
    sampled = SampledRounds(source, items, test, stop_rule, analyses[0].rounds, max_rounds, [first])
    if items:
        try:
            sampled.ending = sampled.measure_rounds()
            sampled.confirm()
            is_open = any(one.verdict == "inconclusive" for one in sampled.decisions.values())
            if sampled.ending == "decided" and is_open:
                sampled.ending = "unconfirmed"
        except Interrupted:
            sampled.ending = "interrupted"
    return sampled


@dataclass
class SampledRounds:
    """Rounds that are measured until every item is decided.

    Attributes:
        min_repeats: Least rounds that measure a flagged item anew.
        max_rounds: The limit of rounds, without those.
        rounds: All rounds in order, without `repeats`: those that measured flagged items anew.
        confirmed: Flagged items that repeats have confirmed.
        failed: Points that cannot be measured any more.
        ending: Why no further round was measured: a key of `_ENDINGS`.
    """

    source: RoundSource
    items: list[ComparedItem]
    test: SequentialTest[ComparedItem]
    stop_rule: StopRule
    min_repeats: int
    max_rounds: int
    rounds: list[Times]
    repeats: list[Times] = field(default_factory=list)
    confirmed: set[ComparedItem] = field(default_factory=set)
    failed: set[MeasurementPoint] = field(default_factory=set)
    ending: str = "nothing"

    @property
    def decisions(self) -> dict[ComparedItem, Decision]:
        """The decision on every item."""
        return self.test.decisions(paired_changes(self.items, self.rounds))

    def measure_rounds(self) -> str:
        """Measure up to each interim analysis; return a key of `_ENDINGS`."""
        while self._open and (analysis := self.test.next_analysis):
            if self._may_stop():
                self.confirm()  # flags count only once they are confirmed
                if self._may_stop():
                    return "settled"
            points = _points_of(self._open)
            while self._open and len(self.rounds) < analysis.rounds:
                if not self.source.has_budget():
                    # The end does not depend on the data, so the shares of all later analyses are spent now.
                    if len(self.rounds) >= MIN_ROUNDS:
                        self.test.analyse_last(paired_changes(self.items, self.rounds))
                    return self._ending("budget")
                self.rounds.append(self._measure(points))
            self.test.analyse(paired_changes(self.items, self.rounds))
        return self._ending("rounds")

    def _ending(self, limit: str) -> str:
        """Return why no further round is measured: a limit, if further rounds may decide an item."""
        if self._open:
            return limit
        return "failed" if self.failed else "decided"

    def confirm(self) -> None:
        """Measure flagged items in as many new rounds as flagging took, or more, and keep those found again."""
        flagged = left = frozenset(self.test.flagged.keys() - self.confirmed)
        count = max((self.min_repeats, *map(self.test.rounds_of, flagged)))
        repeats: list[Times] = []
        *_, last = planned = plan_confirmations(count, self.max_rounds)
        for num_rounds in planned:
            points = _points_of(left)
            while points - self.failed and len(repeats) < num_rounds:
                repeats.append(self._measure(points))
                self.repeats.append(repeats[-1])
            left = self.test.confirm(paired_changes(left, repeats), left, is_last=num_rounds == last)
        self.confirmed |= flagged & self.test.flagged.keys()

    @property
    def _open(self) -> set[ComparedItem]:
        """Items that further rounds may decide."""
        return {item for item in self.test.undecided if self.failed.isdisjoint(item.points)}

    def _may_stop(self) -> bool:
        """Return whether the stop rule holds."""
        decided = {
            item: decision
            for item, decision in self.test.decisions({}).items()
            if item not in self.test.undecided and self.failed.isdisjoint(item.points)
        }
        return self.stop_rule(decided, self._open)

    def _measure(self, points: frozenset[MeasurementPoint]) -> Times:
        asked = points - self.failed
        times = self.source.measure(asked)
        self.failed |= asked - times.keys()
        return times


def _points_of(items: Iterable[ComparedItem]) -> frozenset[MeasurementPoint]:
    return frozenset(point for item in items for point in item.points)


@dataclass(frozen=True)
class InterleavedCheck:
    """A check of two revisions in one measurement session, whose records are stored below a folder.

    It ends when no further round can change the exit code, that of `strict` or the other, unless `all_points`.
    """

    plan: Plan
    folder: Path
    notify: Notify
    limits: SessionLimits
    rules: DecisionRules
    strict: bool = False
    all_points: bool = False

    def against(self, ref: str, *, always: bool = False) -> CheckReport:
        """Compare the working tree with one of its commits, `always` or only if their code differs.

        Raises:
            ConfigError: no such commit, or no workload of the sweep is timed.
            RetbenchError: as in `revisions`, `measure` and `session`.
            Interrupted: the user requested a stop before the end of the first round.
        """
        timed = replace(self, plan=timed_plan(self.plan, self.limits.blocks))
        root = checkout_root()
        stop = StopRequest()
        with catch_signals(stop.make):
            head = working_tree(root)
            with commit(root, ref, self.notify, stop) as base:
                if (base.code, base.python) == (head.code, head.python) and not always:
                    note = "there is nothing to time; --always times it"
                    report = _empty_report((base, head))
                    return replace(report, same_code=True, method="nothing was timed", notes=(note,))
                return timed.measure((base, head), stop)

    def measure(self, revisions: tuple[Revision, Revision], stop: StopRequest | None = None) -> CheckReport:
        """Measure rounds of base and head until every point is decided or the exit code is fixed, and report.

        Raises:
            UnsupportedError: the GPU lets only one process use it, and each side has one.
        """
        device = self.plan.settings.device
        if device != "cpu" and nvml.is_exclusive(device_uuid(device)):
            raise UnsupportedError(
                f"{device} is in the compute mode Exclusive Process, and the two commits are measured by one process "
                "each. Allow several, as root: nvidia-smi --compute-mode=DEFAULT. Or measure both with `retbench run`, "
                "then use `retbench compare`."
            )
        folder = self.folder / new_run_id()
        session = InterleavedSession(self.plan, revisions, folder, self.limits, self.notify)
        models = self.plan.models
        reference = next((one.model_name for one in models if is_baseline(one.model.architecture)), None)
        report = _empty_report(revisions)

        def may_stop(decided: Mapping[ComparedItem, Decision], still_open: Collection[ComparedItem]) -> bool:
            if self.all_points:
                return False
            return session.is_broken or is_exit_code_fixed(decided, still_open, strict=self.strict)

        with catch_signals(session.interrupt):
            if stop is not None:
                stop.check()  # signals before this point went to the request
            settings = self.plan.settings
            wait = wait_or_stop(session.sides[0].inbox, lambda holder: self.notify(f"waiting for {holder}"))
            with timing_lock(self.plan.command, settings.device, wait=wait, threads=settings.threads):
                try:
                    session.prepare()
                    report = replace(report, notes=session.failed_checks())
                    if session.is_broken and not self.all_points:
                        method = f"nothing was timed; {_ENDINGS['settled']}"
                        return replace(report, missing=tuple(session.missing()), method=method)
                    rounds = self.limits.max_rounds
                    sampled = sample(session.points, reference, session, self.rules, rounds, may_stop)
                except DifferentWork as outcome:
                    missing = tuple(session.missing())
                    return replace(report, comparability_keys=outcome.differences, missing=missing)
                finally:
                    session.remove_states()
        self.notify(f"records: {folder}")
        return with_rounds(report, sampled, session.missing())


def timed_plan(plan: Plan, num_blocks: int) -> Plan:
    """Return the timed cells of a plan, with the settings of one sample block.

    Steps and warm-up of the profile are divided among the sample blocks of a round. Sides that alternate every few
    steps meet the same disturbances, and the median over blocks ignores those that only one side met.

    Unless the profile sets a number of threads, one core stays free for other processes. With another busy process,
    times on all cores scatter several times as much as times on one core fewer.
    """
    timed = tuple(cell for cell in plan.cells if is_timed(cell.workload))
    if not timed:
        found = ", ".join(sorted({cell.workload for cell in plan.cells}))
        raise ConfigError(
            f"experiment '{plan.experiment.name}' measures {found}, and an interleaved check compares times. Give an "
            f"experiment that measures {', '.join(sorted(filter(is_timed, WORKLOADS)))}, such as latency."
        )
    update = {
        "threads": plan.profile.threads or max(1, usable_cores() - 1),
        "warmup_s": plan.settings.warmup_s / num_blocks,
        "min_steps": math.ceil(plan.settings.min_steps / num_blocks),
    }
    settings = plan.settings.model_copy(update=update)
    return replace(plan, cells=tuple(cell.model_copy(update={"settings": settings}) for cell in timed))


def _empty_report(revisions: tuple[Revision, Revision]) -> CheckReport:
    base, head = revisions
    return CheckReport(
        first=f"{base.name}, {base.code}",
        second=f"{head.name}, {head.code}",
        method="base and head in turn, cell by cell, in one measurement session",
    )


def with_rounds(report: CheckReport, sampled: SampledRounds, missing: Sequence[MissingPoint]) -> CheckReport:
    """Add the decisions on rounds that have ended, and the points that failed, to a report."""
    # Values and changes are those of the rounds that were decided on. What repeats measured is listed with them.
    base, head = (
        [{point: pair[side] for point, pair in times.items()} for times in sampled.rounds] for side in (0, 1)
    )
    decisions = {
        item: decision
        for item, decision in sampled.decisions.items()
        if sampled.failed.isdisjoint(item.points)
    }
    if is_interrupted := sampled.ending == "interrupted":
        decisions = {
            item: replace(decision, verdict="inconclusive", detectable=None, note="")
            for item, decision in decisions.items()
        }
    notes = report.notes
    if sampled.ending == "budget" and len(sampled.rounds) < MIN_ROUNDS:
        decisions = {}
        notes += (f"a verdict needs {MIN_ROUNDS} rounds, and the time is too short: give a longer budget",)
    repeated = f", {len(sampled.repeats)} more of flagged items" if sampled.repeats else ""
    num_rounds = sum(map(bool, sampled.rounds))  # the round in which the only point failed has no times
    method = f"{report.method}: {num_rounds} rounds{repeated}; {_ENDINGS[sampled.ending]}"
    report = replace(
        report,
        method=method,
        rounds=tuple(
            MeasuredRound(number, is_repeat, times)
            for is_repeat, rounds in ((False, sampled.rounds), (True, sampled.repeats))
            for number, times in enumerate(rounds, start=1)
        ),
        missing=tuple(missing),
        notes=notes,
        is_interrupted=is_interrupted,
    )
    return with_decisions(report, decisions, PairedEvidence((base, head), sampled.rounds))
