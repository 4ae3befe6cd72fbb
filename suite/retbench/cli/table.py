"""`retbench table`: the results of an experiment from the records on disk, without torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.layout import output_format, print_prose, print_table
from retbench.cli.options import AsJson, ExperimentName, ResultsPath, format_option, new_app
from retbench.errors import RecordError, shown

if TYPE_CHECKING:
    import pandas as pd

    from retbench.report.frames import Results

app = new_app()
FORMATS = ("text", "md", "csv", "json", "latex")
KEYS = {"model", "corpus", "task", "protocol", "shots", "batch", "context", "size", "seed", "run", "metric"}
"""Headings of columns that say what a row is about."""


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
    print_records(found, find_measured(experiment, found, results), form)


def find_measured(experiment: str, results: "Results", path: Path) -> str:
    """Return the name of an experiment; RecordError for a shipped one without records among those at a path."""
    from retbench.config.experiment import list_experiments

    name = Path(experiment).stem if experiment.endswith(".toml") else experiment
    if name in list_experiments() and all(record.experiment != name for record in results.records):
        raise RecordError(
            f"{path}: holds no record of {shown(name)}. Measure it first: `retbench run {name}`."
        )
    return name


def read_results(path: Path) -> "Results":
    """Return the records at a path; print on stderr which ones cannot be read."""
    from retbench.report.frames import load_results

    found = load_results(path)
    for problem in found.problems:
        typer.echo(f"retbench: {problem}", err=True)
    return found


def print_records(results: "Results", experiment: str, form: str) -> None:
    """Print the newest comparable records; print on stderr which ones are left out."""
    from retbench.report.formats import render
    from retbench.report.readable_tables import readable_tables
    from retbench.report.selection import select
    from retbench.report.tables import contents_of, table_of
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
        return
    for number, (workload, full) in enumerate(readable_tables(frame, found.labels).items()):
        table, shared = _without_constants(full)
        header = [str(column) for column in table.columns]
        keys = next((at for at, name in enumerate(header) if name not in KEYS), len(header))
        title = WORKLOADS[workload].title if workload in WORKLOADS else workload
        print_prose(("\n" if number else "") + ": ".join(filter(None, (title, shared))))
        typer.echo()
        print_table(
            header, [[str(cell) for cell in row] for row in table.itertuples(index=False)], form, keys=keys
        )


def _without_constants(table: "pd.DataFrame") -> "tuple[pd.DataFrame, str]":
    """Return a table without the columns that have one value in all of several rows, and these in words."""
    constant = [name for name in table.columns if len(table) > 1 and table[name].nunique() == 1]
    words = ", ".join(f"{name} {table[name].iloc[0]}" for name in constant)
    return table.drop(columns=constant), words
