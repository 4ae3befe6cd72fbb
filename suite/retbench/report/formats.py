"""Formats of tables and sentences: JSON and CSV in base units; Markdown, HTML and LaTeX with readable units."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd
from markupsafe import Markup, escape

from retbench.errors import unknown_name
from retbench.report.cells import Cell, is_missing
from retbench.report.columns import is_numeric
from retbench.report.readable_tables import readable_tables
from retbench.report.wording import bind_units, csv_text


def to_json(frame: pd.DataFrame) -> str:
    """Return a list of objects, one per row; null where there is no number."""
    rows = [
        {name: None if is_missing(item) else item for name, item in row.items()}
        for row in frame.astype(object).to_dict(orient="records")
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """Return a frame of text as a Markdown table: the first column and those of words are flush left."""
    header = [str(column) for column in table.columns]
    rows = [[str(cell) for cell in row] for row in table.itertuples(index=False)]
    numeric = [number > 0 and is_numeric(row[number] for row in rows) for number in range(len(header))]
    rule = ["--:" if right else ":--" for right in numeric]
    return "\n".join(
        "| " + " | ".join(escape_markdown(cell) for cell in row) + " |" for row in [header, rule, *rows]
    )


_MARKDOWN_KEPT = re.compile(r"(`[^`]+`)|\[([^\]]+)\](\(#[\w-]+\))")
"""Code, and links to a part of the page: the Markdown that sentences are written in."""

_MARKDOWN_SPECIAL = re.compile(r"[\\`*]|<(?=[A-Za-z/!?])|\](?=[(\[])|(?<![^\W_])_|_(?![^\W_])")
"""Characters that begin or end markup, where they do: `_` not within a word, `<` not before a number."""

_MARKDOWN_START = re.compile(r"^(?=\d+[.)](?: |$)|[#>=~\[]|[+-](?:[ -]|$))(\d*)")
"""The beginning of a line that would be a heading, a quotation, an item, a fence or a definition."""


def markdown_text(text: str) -> str:
    """Return a sentence for a line of Markdown: its `code` and [links](#anchor), and no other markup or HTML."""
    return _MARKDOWN_START.sub(r"\1\\", _inline_markdown(text, lambda code: code))


def escape_markdown(text: str) -> str:
    """Return a sentence for one cell of a Markdown table, as `markdown_text` does."""
    # GitHub splits rows before it looks for code, and takes the bar after a backslash of the code for a border.
    return _inline_markdown(text, lambda code: _escape_markup(code) if "\\|" in code else code).replace(
        "|", "\\|"
    )


def _inline_markdown(text: str, write_code: Callable[[str], str]) -> str:
    found, end, line = "", 0, re.sub(r"[^\S\u00a0]+", " ", text).strip()
    for part in _MARKDOWN_KEPT.finditer(line):
        code, words, anchor = part.groups()
        found += _escape_markup(line[end : part.start()])
        found += write_code(code) if code else f"[{_escape_markup(words)}]{anchor}"
        end = part.end()
    return found + _escape_markup(line[end:])


def _escape_markup(text: str) -> str:
    return _MARKDOWN_SPECIAL.sub(r"\\\g<0>", text)


def code_block(lines: Sequence[str]) -> str:
    """Return lines as a block of code in Markdown, between fences that none of them closes."""
    found = [" ".join(line.split()) for line in lines]
    fence = "`" * max(3, 1 + max((len(run) for line in found for run in re.findall("`+", line)), default=0))
    return "\n".join([fence, *found, fence])


def html_text(text: str) -> Markup:
    """Return a sentence as HTML: numbers keep to their units, `text` is code, and [text](#anchor) is a link."""
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(bind_units(text))))
    return Markup(re.sub(r"\[([^\]]+)\]\((#[\w-]+)\)", r'<a href="\2">\1</a>', coded))


def html_cells(table: pd.DataFrame) -> Iterator[list[tuple[str, str | None]]]:
    """Yield the rows of a table of text, each cell with its sort key in base units; None for one without a number."""
    for row in table.itertuples(index=False, name=None):
        yield [(str(cell), _sort_key(cell)) for cell in row]


def _sort_key(cell: object) -> str | None:
    number = cell.number if isinstance(cell, Cell) else None
    return None if number is None else f"{number:.6g}"


def to_markdown(frame: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """Return a Markdown table per workload, under its name."""
    blocks = [
        f"### {markdown_text(workload)}\n\n{markdown_table(table.frame)}\n"
        for workload, table in readable_tables(frame, labels).items()
    ]
    return "\n".join(blocks)


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: rf"\{character}" for character in "%&_#${}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "µ": r"\textmu{}",
    }
)


def to_latex(frame: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """Return a tabular per workload, for the package booktabs."""
    blocks = []
    for workload, table in readable_tables(frame, labels).items():
        rows = [list(table.frame.columns), *table.frame.itertuples(index=False)]
        head, *body = (" & ".join(str(cell).translate(_LATEX) for cell in row) + r" \\" for row in rows)
        columns = "l" + "r" * (len(table.columns) - 1)
        begin = [
            f"% {' '.join(workload.split())}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
        ]
        blocks.append("\n".join([*begin, *body, r"\bottomrule", r"\end{tabular}", ""]))
    return "\n".join(blocks)


_WRITERS: dict[str, Callable[[pd.DataFrame, Mapping[str, str]], str]] = {
    "md": to_markdown,
    "csv": lambda frame, _: csv_text(frame),
    "json": lambda frame, _: to_json(frame),
    "latex": to_latex,
}
FORMATS = tuple(_WRITERS)


def render(frame: pd.DataFrame, format: str, labels: Mapping[str, str] | None = None) -> str:
    """Return a table of `tables.table_of` as text that ends in a newline.

    Args:
        frame: The table.
        format: One of `FORMATS`. csv and json keep base units; csv writes NA for an undefined value, json null. md and
            latex write readable units, one table per workload.
        labels: Readable name of each model, for headings.

    Raises:
        ConfigError: the format is unknown.
    """
    if format not in _WRITERS:
        raise unknown_name("table format", format, FORMATS, where="--format")
    return _WRITERS[format](frame, labels or {})
