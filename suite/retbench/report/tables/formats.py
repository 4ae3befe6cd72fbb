"""Formats of tables and sentences: JSON and CSV in base units; Markdown, HTML and LaTeX with readable units."""

import json
import re
from collections.abc import Callable, Iterator, Mapping

import pandas as pd
from markupsafe import Markup, escape

from retbench.errors import unknown_name
from retbench.report.tables.cells import TableCell, is_missing
from retbench.report.tables.markdown import markdown_rows, markdown_text
from retbench.report.tables.readable import readable_tables
from retbench.report.wording import bind_units, csv_text


def to_json(frame: pd.DataFrame) -> str:
    """Return a list of objects, one per row; null where there is no number."""
    rows = [
        {name: None if is_missing(item) else item for name, item in row.items()}
        for row in frame.astype(object).to_dict(orient="records")
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """Return a frame of text as a Markdown table, as `markdown_rows` does."""
    rows = [[str(cell) for cell in row] for row in table.itertuples(index=False)]
    return markdown_rows([str(column) for column in table.columns], rows)


def html_text(text: str) -> Markup:
    """Return a sentence as HTML: numbers keep to their units, `text` is code, and [text](#anchor) is a link."""
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(bind_units(text))))
    return Markup(re.sub(r"\[([^\]]+)\]\((#[\w-]+)\)", r'<a href="\2">\1</a>', coded))


def html_cells(table: pd.DataFrame) -> Iterator[list[tuple[str, str | None]]]:
    """Yield the rows of a table of text, each cell with its sort key in base units; None for one without a number."""
    for row in table.itertuples(index=False, name=None):
        yield [(str(cell), _sort_key(cell)) for cell in row]


def _sort_key(cell: object) -> str | None:
    number = cell.number if isinstance(cell, TableCell) else None
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
    """Return a table of `experiments.table_of` as text that ends in a newline.

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
