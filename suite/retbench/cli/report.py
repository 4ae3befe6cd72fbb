"""`retbench report`: the report and its figures from the records on disk, without torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.layout import print_prose
from retbench.cli.options import ResultsPath, new_app, read_folder
from retbench.cli.table import print_problems

if TYPE_CHECKING:
    from retbench.report.findings.answer import Answer

app = new_app()


@app.command(epilog="Example: retbench report --out reports")
def report(
    results: ResultsPath = Path("results"),
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            parser=read_folder,
            help="Folder to write to; an earlier report in it is overwritten.",
        ),
    ] = Path("reports"),
) -> None:
    """Write the report and its figures from the records.

    The answer goes to stdout: what was measured on what, one line per topic, and where the page is.
    """
    from retbench.report.report import write_report

    written = write_report(results, out)
    print_problems(written.problems)
    print_answer(written.answer)
    print_prose(f"Open {out / 'index.html'}")


def print_answer(answer: "Answer") -> None:
    """Print what was compared on what, and one line per topic: at most ten lines where lines are not folded."""
    for line in filter(None, (answer.models, answer.setting)):
        print_prose(f"{line}.")
    for one in answer.lines:
        print_prose(f"{one.topic}: {one.lead}{f' ({one.text})' if one.text else ''}.")
    print_prose(answer.caveat)
