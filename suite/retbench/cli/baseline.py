"""`retbench baseline`: windows of accepted runs, kept, shown, and begun anew where a change was intended."""

from pathlib import Path
from typing import Any

import typer

from retbench.cli.layout import print_columns, print_json
from retbench.errors import ConfigError, NotComparableError, RecordError, RegressionError
from retbench.files import check_writable
from retbench.regress.baseline import (
    Baseline,
    StoredRun,
    make_baseline,
    make_run,
    read_baseline,
    write_baseline,
)
from retbench.regress.exact import describe_quantity, read_exact
from retbench.regress.history import MIN_RUNS, compare_history, spread
from retbench.regress.items import Place
from retbench.regress.rendering import render
from retbench.regress.sides import Side, load_side
from retbench.units import format_bytes, format_percent, format_seconds

FIRST = "first runs"
EXACT = "exact.json"
"""Name of the file of the exact lane, beside the folders of the machines."""


def save(runs: list[Path], folder: Path) -> None:
    """Add runs to the baseline of their machine and sweep, all or none, and print its path.

    Raises:
        RecordError: a run or the baseline cannot be read.
        ConfigError: a run is in the window already, or the folder cannot be written to.
        NotComparableError: a run measured something else, or failed somewhere.
        RegressionError: a run has moved against the window, in either direction.
    """
    sides = [load_side(path) for path in runs]
    for side in sides:
        _check_whole(side)
    path = place_of_baseline(folder, make_baseline(sides[0], FIRST))
    check_writable(path.parent, "--folder")
    baseline = read_baseline(path) if path.exists() else None
    for side in sides:
        baseline = _with_side(path, baseline, side) if baseline else make_baseline(side, FIRST)
    assert baseline is not None
    write_baseline(path, baseline)
    lacking = MIN_RUNS - len(baseline.runs)
    note = f"; {lacking} more are needed before it decides anything" if lacking > 0 else ""
    typer.echo(f"{path}: {len(baseline.runs)} runs{note}")


def _check_whole(side: Side) -> None:
    """NotComparableError where a cell of a run failed, in one round or in all: an out-of-memory each time is none."""
    failed = [f"{place}: {one}" for place, one in sorted(side.attempts().items()) if not one.is_expected]
    if failed:
        raise NotComparableError(
            f"'{side.name}' holds cells that failed:\n  " + "\n  ".join(failed) + "\n"
            "What joins a baseline has a value of every round. Measure again, and give the whole run."
        )


def _with_side(path: Path, baseline: Baseline, side: Side) -> Baseline:
    """The window with one more run, once it is found to be one of the same."""
    run = make_run(side)
    if any(_same_run(run, earlier) for earlier in baseline.runs):
        raise ConfigError(f"'{side.name}': run {run.run_id} is in {path} already. Give another run.")
    # What else differed may explain why a run has moved, and makes it no better a measure of the next one.
    report = compare_history(str(path), baseline, side, accept_soft=True)
    gaps = [one for one in report.missing if one.kind != "both"]
    if report.hard or gaps:
        lines = [str(one) for one in (*report.hard, *gaps)]
        raise NotComparableError(
            f"'{side.name}' did not measure what {path} holds:\n  " + "\n  ".join(lines) + "\n"
            "Measure under the same conditions, or begin anew with `retbench baseline accept`."
        )
    moved = [
        decision for decision in report.decisions.values() if decision.verdict in {"regressed", "improved"}
    ]
    if moved:
        raise RegressionError(
            f"'{side.name}' has moved against {path}:\n{render(report, 'text', strict=False)}"
            "Where that was intended, `retbench baseline accept` begins the window anew."
        )
    return baseline.with_run(run)


def _same_run(run: StoredRun, other: StoredRun) -> bool:
    return (run.run_id, run.started_at) == (other.run_id, other.started_at)


def accept(run: Path, reason: str, folder: Path) -> None:
    """Begin the window of a machine and sweep anew with one run, and print its path.

    Raises:
        RecordError: the run cannot be read.
        ConfigError: no reason is given, or the folder cannot be written to.
    """
    baseline = make_baseline(load_side(run), check_reason(reason))
    path = place_of_baseline(folder, baseline)
    check_writable(path.parent, "--folder")
    write_baseline(path, baseline)
    typer.echo(f"{path}: begun anew with run {baseline.runs[0].run_id}")


def check_reason(reason: str) -> str:
    """The reason without space around it; ConfigError where there is none."""
    if not reason.strip():
        raise ConfigError("--reason is empty: say what changed, for those who find the baseline moved.")
    return reason.strip()


def place_of_baseline(folder: Path, baseline: Baseline) -> Path:
    """Where a baseline lies."""
    return folder / baseline.machine / f"{baseline.experiment}-{baseline.profile}.json"


def show(path: Path, *, as_json: bool) -> None:
    """Print what a baseline, or every baseline below a folder, holds.

    Raises:
        RecordError: there is none, or one cannot be read.
    """
    if path.name == EXACT:
        _show_exact(path, as_json=as_json)
        return
    paths = [path] if path.is_file() else sorted(path.glob("*/*.json"))
    if not paths:
        exact = path / EXACT
        there = (
            f" It holds {EXACT}, for `retbench check`: `retbench baseline show {exact}`."
            if exact.is_file()
            else ""
        )
        raise RecordError(
            f"no baseline of a machine at '{path}'.{there} Make one with `retbench baseline save RUN`."
        )
    found = {str(one): read_baseline(one) for one in paths}
    if as_json:
        print_json({"baselines": [_summary(name, baseline) for name, baseline in found.items()]})
        return
    for name, baseline in found.items():
        latest = baseline.runs[-1]
        typer.echo(
            f"{name}: {len(baseline.runs)} runs, the latest {latest.started_at} ({latest.code_revision})"
        )
        typer.echo(f"window begun: {baseline.reason}")
        print_columns(
            ("point", "value", "between runs"),
            [
                (str(place), _value(place, value), "–" if deviation is None else format_percent(deviation))
                for place, value, deviation in _points(baseline)
            ],
        )


def _show_exact(path: Path, *, as_json: bool) -> None:
    """Print the quantities that the exact lane is held against."""
    accepted = read_exact(path)
    if as_json:
        print_json({"path": str(path), **accepted.model_dump(mode="json", exclude_defaults=True)})
        return
    typer.echo(
        f"{path}: {len(accepted.quantities)} quantities, torch {accepted.torch_version}: {accepted.reason}"
    )
    print_columns(
        ("quantity", "value"), [(name, describe_quantity(one)) for name, one in accepted.quantities.items()]
    )


def _points(baseline: Baseline) -> list[tuple[Place, float, float | None]]:
    """Every place with its mean over the runs and how much they differ."""
    places = sorted({point.place for run in baseline.runs for point in run.points})
    return [(place, *spread(list(baseline.runs), place)) for place in places]


def _value(place: Place, value: float) -> str:
    return format_bytes(value) if place.workload == "memory" else format_seconds(value)


def _summary(name: str, baseline: Baseline) -> dict[str, Any]:
    """A baseline as JSON-able data."""
    return {
        "path": name,
        "machine": baseline.machine,
        "experiment": baseline.experiment,
        "profile": baseline.profile,
        "reason": baseline.reason,
        "runs": [
            {"run_id": run.run_id, "started_at": run.started_at, "code_revision": run.code_revision}
            for run in baseline.runs
        ],
        "points": [
            {"point": str(place), "value": value, "log_sd_between_runs": deviation}
            for place, value, deviation in _points(baseline)
        ],
    }
