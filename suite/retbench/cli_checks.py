"""The verbs of regression checks: thin, like those of `cli`, which takes them in."""

from pathlib import Path
from typing import Annotated

import typer

ReportFormat = Annotated[str, typer.Option("--format", help="text, md, json or junit.")]
ReportFolder = Annotated[
    Path | None,
    typer.Option("--out", file_okay=False, help="Folder for the report in every format, and its figure."),
]
Margin = Annotated[float, typer.Option(help="Share by which a time must have moved to count.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="End with exit code 4 where something is inconclusive.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    app.command(epilog="Example: retbench compare results/before.jsonl results/after.jsonl --format md")(
        compare
    )


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="File or folder of records to compare with.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="File or folder of records that are judged.")],
    form: ReportFormat = "text",
    out: ReportFolder = None,
    margin: Margin = 0.02,
    accept_soft: Annotated[
        bool,
        typer.Option(
            "--accept-soft",
            help="Judge what has moved although the load, the clocks, the driver or the sitting differ.",
        ),
    ] = False,
    strict: Strict = False,
) -> None:
    """Compare two record sets of one machine: is B slower than A?

    Exit code 1 where something is slower beyond the margin or failed, 3 where the sets differ in what they measured or
    a point is missing on one side, 4 under --strict where something is inconclusive.
    """
    from retbench.commands import compare as command

    shown = command.Shown(form, out, strict)
    raise typer.Exit(command.compare(first, second, shown, margin, accept_soft=accept_soft))
