"""`retbench table` and `retbench report`: what the records on disk say, without torch."""

from pathlib import Path

import typer

from retbench.config.experiment import list_experiments
from retbench.errors import RecordError
from retbench.report.formats import render
from retbench.report.frames import Results, load_results
from retbench.report.selection import select
from retbench.report.tables import contents_of, table_of


def print_table(experiment: str, form: str, results: Path) -> None:
    """Print the newest comparable results of an experiment; on stderr, what is not among them.

    Raises:
        RecordError: there are no results there, or none of that experiment.
        ConfigError: an unknown experiment or format.
    """
    found = load_results(results)
    for problem in found.problems:
        typer.echo(f"retbench: {problem}", err=True)
    name = Path(experiment).stem if experiment.endswith(".toml") else experiment
    if name in list_experiments() and all(record.experiment != name for record in found.records):
        raise RecordError(f"{results}: holds no record of '{name}'. Measure it first: `retbench run {name}`.")
    print_records(found, name, form)


def print_records(results: Results, experiment: str, form: str) -> None:
    """Print the newest comparable ones of some records; on stderr, what is not among them."""
    found = contents_of(select(results.records, experiment, results.folders))
    for note in found.selection.left_out:
        typer.echo(f"left out: {note}", err=True)
    for reason in found.refusals:
        typer.echo(f"not compared: {reason}", err=True)
    typer.echo(render(table_of(found, experiment), form), nl=False)


def print_report(results: Path, out: Path) -> None:
    """Write the report and print the path of every file.

    Raises:
        RecordError: there are no results there.
        ConfigError: `out` cannot be written to.
        StorageError: a file cannot be written.
    """
    from retbench.report.report import write_report  # matplotlib takes longer to load than a table to print

    for path in write_report(results, out):
        typer.echo(path)
