"""Arguments and options that several commands share."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def not_empty(value: str | None) -> str | None:
    """Refuse an empty value, which would count as an option that was left out."""
    if value == "":
        raise typer.BadParameter("it is empty. Give a value, or leave the option out.")
    return value


def read_path(given: str | Path) -> Path:
    """Return a path, as the parser of a parameter; refuse an empty one, which would be the current folder."""
    if not str(given):
        raise typer.BadParameter("it is empty. Give a path; '.' is the current folder.")
    return Path(given)


def read_folder(given: str | Path) -> Path:
    """Return the path of a folder that need not exist, as the parser of a parameter."""
    path = read_path(given)
    if os.path.isfile(path):  # unlike Path.is_file, false for a name too long to exist
        raise typer.BadParameter(f"'{path}' is a file. Give a folder.")
    return path


def read_existing_folder(given: str | Path) -> Path:
    """Return the path of a folder that exists, as the parser of a parameter."""
    path = read_folder(given)
    if not os.path.isdir(path):
        raise typer.BadParameter(f"'{path}' does not exist. Give a folder.")
    return path


def read_file(given: str | Path) -> Path:
    """Return the path of a file that need not exist, as the parser of a parameter."""
    if not str(given):
        raise typer.BadParameter("it is empty. Give a file.")
    if os.path.isdir(given):
        raise typer.BadParameter(f"'{given}' is a folder. Give a file.")
    return Path(given)


def given_options(call: typer.Context) -> list[str]:
    """Return the options that were given on the command line, as they are written."""
    sources = {one: call.get_parameter_source(one.name or "") for one in call.command.params}
    return [one.opts[0] for one, source in sources.items() if source and source.name == "COMMANDLINE"]


LARGEST = 2**40
"""Largest number of tokens, or of sequences, that an option takes."""


def read_counts(given: Sequence[str], option: str) -> list[int]:
    """Return numbers of tokens or sequences: each value is a number, a list '1K,8K', or '1K-32K', which doubles.

    Raises:
        ConfigError: a value is none of these, or out of range; the message names the option.
    """
    from retbench.errors import ConfigError, shown

    found: list[int] = []
    for text in given:
        if re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+", text):
            whole = text.replace(",", "")
            raise ConfigError(
                f"{option} {shown(text)} is one number or several. Give {whole}, or the option once per number."
            )
        for part in text.split(","):
            ends = [_count(end, text, option) for end in part.split("-", 1)]
            if ends[0] > ends[-1]:
                first, last = part.split("-", 1)
                raise ConfigError(
                    f"{option} {shown(text)}: a range begins with its least number. Give {last}-{first}."
                )
            while ends[0] < ends[-1]:
                found.append(ends[0])
                ends[0] *= 2
            found.append(ends[-1])
    return list(dict.fromkeys(found))


def _count(text: str, given: str, option: str) -> int:
    from retbench.errors import ConfigError, shown

    try:
        return read_count(text)
    except typer.BadParameter:
        raise ConfigError(
            f"{option} {shown(given)}: give numbers from 1 on, as 8192, 8K, 1K,8K or 1K-32K (doubling)."
        ) from None


def read_count(text: str | int) -> int:
    """Return one number of tokens, as the parser of an option; raise typer.BadParameter for anything else."""
    from retbench.units import read_tokens

    try:
        count = read_tokens(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not 1 <= count <= LARGEST:
        allowed = "1 or more" if count < 1 else f"at most {LARGEST:,}"
        raise typer.BadParameter(f"{text} is out of range. Give {allowed}.")
    return count


def complete_experiment(incomplete: str) -> list[str]:
    """Return the names of experiments that begin with a text, for the completion of a shell."""
    from retbench.config.experiment_files import list_experiments

    return [name for name in list_experiments() if name.startswith(incomplete)]


def complete_profile(call: typer.Context, incomplete: str) -> list[str]:
    """Return the names of profiles that begin with a text: those of the experiment that was typed before."""
    from retbench.config.experiment_files import load_experiment
    from retbench.errors import RetbenchError

    try:
        known = [*load_experiment(str(call.params.get("experiment"))).profiles]
    except RetbenchError:
        known = ["smoke", "cpu", "paper"]
    return [name for name in known if name.startswith(incomplete)]


def complete_size(incomplete: str) -> list[str]:
    """Return the names of sizes that begin with a text in upper or lower case."""
    from retbench.architectures.sizes import SIZES
    from retbench.units import format_size

    return [format_size(name) for name in SIZES if name.startswith(incomplete.lower())]


def complete_model(incomplete: str) -> list[str]:
    """Return the names of models that begin with a text."""
    from retbench.architectures.registry import named_specs

    return [name for name in named_specs() if name.startswith(incomplete)]


ExperimentName = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        autocompletion=complete_experiment,
        help="A name from `retbench list`, or the path of a TOML file.",
    ),
]
ResultsPath = Annotated[
    Path,
    typer.Option("--results", metavar="PATH", parser=read_path, help="Folder or file of records to read."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Short for --format json.")]


def format_option(*formats: str) -> Any:
    """Return the option of the output's format."""
    text = "By default text on a terminal, else md (Markdown)."
    metavar = f"[{'|'.join(formats)}]"
    return typer.Option("--format", metavar=metavar, autocompletion=lambda: formats, help=text)


OutputFormat = Annotated[str | None, format_option("text", "md", "json")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        parser=read_existing_folder,
        help="Folder of corpora, tokenizers and tasks; by default that of RETBENCH_DATA.",
    ),
]
NAMED_MODEL: Any = typer.Argument(
    metavar="MODEL", autocompletion=complete_model, help="A name from `retbench list --models`."
)
DEVICES = "[cpu|cuda|cuda:N]"
DeviceName = Annotated[
    str | None,
    typer.Option("--device", metavar=DEVICES, help="By default the first GPU, else the CPU."),
]


DTYPES = ("float32", "bfloat16", "float16", "float64")


def dtype_option(help: str) -> Any:
    """Return the option of a dtype."""
    return typer.Option(
        "--dtype",
        metavar="DTYPE",
        help=f"[{'|'.join(DTYPES)}], or fp32, bf16, fp16. {help}".rstrip(),
        autocompletion=lambda: DTYPES,
    )


ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="[smoke|cpu|paper|...]",
        callback=not_empty,
        autocompletion=complete_profile,
        help="One of the experiment. By default its only one; of several, paper on a GPU of 70 GB or more, else cpu.",
    ),
]
SizeName = Annotated[
    str,
    typer.Option(
        "--size", metavar="SIZE", autocompletion=complete_size, help="A name from `retbench list --sizes`."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a field of the profile or of models.NAME; models=[A,B] keeps only these.",
    ),
]


ShardName = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Carry out part I of N only. Copying the results together merges."
    ),
]


def new_app(**settings: bool | str) -> typer.Typer:
    """Return the typer app of one command's module."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, **settings)  # type: ignore[arg-type]
