"""Run whole checks of a checkout against itself or against a slower copy: `python -m benchmarks.live`.

`benchmarks.aa` and its replay test the rules; this tests everything: workers, rounds, repeats and verdict of `retbench
check --against`. Where nothing differs, anything that has moved is a false alarm. A slower copy spins after each decode
step for a share of the step's time; a check that does not find both decode curves slower has missed it.

Prints a JSON line per check. Exit codes: 0 every verdict was right, 1 one was wrong, 2 the request is
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
from retbench.planning.plan import Plan
from retbench.regress.interleaved import InterleavedCheck
from retbench.regress.report import CheckReport
from retbench.regress.revisions import Revision, checkout_root, working_tree
from retbench.regress.session import SessionLimits
from retbench.stats.sequential import DecisionRules

SLOW_DECODE = """

import time as _time  # added by benchmarks.live to slow every decode step

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
"""Appended to the decoder's module."""

EPILOG = """\
Examples: python -m benchmarks.live --checks 10, then python -m benchmarks.live --checks 10 --slower 5
"""


def run_checks(num_checks: int, slower_percent: float, workloads: Sequence[str]) -> bool:
    """Run checks one after the other and print their results; return whether all verdicts were right.

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


def _check(plan: Plan, base: Revision, head: Revision, folder: Path) -> CheckReport:
    """Run one check as `retbench check --against` does."""
    limits, rules = SessionLimits(), DecisionRules()
    check = InterleavedCheck(plan, folder / "records", say, limits, rules, all_points=True)
    return check.measure((base, head))


def slowed(base: Revision, folder: Path, share: float) -> Revision:
    """Copy the code, with decode steps that take longer by a share of their time."""
    root = folder / "slowed"
    shutil.copytree(base.source, root / "suite", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    with open(root / "suite" / "retbench" / "models" / "decoder.py", "a", encoding="utf-8") as file:
        file.write(SLOW_DECODE.format(share=share))
    return replace(working_tree(root), name="a slower copy")


def says_slower(report: CheckReport) -> bool:
    """Return whether every decode curve regressed."""
    verdicts = [item.verdict for item in report.items if item.kind == "curve" and item.workload == "decode"]
    return bool(verdicts) and set(verdicts) == {"regressed"}


def says_nothing(report: CheckReport) -> bool:
    """Return whether something was compared, and nothing has moved."""
    verdicts = {item.verdict for item in report.items}
    return bool(verdicts) and not verdicts & {"regressed", "improved"}


def _summary(report: CheckReport) -> dict[str, Any]:
    """Return the headline, the method and the curves of a report."""
    curves = {
        item.name: {"verdict": item.verdict, **asdict(item.change)}
        for item in report.items
        if item.kind == "curve" and item.change is not None
    }
    return {"outcome": report.headline, "method": report.method, "curves": curves}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options, run, and return the exit code."""
    options = _parse(arguments)
    return end_well("live", lambda: 0 if run_checks(options.checks, options.slower, options.workload) else 1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; argparse exits with 2 for wrong ones."""
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
