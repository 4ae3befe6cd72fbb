"""Tables and sentences in Markdown; nothing here imports pandas, which takes a second to load."""

import re
from collections.abc import Callable, Sequence

from retbench.report.tables.aligned_text import is_numeric


def markdown_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as a Markdown table: the first column and those of words are flush left."""
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
