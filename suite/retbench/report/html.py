"""HTML of the page's parts: sentences, colours, and cells with their sort keys."""

import re
from collections.abc import Iterator

import pandas as pd
from markupsafe import Markup, escape

from retbench.report.cells import Cell
from retbench.report.looks import css_colours
from retbench.report.wording import bind_units


def prose(text: str) -> Markup:
    """Return a sentence as HTML: numbers keep to their units, `text` is code, and [text](#anchor) is a link."""
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(bind_units(text))))
    return Markup(re.sub(r"\[([^\]]+)\]\((#[\w-]+)\)", r'<a href="\2">\1</a>', coded))


def colour_rules() -> dict[str, str]:
    """Return the CSS declarations of the colour variables for the light and the dark page."""
    colours = css_colours()
    return {
        "light": " ".join(f"--{name}: {light};" for name, (light, _) in colours.items()),
        "dark": " ".join(f"--{name}: {dark};" for name, (_, dark) in colours.items()),
    }


def cells(table: pd.DataFrame) -> Iterator[list[tuple[str, str | None]]]:
    """Yield the rows of a table of text, each cell with its sort key in base units; None for one without a number."""
    for row in table.itertuples(index=False, name=None):
        yield [(str(cell), _sort_key(cell)) for cell in row]


def _sort_key(cell: object) -> str | None:
    number = cell.number if isinstance(cell, Cell) else None
    return None if number is None else f"{number:.6g}"
