"""Output of the commands: tables for a terminal or as Markdown, sentences, or one JSON object."""

import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from retbench.errors import printable, unknown_name
from retbench.report.tables.aligned_text import align_columns
from retbench.report.tables.markdown import markdown_rows

WIDEST_PROSE = 100
"""Characters of a line of prose on a wide terminal."""


def terminal_width() -> int | None:
    """Return the characters of a line where stdout is a terminal; None where it is not."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def output_format(
    given: str | None,
    known: Sequence[str] = ("text", "md", "json"),
    *,
    as_json: bool = False,
    elsewhere: str = "md",
) -> str:
    """Return the format of a command's output: as given, else text on a terminal, and `elsewhere` in a pipe.

    Raises:
        ConfigError: the format is unknown, or contradicts --json.
    """
    if as_json and given not in (None, "json"):
        raise typer.BadParameter(f"--json and --format {given} contradict each other. Give one of them.")
    if given is not None and given not in known:
        raise unknown_name("format", given, known, where="--format")
    return "json" if as_json else given or (elsewhere if terminal_width() is None else "text")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], form: str, *, keys: int = 1) -> None:
    """Print rows in aligned columns that fit the terminal (text), or as a Markdown table (md).

    Args:
        header: Headings.
        rows: Cells of each row.
        form: text or md.
        keys: First columns, which say what a row is about.
    """
    if not rows:
        return
    if form == "text":
        typer.echo("\n".join(align_columns(header, rows, terminal_width(), keys=keys)))
        return
    typer.echo(markdown_rows(header, [[*map(printable, row)] for row in rows]))


def same_reasons(reasons: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """Return each reason once, after the names that it holds for; names without a reason are left out."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        if reason:
            names.setdefault(reason, []).append(name)
    return [(", ".join(found), reason) for reason, found in names.items()]


def print_prose(text: str) -> None:
    """Print a paragraph, folded on a terminal."""
    width = terminal_width()
    typer.echo(
        text if width is None else textwrap.fill(text, min(width, WIDEST_PROSE), break_on_hyphens=False)
    )


def print_nothing(text: str, form: str, **fields: Any) -> None:
    """Print why there is nothing to do, as a sentence or as the note of one JSON object."""
    if form == "json":
        print_json({**fields, "note": text})
    else:
        print_prose(f"{text[0].upper()}{text[1:]}")


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object, indented; raise ValueError for NaN and infinity, which JSON does not have."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
