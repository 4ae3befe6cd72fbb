"""`retbench table`: the results of an experiment from the records on disk, without torch."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.layout import output_format, print_prose, print_table
from retbench.cli.options import AsJson, ExperimentName, ResultsPath, format_option, new_app
from retbench.errors import RecordError, shown
from retbench.units import format_items

if TYPE_CHECKING:
    from retbench.records.record import Record
    from retbench.report.results import Results
    from retbench.report.tables.cells import ReadableTable

app = new_app()
FORMATS = ("text", "md", "csv", "json", "latex")


@app.command(epilog="Example: retbench table latency --format csv")
def table(
    experiment: ExperimentName,
    form: Annotated[str | None, format_option(*FORMATS)] = None,
    as_json: AsJson = False,
    results: ResultsPath = Path("results"),
) -> None:
    """Print the results of an experiment from its records.

    Only the newest comparable records are shown; stderr lists the others.
    """
    form = output_format(form, FORMATS, as_json=as_json)
    found = read_results(results)
    name = find_measured(experiment, found, results)
    _print_others(found, name, print_records(found, name, form), results)


def _print_others(results: "Results", experiment: str, printed: "Sequence[Record]", path: Path) -> None:
    """Print on stderr which other folders hold models that the table lacks, and how to show them.

    Args:
        results: All records at the path.
        experiment: Name of the experiment.
        printed: Records in the table.
        path: The path.
    """
    folders: dict[str, dict[str, None]] = {}
    for record in results.records:
        if record.experiment == experiment and record.status == "ok":
            folder = Path(results.source_of(record).path).parent.as_posix()
            folders.setdefault(folder, {})[record.model.name] = None
    here = {Path(results.source_of(record).path).parent.as_posix() for record in printed}
    known = {record.model.name for record in printed}
    for folder, models in folders.items():
        if folder not in here and (others := [name for name in models if name not in known]):
            typer.echo(
                f"elsewhere: {', '.join(others)}. To show them: `retbench table {experiment} --results "
                f"{shlex.quote(str(path / folder))}`",
                err=True,
            )


def find_measured(experiment: str, results: "Results", path: Path) -> str:
    """Return the name of an experiment; RecordError for a shipped one without records among those at a path."""
    from retbench.config.experiment_files import list_experiments

    name = Path(experiment).stem if experiment.endswith(".toml") else experiment
    if name in list_experiments() and all(record.experiment != name for record in results.records):
        raise RecordError(
            f"{path}: holds no record of {shown(name)}. Measure it first: `retbench run {name}`."
        )
    return name


def read_results(path: Path) -> "Results":
    """Return the records at a path; print on stderr which ones cannot be read."""
    from retbench.report.results import load_results

    found = load_results(path)
    print_problems(found.problems)
    return found


_MOST_PROBLEMS = 5
"""Lines that cannot be read, as they are printed one by one."""


def print_problems(problems: Sequence[str]) -> None:
    """Print on stderr the first of the lines that cannot be read, and how many others there are."""
    for problem in problems[:_MOST_PROBLEMS]:
        typer.echo(f"retbench: {problem}", err=True)
    if len(problems) > _MOST_PROBLEMS:
        more = format_items(len(problems) - _MOST_PROBLEMS, "more line")
        typer.echo(f"retbench: {more} cannot be read", err=True)


def print_records(results: "Results", experiment: str, form: str) -> "Sequence[Record]":
    """Print the newest comparable records, and on stderr which ones are left out; return those that are shown."""
    from retbench.report.contents import contents_of
    from retbench.report.selection import select
    from retbench.report.tables.experiments import table_of
    from retbench.report.tables.formats import render
    from retbench.report.tables.readable import readable_tables
    from retbench.workloads.workload import WORKLOADS

    found = contents_of(select(results.records, experiment, results.folders))
    for note in found.selection.left_out:
        typer.echo(f"left out: {note}", err=True)
    for reason in found.refusals:
        typer.echo(f"not compared: {reason}", err=True)
    for unusual in found.unusual_caches:
        typer.echo(f"unusual: {unusual}", err=True)
    frame = table_of(found, experiment)
    if form != "text":
        typer.echo(render(frame, form, found.labels), nl=False)
        return found.selection.records
    for number, (workload, full) in enumerate(readable_tables(frame, found.labels).items()):
        table, shared = _without_constants(full)
        keys = next((at for at, one in enumerate(table.columns) if one.kind != "key"), len(table.columns))
        title = WORKLOADS[workload].title if workload in WORKLOADS else workload
        if number:
            typer.echo()
        print_prose(": ".join(filter(None, (title, shared))))
        typer.echo()
        header = [column.heading for column in table.columns]
        print_table(header, [[*row] for row in table.frame.itertuples(index=False)], form, keys=keys)
    return found.selection.records


def _without_constants(table: "ReadableTable") -> "tuple[ReadableTable, str]":
    """Return a table without the columns that have one value in all of several rows, and these in words."""
    cells = [table.frame.iloc[:, at] for at in range(len(table.columns))]
    constant = [at for at, column in enumerate(cells) if len(column) > 1 and column.nunique() == 1]
    words = ", ".join(f"{table.columns[at].heading} {cells[at].iloc[0]}" for at in constant)
    kept = [at for at in range(len(cells)) if at not in constant]
    columns = tuple(table.columns[at] for at in kept)
    return replace(table, columns=columns, frame=table.frame.iloc[:, kept]), words
