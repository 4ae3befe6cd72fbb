"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer


def not_empty(value: str | None) -> str | None:
    """Refuse an empty value, which would count as an option that was left out."""
    if value == "":
        raise typer.BadParameter("it is empty. Give a value, or leave the option out.")
    return value


def given_options(call: typer.Context) -> list[str]:
    """Return the options that were given on the command line, as they are written."""
    sources = {one: call.get_parameter_source(one.name or "") for one in call.command.params}
    return [one.opts[0] for one, source in sources.items() if source and source.name == "COMMANDLINE"]


ExperimentName = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="A name from `retbench list`, or the path of a TOML file.")
]
ResultsPath = Annotated[Path, typer.Option("--results", help="Folder or file of records to read.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        exists=True,
        file_okay=False,
        help="Folder of corpora, tokenizers and tasks; by default that of RETBENCH_DATA.",
    ),
]
DeviceName = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:N; by default the first GPU, else the CPU.")
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        callback=not_empty,
        help="smoke, cpu or paper; by default paper on a GPU of 70 GB or more, else cpu.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a field of the profile or of models.NAME."),
]


def new_app(**settings: bool | str) -> typer.Typer:
    """Return the typer app of one command's module."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, **settings)  # type: ignore[arg-type]
