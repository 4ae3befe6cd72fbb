"""`retbench compare`: two record sets of one machine, or a run and a baseline."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from retbench.cli.layout import output_format, terminal_width
from retbench.cli.options import AsJson, new_app, read_folder, read_path
from retbench.files import check_writable

if TYPE_CHECKING:
    from retbench.regress.report import CheckReport

app = new_app()
ReportFormat = Annotated[
    str | None,
    typer.Option("--format", metavar="[text|md|json|junit]", help="Format of the report; by default text."),
]
ReportFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        parser=read_folder,
        help="Folder for the report in every format, with a figure.",
    ),
]
Margin = Annotated[
    float, typer.Option("--margin", metavar="SHARE", help="Share by which a time must have moved to count.")
]
Strict = Annotated[bool, typer.Option("--strict", help="End with exit code 4 if an item is inconclusive.")]


@app.command(
    epilog="Example: retbench compare results/MACHINE/latency/BEFORE.jsonl results/MACHINE/latency/AFTER.jsonl"
)
def compare(
    first: Annotated[
        Path,
        typer.Argument(
            metavar="A",
            parser=read_path,
            help="File or folder of records to compare with, or a baseline (*.json).",
        ),
    ],
    second: Annotated[
        Path,
        typer.Argument(metavar="B", parser=read_path, help="File or folder of records that are judged."),
    ],
    form: ReportFormat = None,
    as_json: AsJson = False,
    out: ReportFolder = None,
    margin: Margin = 0.02,
    accept_confounders: Annotated[
        bool,
        typer.Option(
            "--accept-confounders",
            help="Judge what has moved although load, clocks, driver or session differ.",
        ),
    ] = False,
    strict: Strict = False,
) -> None:
    """Compare two record sets of one machine, or a run with a baseline: is B slower than A?

    Exit code 1: an item is slower beyond the margin, or failed. 2: no point is in common. 3: the sets differ in what
    they measured, or a point is missing on one side. 4, under --strict: an item is inconclusive.
    """
    from retbench.regress.baseline import read_baseline
    from retbench.regress.compare import compare_record_sets, compare_with_baseline
    from retbench.regress.record_sets import load_record_set
    from retbench.stats.sequential import WITHOUT_REPEAT

    form = check_output(form, out, as_json=as_json)
    _check_order(first, second)
    rules = replace(WITHOUT_REPEAT, margin=margin)
    if first.suffix == ".json":
        baseline, run = read_baseline(first), load_record_set(second)
        report = compare_with_baseline(
            str(first), baseline, run, rules, accept_confounders=accept_confounders
        )
    else:
        sides = load_record_set(first), load_record_set(second)
        report = compare_record_sets(*sides, rules, accept_confounders=accept_confounders)
    print_report(report, form, out, strict=strict)


def _check_order(first: Path, second: Path) -> None:
    """Raise ConfigError if the judged side is a baseline, or the first side a folder of baselines alone."""
    from retbench.errors import ConfigError, shown
    from retbench.regress.baseline import read_baseline
    from retbench.regress.machine_independent import FILE_NAME

    has_records = not first.is_dir() or any(first.rglob("*.jsonl"))
    baselines = [] if has_records else [one for one in first.rglob("*.json") if one.name != FILE_NAME]
    if baselines:
        raise ConfigError(
            f"{shown(str(first))}: this folder holds no records (*.jsonl). Give one of its baselines: "
            f"{', '.join(map(str, sorted(baselines)[:10]))}."
        )

    if second.suffix == ".json" and second.is_file():
        read_baseline(second)
        cure = f"Give it first: `retbench compare {second} {first}`."
        if first.suffix == ".json":
            cure = "Give the records of a run in its place."
        raise ConfigError(f"{second}: this is a baseline, and it was given as the run. {cure}")


def notify(text: str) -> None:
    """Print a line about the progress of a comparison to stderr."""
    typer.echo(text, err=True)


@contextmanager
def ended_by_user(remains: str) -> Iterator[None]:
    """Exit with 130 if the user interrupts the block, and say on stderr what remains of it."""
    from retbench.errors import INTERRUPTED
    from retbench.running.locks import Interrupted

    try:
        yield
    except Interrupted:
        notify(f"retbench: interrupted; {remains}")
        raise typer.Exit(INTERRUPTED) from None


def check_output(form: str | None, folder: Path | None, *, as_json: bool) -> str:
    """Return the format of a report; ConfigError for an unknown one, or for a folder that is not writable."""
    from retbench.regress.render import FORMATS

    form = output_format(form, FORMATS, as_json=as_json, elsewhere="text")
    if folder is not None:
        check_writable(folder, "--out")
    return form


def print_report(report: "CheckReport", form: str, out: Path | None, *, strict: bool) -> NoReturn:
    """Print a report, write it into the folder `out`, and exit with its code; paths go to stderr."""
    from retbench.regress.render import render, write_report

    typer.echo(render(report, form, strict=strict, width=terminal_width()), nl=False)
    for path in write_report(report, out, strict=strict) if out else []:
        typer.echo(path, err=True)
    if report.is_interrupted:
        notify("retbench: interrupted; the report has the rounds so far")
    raise typer.Exit(report.exit_code(strict=strict))
