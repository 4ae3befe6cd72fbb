"""`retbench run`: carry out a plan with progress on stderr and the results on stdout, or show what it would do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retbench.cli.layout import print_columns, print_json
from retbench.cli.report import print_records
from retbench.files import check_writable
from retbench.planning.estimates import Estimate, estimate
from retbench.planning.plan import Plan
from retbench.report.frames import load_results
from retbench.run.events import RunResult
from retbench.run.progress import describe_work, show_progress
from retbench.run.resume import identities_here, identity_of
from retbench.run.runner import run_plan
from retbench.units import format_bytes, format_duration, format_tokens

INTERRUPTED = 130
FAILED = 1
UNSUPPORTED = 3
FAILURES = frozenset({"failed", "timeout", "gate_failed"})
"""What makes a run a failure. Running out of memory is a result: it says where the memory ends."""
NOT_ESTIMATED = "not estimated"
"""Of a cell that evaluates a model."""


def carry_out(plan: Plan, out: Path, *, fresh: bool, as_json: bool) -> int:
    """Measure what is not on disk yet, print the results, and return the exit code.

    Raises:
        ConfigError: `out` cannot be written to.
        StorageError: a record could not be written.
    """
    with show_progress() as observer:
        result = run_plan(plan, out, fresh=fresh, observer=observer)
    if as_json:
        print_json(
            {
                "experiment": plan.experiment.name,
                "profile": plan.profile_name,
                "counts": result.counts,
                "skipped": sum(result.skipped.values()),
                "records": str(result.path) if result.path else None,
                "interrupted": result.interrupted,
            }
        )
    elif not result.interrupted:
        _print_results(plan, out)
    return exit_code(result)


def exit_code(result: RunResult) -> int:
    """The exit code that tells how a run went; what it found on disk already went well."""
    if result.interrupted:
        return INTERRUPTED
    if FAILURES & result.counts.keys():
        return FAILED
    return UNSUPPORTED if "unsupported" in result.counts else 0


def _print_results(plan: Plan, out: Path) -> None:
    """The table of the plan's own cells, as this code measured them here, now or before."""
    identities = identities_here(plan.cells)
    results = load_results(out)
    mine = tuple(
        record
        for record in results.records
        if record.cell_id in identities and identity_of(record) == identities[record.cell_id]
    )
    print_records(replace(results, records=mine), plan.experiment.name, "md")


def show_plan(plan: Plan, out: Path, *, as_json: bool) -> None:
    """Print every cell with the time and the memory it will roughly take.

    Raises:
        ConfigError: the run could not write to `out`.
        RetbenchError: another run is timing on this machine, which an estimate would disturb.
    """
    check_writable(out, "--out")
    estimates = estimate(plan)
    if as_json:
        print_json(
            {
                "experiment": plan.experiment.name,
                "profile": plan.profile_name,
                "rounds": plan.rounds,
                "command": plan.command,
                "cells": [_estimate_fields(item) for item in estimates],
            }
        )
        return
    print_columns(
        ("model", "workload", "batch", "context", f"time, {plan.rounds} rounds", "memory"),
        [*(_estimate_row(item) for item in estimates), _last_row(estimates)],
    )


def _last_row(estimates: Sequence[Estimate]) -> tuple[str, ...]:
    """What all cells take together, as far as it is estimated."""
    seconds = [item.seconds for item in estimates if item.seconds is not None]
    held = [item.memory_bytes for item in estimates if item.memory_bytes is not None]
    if not seconds:
        return ("none is estimated", "", "", "", "", "")
    name = "all" if len(seconds) == len(estimates) else "all that are estimated"
    return (name, "", "", "", format_duration(sum(seconds)), format_bytes(max(held)))


def _estimate_fields(item: Estimate) -> dict[str, str | int | float | None]:
    """An estimate in base units; null where there is none."""
    point, weights = item.cell.point, item.cell.subject.weights
    return {
        "model": item.cell.model_name,
        "size": item.cell.subject.size,
        "seed": weights.info.seed if weights else None,
        "workload": item.cell.workload,
        "task": point.task,
        "protocol": point.protocol,
        "num_fewshot": point.num_fewshot,
        "batch_size": point.batch_size,
        "context_len": point.context_len,
        "seconds": item.seconds,
        "memory_bytes": item.memory_bytes,
    }


def _estimate_row(item: Estimate) -> tuple[str, ...]:
    """An estimate as people read it."""
    point = item.cell.point
    return (
        item.cell.subject.label,
        describe_work(item.cell),
        str(point.batch_size),
        format_tokens(point.context_len),
        *_amounts(item),
    )


def _amounts(item: Estimate) -> tuple[str, str]:
    """Time and memory as people read them."""
    if item.seconds is None or item.memory_bytes is None:
        return NOT_ESTIMATED, NOT_ESTIMATED
    return format_duration(item.seconds), format_bytes(item.memory_bytes)
