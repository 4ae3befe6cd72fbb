"""`retbench report`: the report and its figures from the records on disk, without torch."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.options import ResultsPath, new_app

app = new_app()


@app.command(epilog="Example: retbench report --results results --out reports")
def report(
    results: ResultsPath = Path("results"),
    out: Annotated[
        Path,
        typer.Option(file_okay=False, help="Folder to write to; an earlier report in it is overwritten."),
    ] = Path("reports"),
) -> None:
    """Write the report and its figures from the records.

    The path of every file goes to stdout.
    """
    from retbench.report.report import write_report

    for path in write_report(results, out):
        typer.echo(path)
