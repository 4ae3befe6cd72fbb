"""`retbench baseline`: keep accepted runs, show them, and begin anew after an intended change."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli.options import AsJson, OutputFormat, given_options, read_folder, read_path
from retbench.errors import printable, shown
from retbench.units import format_items

if TYPE_CHECKING:
    from retbench.regress.baseline import Baseline
    from retbench.regress.record_sets import RecordSet

BaselineFolder = Annotated[
    Path,
    typer.Option(
        "--folder",
        metavar="FOLDER",
        parser=read_folder,
        help="Folder of baselines, with one below it per machine.",
    ),
]
DEFAULT_FOLDER = Path("results/baselines")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Keep a window of accepted runs that later runs are compared with.",
    epilog="Example: retbench baseline save results/MACHINE/latency/RUN.jsonl",
)


@app.command(
    epilog="Example: retbench baseline save results/MACHINE/latency/MONDAY.jsonl results/MACHINE/latency/TUESDAY.jsonl"
)
def save(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            parser=read_path,
            help="Files or folders of records, each one run of the same sweep.",
        ),
    ],
    folder: BaselineFolder = DEFAULT_FOLDER,
) -> None:
    """Add runs to the baseline of their machine and sweep, or begin one.

    Exit code 3: a run differs from the window in what it measured. 1: a run has moved against the window. After an
    intended change, `retbench baseline accept` begins the window anew.
    """
    from retbench.regress.compare import save_runs
    from retbench.regress.evidence import MIN_RUNS

    path, num_runs = save_runs([_load_run(path) for path in runs], folder)
    lacking = MIN_RUNS - num_runs
    note = f"; {lacking} more {'is' if lacking == 1 else 'are'} needed before it decides anything"
    typer.echo(f"{path}: {format_items(num_runs, 'run')}{note if lacking > 0 else ''}")


def _load_run(path: Path) -> "RecordSet":
    """Return the records of a run, and print on stderr which ones are left out."""
    from retbench.regress.record_sets import load_record_set

    side = load_record_set(path)
    for note in side.notes:
        typer.echo(f"retbench: {printable(note)}", err=True)
    return side


@app.command(
    epilog='Example: retbench baseline accept results/MACHINE/latency/RUN.jsonl --reason "chunk of 256"'
)
def accept(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            parser=read_path,
            help="File or folder of records of the new state; or the word exact, for what `retbench check` measures.",
        ),
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="What changed; kept in the baseline.")],
    folder: BaselineFolder = DEFAULT_FOLDER,
) -> None:
    """Accept an intended change: begin the window anew with this run."""
    from retbench.errors import ConfigError
    from retbench.files import check_writable
    from retbench.regress.baseline import baseline_lock, baseline_path, make_baseline, write_hashed
    from retbench.regress.compare import check_whole
    from retbench.regress.machine_independent import FILE_NAME, write_quantities

    reason = reason.strip()
    if not reason:
        raise ConfigError("--reason is empty: say what changed, for readers of the baseline.")
    if str(run) == "exact":
        from retbench.cli.check import measured_quantities

        check_writable(folder, "--folder")
        path = folder / FILE_NAME
        write_quantities(path, *measured_quantities(), reason)
        typer.echo(path)
        return
    side = _load_run(run)
    check_whole(side)
    baseline = make_baseline(side, reason)
    path = baseline_path(folder, baseline)
    check_writable(path.parent, "--folder")
    with baseline_lock(path):
        write_hashed(path, baseline.model_dump(mode="json"))
    typer.echo(f"{path}: begun anew with run {baseline.runs[0].run_id}")


@app.command(epilog="Example: retbench baseline show results/baselines")
def show(
    call: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH",
            parser=read_path,
            help="A baseline, or a folder of them; by default that of --folder.",
        ),
    ] = None,
    folder: BaselineFolder = DEFAULT_FOLDER,
    form: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """Show runs and points of baselines, and the spread between runs."""
    from retbench.cli.layout import output_format, print_json
    from retbench.errors import ConfigError, RecordError
    from retbench.regress.baseline import read_baseline
    from retbench.regress.machine_independent import FILE_NAME

    form = output_format(form, as_json=as_json)
    if path is not None and "--folder" in given_options(call):
        raise ConfigError(
            f"{shown(str(path))} and --folder {shown(str(folder))} both say what to show. Give one."
        )
    path = path or folder
    if path.name == FILE_NAME:
        _show_quantities(path, form)
        return
    paths = [path] if path.is_file() else sorted(path.glob("*/*.json"))
    if not paths:
        exact = path / FILE_NAME
        hint = f" It holds {FILE_NAME}, for `retbench check`: `retbench baseline show {exact}`."
        raise RecordError(
            f"no baseline of a machine at {shown(str(path))}.{hint if exact.is_file() else ''} Make one with "
            "`retbench baseline save RUN`."
        )
    found = {str(one): read_baseline(one) for one in paths}
    if form == "json":
        print_json({"baselines": [_summary(name, baseline) for name, baseline in found.items()]})
        return
    for name, baseline in found.items():
        _print_baseline(name, baseline, form)


def _show_quantities(path: Path, form: str) -> None:
    from retbench.cli.layout import print_json, print_prose, print_table
    from retbench.regress.machine_independent import read_quantities

    accepted = read_quantities(path)
    if form == "json":
        print_json({"path": str(path), **accepted.model_dump(mode="json", exclude_defaults=True)})
        return
    quantities = accepted.quantities
    head = f"{path}: {len(quantities)} quantities, torch {accepted.torch_version}: {accepted.reason}"
    print_prose(printable(head))
    typer.echo()
    print_table(("quantity", "value"), [(name, str(one)) for name, one in quantities.items()], form)


def _print_baseline(name: str, baseline: "Baseline", form: str) -> None:
    from retbench.cli.layout import print_prose, print_table
    from retbench.regress.compare import spread_between
    from retbench.regress.decide import format_value
    from retbench.units import format_percent

    latest = baseline.runs[-1]
    count = (
        f"{format_items(len(baseline.runs), 'run')}, the latest {latest.started_at} ({latest.code_revision})"
    )
    for line in (f"{name}: {count}", f"window begun: {baseline.reason}"):
        print_prose(printable(line))
    typer.echo()
    rows = [
        (str(point), format_value(point, value), "–" if deviation is None else format_percent(deviation))
        for point, value, deviation in spread_between(baseline.runs)
    ]
    print_table(("point", "value", "between runs"), rows, form)


def _summary(name: str, baseline: "Baseline") -> dict[str, Any]:
    """Return a baseline as JSON-able data."""
    from retbench.regress.compare import spread_between

    return {
        "path": name,
        "machine": baseline.machine,
        "experiment": baseline.experiment,
        "profile": baseline.profile,
        "reason": baseline.reason,
        "runs": [run.model_dump(include={"run_id", "started_at", "code_revision"}) for run in baseline.runs],
        "points": [
            {"point": str(point), "value": value, "log_sd_between_runs": deviation}
            for point, value, deviation in spread_between(baseline.runs)
        ],
    }
