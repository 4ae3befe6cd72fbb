"""Base and head in turn until every point is decided, and what that came to: `retbench check --against REF`."""

import math
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty

from retbench.errors import ConfigError
from retbench.measure.machine import usable_cores
from retbench.planning.plan import Plan
from retbench.regress.items import paired_evidence
from retbench.regress.programs import Stop
from retbench.regress.rendering_report import Report, describe_moves
from retbench.regress.revisions import Revision, Talk, checkout_root, commit, working_tree
from retbench.regress.sampling import Sampled, sample
from retbench.regress.sides import TIMED, middle
from retbench.regress.sitting import Limits, Sitting, Unlike
from retbench.run.locks import Interrupted, catch_signals, timing_lock
from retbench.run.process import Inbox
from retbench.stats.sequential import MIN_ROUNDS, Rules

_LOCK_POLL_S = 0.5


@dataclass(frozen=True)
class Request:
    """What is checked and for how long.

    Attributes:
        plan: The sweep.
        ref: The commit to compare with.
        rules: Margins and error rates.
        max_rounds: Rounds at most, repeats of what is flagged apart.
        limits: Visits of a round, and the time.
        always: Measure even where the code that measures is the same on both sides.
        folder: Where the records of both sides go.
    """

    plan: Plan
    ref: str
    rules: Rules
    max_rounds: int
    limits: Limits
    always: bool
    folder: Path


def check_against(request: Request, talk: Talk) -> Report:
    """Compare the working tree with a commit of it.

    Returns:
        The report; without decisions where both run the same code, so that there is nothing to measure.

    Raises:
        ConfigError: no such commit, or nothing in the sweep is timed.
        RetbenchError: what `revisions` and `sitting` raise.
        Interrupted: the user ended it.
    """
    plan = timed_plan(request.plan, request.limits.visits)
    root = checkout_root()
    stop = Stop()
    with catch_signals(stop.tell):
        head = working_tree(root)
        with commit(root, request.ref, talk, stop) as base:
            if (base.code, base.python) == (head.code, head.python) and not request.always:
                note = "there is nothing to time; --always times it"
                return replace(
                    _empty_report((base, head)), same_code=True, method="nothing was timed", notes=(note,)
                )
            return measure_in_turn(replace(request, plan=plan), (base, head), talk, stop)


def timed_plan(plan: Plan, num_visits: int) -> Plan:
    """The cells of a plan that are timed, as a visit of a round measures them.

    The steps and the warm-up that the profile asks for are spread over the visits of a round: sides that take turns
    every few steps meet the same disturbances, and the median over many visits does without the few that only one met.

    Where the profile asks for no number of threads there is one fewer than there are cores. The core that is left takes
    what else runs on the machine. Beside one other busy process, the times of an equal share of all cores scatter
    several times as much as those of one core fewer.

    Args:
        plan: The sweep.
        num_visits: Of each cell in a round.

    Raises:
        ConfigError: there are none.
    """
    timed = tuple(cell for cell in plan.cells if cell.workload in TIMED)
    if not timed:
        found = ", ".join(sorted({cell.workload for cell in plan.cells}))
        raise ConfigError(
            f"experiment '{plan.experiment.name}' measures {found}, and what is compared in turn is time. Give one "
            f"that measures {', '.join(sorted(TIMED))}, such as latency."
        )
    threads = plan.profile.threads or max(1, usable_cores() - 1)
    settings = plan.settings.model_copy(
        update={
            "threads": threads,
            "warmup_s": plan.settings.warmup_s / num_visits,
            "min_steps": math.ceil(plan.settings.min_steps / num_visits),
        }
    )
    return replace(plan, cells=tuple(cell.model_copy(update={"settings": settings}) for cell in timed))


def measure_in_turn(
    request: Request, revisions: tuple[Revision, Revision], talk: Talk, stop: Stop | None = None
) -> Report:
    """Rounds of two revisions until every point is decided, and the report on them.

    Args:
        request: What is checked.
        revisions: The base and the head.
        talk: Told of each round.
        stop: Whether the user has ended it already.

    Raises:
        Interrupted: the user ended it.
        RetbenchError: what `sitting` raises.
    """
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    sitting = Sitting(request.plan, revisions, request.folder / run_id, request.limits, talk)
    reference = next(
        (one.model_name for one in request.plan.subjects if one.model.architecture == "transformer"), None
    )
    report = _empty_report(revisions)
    with catch_signals(sitting.interrupt):
        if stop is not None:
            stop.heed()  # of what came before the sitting could be told
        with timing_lock(request.plan.command, wait=_waiter(sitting.seats[0].inbox, talk)):
            try:
                sitting.prepare()
                sampled = sample(sitting.places, reference, sitting, request.rules, request.max_rounds)
            except Unlike as unlike:
                return replace(report, hard=unlike.differences)
            finally:
                sitting.tidy()
    talk(f"records: {request.folder / run_id}")
    return _report(report, sitting, sampled)


def _empty_report(revisions: tuple[Revision, Revision]) -> Report:
    base, head = revisions
    return Report(
        first=f"{base.name}, {base.code}",
        second=f"{head.name}, {head.code}",
        method="base and head in turn, cell by cell, in one sitting",
        decisions={},
        values={},
    )


_ENDINGS = {
    "decided": "every point was decided",
    "rounds": "the limit of rounds was reached",
    "budget": "the time was over",
    "nothing": "no point could be measured on both sides",
}


def _report(report: Report, sitting: Sitting, sampled: Sampled) -> Report:
    """The report of a sitting that has ended."""
    everything = [*sampled.rounds, *sampled.repeats]
    anew = f", {len(sampled.repeats)} more of what was flagged" if sampled.repeats else ""
    sides = [
        [{place: pair[side] for place, pair in times.items()} for times in everything] for side in (0, 1)
    ]
    measured = sorted({place for times in everything for place in times})
    failed = {place for seat in sitting.seats for place in seat.failed}
    decisions = {
        item: decision
        for item, decision in sampled.decisions.items()
        if not any(place in failed for place in item.places)
    }
    notes = [f"{place} could be measured on neither side" for place in sitting.failed_on_both()]
    if sampled.ending == "budget" and len(sampled.rounds) < MIN_ROUNDS:
        decisions = {}
        notes.append(
            f"a verdict takes {MIN_ROUNDS} rounds, which the time is too short for: give a longer --budget"
        )
    return replace(
        report,
        method=f"{report.method}: {len(sampled.rounds)} rounds{anew}; {_ENDINGS[sampled.ending]}",
        decisions=decisions,
        values={place: (middle(sides[0], place), middle(sides[1], place)) for place in measured},
        missing=tuple(sitting.missing()),
        sentences=describe_moves(decisions, lambda item: paired_evidence([item], everything).get(item)),
        notes=tuple(notes),
    )


def _waiter(inbox: Inbox, talk: Talk) -> Callable[[str], None]:
    """What is done while another run is timing on this machine: say so once, and pause.

    Raises:
        Interrupted: the user ended it; before anything is measured, nothing else comes into the inbox.
    """
    told: set[str] = set()

    def wait(holder: str) -> None:
        if holder not in told:
            told.add(holder)
            talk(f"waiting for {holder}")
        with suppress(Empty):
            inbox.get(timeout=_LOCK_POLL_S)
            raise Interrupted

    return wait
