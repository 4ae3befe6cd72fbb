"""Output of the commands: rows in aligned columns, or one JSON object."""

import json
from collections.abc import Sequence
from typing import Any

import typer

from retbench.errors import printable


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as their longest entry, numbers right-aligned, the last column unpadded.

    Lines are never folded or cut, so that a program that reads them gets them whole.
    """
    if not rows:
        return
    rows = [[printable(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    right_aligned = [
        all(row[index][:1].isdigit() for row in rows if row[index]) for index in range(len(header))
    ]
    for row in [header, *rows]:
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, right_aligned, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object, indented; raise ValueError for NaN and infinity, which JSON does not have."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
