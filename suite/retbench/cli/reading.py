"""The verbs that read records."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.options import ExperimentName, ResultsPath


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    app.command(epilog="Example: retbench table latency --format csv")(table)
    app.command(epilog="Example: retbench report --results results --out reports")(report)
    app.command(epilog="Example: retbench claims --format md")(claims)


def table(
    experiment: ExperimentName,
    form: Annotated[str, typer.Option("--format", help="md, csv, json or latex.")] = "md",
    results: ResultsPath = Path("results"),
) -> None:
    """Print the results of an experiment from its records."""
    from retbench.cli import report as command

    command.print_table(experiment, form, results)


def report(
    results: ResultsPath = Path("results"),
    out: Annotated[
        Path,
        typer.Option(file_okay=False, help="Folder to write to; an earlier report in it is overwritten."),
    ] = Path("reports"),
) -> None:
    """Write the report and its figures from the records."""
    from retbench.cli import report as command

    command.print_report(results, out)


def claims(
    form: Annotated[
        str, typer.Option("--format", help="md, json, or short: a Markdown table of the headlines.")
    ] = "md",
    results: ResultsPath = Path("results"),
) -> None:
    """Print the papers' claims, each with its verdict or what is missing for one.

    Only records under a paper's own conditions decide a claim; all others stand beside it in rows of their own.
    """
    from retbench.cli import claims as command

    command.print_claims(form, results)
