"""`retbench run`: measure an experiment with progress on stderr and the results on stdout, or show the plan."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.layout import output_format, print_json, print_nothing, print_prose, print_table
from retbench.cli.options import (
    AsJson,
    DataDir,
    DeviceName,
    ExperimentName,
    OutputFormat,
    Overrides,
    ProfileName,
    ShardName,
    dtype_option,
    new_app,
    read_folder,
)
from retbench.errors import INTERRUPTED, RetbenchError, UnsupportedError
from retbench.files import check_writable
from retbench.units import format_bytes, format_duration, format_items, format_tokens

if TYPE_CHECKING:
    from retbench.planning.plan import Plan
    from retbench.running.estimates import CellEstimate
    from retbench.running.events import RunSummary

app = new_app()
_FAILURES = frozenset({"failed", "timeout", "gate_failed"})
"""Statuses of a failed run. Running out of memory is a result: it says where the memory ends."""
_NOT_ESTIMATED, _CANNOT_RUN = "not estimated", "cannot run"


@app.command(epilog="Example: retbench run latency --profile smoke")
def run(
    experiment: ExperimentName,
    profile: ProfileName = None,
    device: DeviceName = None,
    dtype: Annotated[str | None, dtype_option("By default the profile's.")] = None,
    own_models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Measure this model of transformers in place of the experiment's: a folder, or a name on the hub. "
            "Needs the extra hf.",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint of --model.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Keep only the first N context lengths, or documents.")
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Compile decode steps with torch.compile; replaces the profile's."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", parser=read_folder, help="Folder that records are appended to.")
    ] = Path("results"),
    overrides: Overrides = None,
    data_dir: DataDir = None,
    shard: ShardName = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again the cells that are on disk.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the cells with their expected time and memory; measure nothing."
        ),
    ] = False,
    form: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """Measure an experiment, or continue where it stopped.

    Each record is appended as soon as it is measured, so that an ended run loses nothing; the same command measures
    the rest.
    """
    from retbench.planning.plan import make_plan
    from retbench.planning.shards import Shard

    part = None if shard is None else Shard.parse(shard)
    form = output_format(form, as_json=as_json)
    plan = make_plan(
        experiment,
        profile=profile,
        device=device,
        dtype=dtype,
        limit=limit,
        compiled=compiled,
        checkpoints=own_models or (),
        trust_remote_code=trust_remote_code,
        overrides=overrides or (),
        results=out,
        data_dir=data_dir,
    )
    chosen = plan if part is None else plan.part(part)
    if chosen is None:
        _say_empty(plan, str(part), form)
    elif dry_run:
        note = f"shard {part}: {len(chosen.cells)} of {len(plan.cells)} cells" if part else None
        raise typer.Exit(_show_plan(chosen, out, form, note, fresh=fresh))
    else:
        raise typer.Exit(_measure(chosen, out, form, fresh=fresh))


def _say_empty(plan: "Plan", shard: str, form: str) -> None:
    """Say that a shard has no cells."""
    from retbench.planning.shards import describe_units

    text = (
        f"shard {shard} has no cells: the plan has {describe_units(plan.cells)}. There is nothing to measure."
    )
    print_nothing(text, form, experiment=plan.experiment.name, profile=plan.profile_name, cells=[])


def _measure(plan: "Plan", out: Path, form: str, *, fresh: bool) -> int:
    """Measure the cells that are not on disk yet, print the results, and return the exit code."""
    from retbench.cli.progress import show_events, view_run
    from retbench.running.runner import run_plan

    with show_events(view_run) as notify:
        result = run_plan(plan, out, fresh=fresh, notify=notify)
    if form == "json":
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
        _print_results(plan, out, form)
    return exit_code(result)


def exit_code(result: "RunSummary") -> int:
    """Return the exit code of a run; cells found on disk count as successful."""
    if result.interrupted:
        return INTERRUPTED
    if _FAILURES & result.counts.keys():
        return RetbenchError.exit_code
    return UnsupportedError.exit_code if "unsupported" in result.counts else 0


def _print_results(plan: "Plan", out: Path, form: str) -> None:
    """Print the table of the plan's own cells, measured with this code on this machine, now or before."""
    from dataclasses import replace

    from retbench.cli.table import print_records
    from retbench.report.results import load_results
    from retbench.running.resume import identities_here, identity_of

    identities = identities_here(plan.cells)
    results = load_results(out)
    own = tuple(
        record
        for record in results.records
        if record.cell_id in identities and identity_of(record) == identities[record.cell_id]
    )
    print_records(replace(results, records=own), plan.experiment.name, form)


def _show_plan(plan: "Plan", out: Path, form: str, shard_note: str | None = None, *, fresh: bool) -> int:
    """Print every cell with its approximate time and memory, then notes on the shard, the disk and this machine.

    Returns:
        The exit code, which is that of the run where a model cannot run here.

    Raises:
        ConfigError: the run could not write to `out`.
        UnsupportedError: another run is timing on this machine, which an estimate would disturb.
    """
    from retbench.running.estimates import estimate
    from retbench.running.runner import count_on_disk

    check_writable(out, "--out")
    estimates = estimate(plan)
    found, total = count_on_disk(plan, out, fresh=fresh), plan.num_measurements
    disk_note = (
        f"{found} of {total} measurements are on disk already and would not be taken again" if found else None
    )
    note = "; ".join(text for text in (shard_note, disk_note, plan.note) if text) or None
    errors = {item.cell.under_test.label: item.error for item in estimates if item.error}
    if form == "json":
        print_json(
            {
                "experiment": plan.experiment.name,
                "profile": plan.profile_name,
                "rounds": plan.rounds,
                "command": plan.command,
                "note": note,
                "num_measurements": total,
                "num_on_disk": found,
                "cells": [_estimate_fields(item) for item in estimates],
            }
        )
    else:
        _print_estimates(plan, estimates, form)
        sentences = [f"{note[0].upper()}{note[1:]}."] if note else []
        for text in [*sentences, *(f"{label}: {error}" for label, error in errors.items())]:
            typer.echo()
            print_prose(text)
    return UnsupportedError.exit_code if errors else 0


def _print_estimates(plan: "Plan", estimates: "Sequence[CellEstimate]", form: str) -> None:
    """Print every cell with its approximate time and memory, and all of them together."""
    print_table(
        (
            "model",
            "workload",
            "batch",
            "context",
            f"time, {format_items(plan.rounds, 'round')}",
            "peak memory",
        ),
        [*(_estimate_row(item) for item in estimates), _total_row(estimates)],
        form,
        keys=4,
    )


def _estimate_fields(item: "CellEstimate") -> dict[str, str | int | float | None]:
    """Return an estimate in base units, with null for values that cannot be estimated."""
    point, weights = item.cell.point, item.cell.under_test.weights
    return {
        "model": item.cell.model_name,
        "size": item.cell.under_test.size,
        "seed": weights.info.seed if weights else None,
        "workload": item.cell.workload,
        "task": point.task,
        "protocol": point.protocol,
        "num_fewshot": point.num_fewshot,
        "num_pairs": point.num_pairs,
        "batch_size": point.batch_size,
        "context_len": point.context_len,
        "seconds": item.seconds,
        "memory_bytes": item.memory_bytes,
        "error": item.error,
    }


def _estimate_row(item: "CellEstimate") -> tuple[str, ...]:
    from retbench.cli.progress import describe_work

    point = item.cell.point
    return (
        item.cell.under_test.label,
        describe_work(item.cell),
        str(point.batch_size),
        format_tokens(point.context_len),
        _CANNOT_RUN if item.error else _format_seconds(item.seconds),
        _format_memory(item.memory_bytes, item.cell.settings.memory_limit_bytes),
    )


def _format_seconds(seconds: float | None) -> str:
    return _NOT_ESTIMATED if seconds is None else format_duration(seconds)


def _format_memory(memory_bytes: int | None, limit_bytes: int | None) -> str:
    """Return the memory of a cell, and that it is more than the experiment allows."""
    if memory_bytes is None:
        return _NOT_ESTIMATED
    is_over = limit_bytes is not None and memory_bytes > limit_bytes
    return format_bytes(memory_bytes) + (
        f", over {format_bytes(limit_bytes)}" if limit_bytes and is_over else ""
    )


def _total_row(estimates: "Sequence[CellEstimate]") -> tuple[str, ...]:
    """Return the time and the peak memory of all cells with an estimate."""
    counted = [item for item in estimates if item.seconds is not None and item.error is None]
    if not counted:
        return ("none is estimated", *[""] * 5)
    name = "all" if len(counted) == len(estimates) else "all that are estimated"
    seconds = sum(item.seconds or 0.0 for item in counted)
    peak = max(item.memory_bytes or 0 for item in counted)
    return (name, *[""] * 3, format_duration(seconds), format_bytes(peak))
