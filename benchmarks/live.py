"""Whole checks of a checkout against itself or against a slower copy of it: `python -m benchmarks.live`.

What `benchmarks.aa` and its replay are for the rules, this is for all of it: each check is that of `retbench check
--against`, workers, rounds, repeats and verdict. Where nothing differs, anything that has moved is a false alarm. Where
a copy is slowed down, after each decode step its processor spins for a share of what the step took, and a check that
does not find both decode curves slower has missed it.

Prints a JSON line for each check. Exit codes: 0 every check said what is true, 1 one did not, 2 the request is
impossible, 130 interrupted.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.aa import checked_plan
from benchmarks.command import end_well, say
from retbench.cli.check import DEFAULT_BUDGET_MIN, DEFAULT_ROUNDS
from retbench.planning.plan import Plan
from retbench.regress.against import Request, measure_in_turn
from retbench.regress.rendering_report import Report
from retbench.regress.revisions import Revision, checkout_root, working_tree
from retbench.regress.sitting import Limits
from retbench.stats.sequential import Rules

SLOW_DECODE = """

import time as _time  # what follows slows every decode step, for benchmarks.live

_forward = Decoder.forward


def _slow_forward(self, tokens, state=None, *, last_only=False):
    since = _time.perf_counter()
    logits = _forward(self, tokens, state, last_only=last_only)
    if state is not None and tokens.shape[1] == 1:
        now = _time.perf_counter()
        end = now + {share} * (now - since)
        while _time.perf_counter() < end:
            pass
    return logits


Decoder.forward = _slow_forward
"""
"""Added to the decoder's module."""

EPILOG = """\
Examples: python -m benchmarks.live --checks 10, then python -m benchmarks.live --checks 10 --slower 5
"""


def run_checks(num_checks: int, slower_percent: float, workloads: Sequence[str]) -> bool:
    """Run checks one after the other and print what each came to; whether all said what is true.

    Raises:
        RetbenchError: nothing can be measured.
        Interrupted: the user ended it.
    """
    plan = checked_plan()
    plan = replace(plan, cells=tuple(cell for cell in plan.cells if cell.workload in workloads))
    base = working_tree(checkout_root())
    all_true = True
    for number in range(num_checks):
        with tempfile.TemporaryDirectory(prefix="retbench-live-") as folder:
            head = slowed(base, Path(folder), slower_percent / 100) if slower_percent else base
            since = monotonic()
            report = _check(plan, base, head, Path(folder))
        is_true = says_slower(report) if slower_percent else says_nothing(report)
        all_true &= is_true
        line = {
            "check": number + 1,
            "slower_percent": slower_percent,
            "holds": is_true,
            "took_s": round(monotonic() - since, 1),
            **_summary(report),
        }
        print(json.dumps(line), flush=True)
    return all_true


def _check(plan: Plan, base: Revision, head: Revision, folder: Path) -> Report:
    """One check, as `retbench check --against` makes it."""
    limits = Limits(budget_s=60 * DEFAULT_BUDGET_MIN)
    request = Request(plan, "", Rules(), DEFAULT_ROUNDS, limits, always=True, folder=folder / "records")
    return measure_in_turn(request, (base, head), say)


def slowed(base: Revision, folder: Path, share: float) -> Revision:
    """A copy of the code whose decode steps take longer by a share of themselves."""
    root = folder / "slowed"
    shutil.copytree(base.source, root / "suite", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    with open(root / "suite" / "retbench" / "models" / "decoder.py", "a", encoding="utf-8") as file:
        file.write(SLOW_DECODE.format(share=share))
    return replace(working_tree(root), name="a slower copy")


def says_slower(report: Report) -> bool:
    """Whether every decode curve is called slower."""
    verdicts = [
        decision.verdict
        for item, decision in report.decisions.items()
        if item.kind == "curve" and item.places[0].workload == "decode"
    ]
    return bool(verdicts) and set(verdicts) == {"regressed"}


def says_nothing(report: Report) -> bool:
    """Whether something was compared, and nothing is said to have moved."""
    if not report.decisions:
        return False
    return not {decision.verdict for decision in report.decisions.values()} & {"regressed", "improved"}


def _summary(report: Report) -> dict[str, Any]:
    """What a check came to: in one line, and its curves."""
    curves = {}
    for item, decision in report.decisions.items():
        if item.kind == "curve" and decision.evidence is not None:
            ratio = decision.evidence.interval()
            curves[str(item)] = {"verdict": decision.verdict, **asdict(ratio)}
    return {"outcome": report.headline, "method": report.method, "curves": curves}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    options = _parse(arguments)
    return end_well("live", lambda: 0 if run_checks(options.checks, options.slower, options.workload) else 1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options; argparse ends the process with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.live",
        description="Whole checks of this checkout against itself, or a slower copy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checks", type=int, default=10, help="how many (default 10)")
    parser.add_argument(
        "--slower",
        type=float,
        default=0.0,
        metavar="PERCENT",
        help="slow the copy's decode steps (default 0)",
    )
    parser.add_argument(
        "--workload",
        action="append",
        choices=("decode", "prefill"),
        help="measure this one alone (default both)",
    )
    options = parser.parse_args(arguments)
    options.workload = options.workload or ["decode", "prefill"]
    if options.checks < 1 or options.slower < 0:
        parser.error("--checks must be 1 or more, and --slower 0 or more")
    if options.slower and "decode" not in options.workload:
        parser.error("--slower slows decode steps: measure decode too")
    return options


if __name__ == "__main__":
    sys.exit(main())
