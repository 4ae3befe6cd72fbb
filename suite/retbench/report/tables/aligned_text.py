"""Tables of text in aligned columns, as wide as a terminal where there is one: nothing is ever cut off."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from textwrap import wrap

from retbench.errors import printable

_GAP = 2
_PROSE = 28
"""Characters beyond which a text with spaces is prose, which may continue on another line: more than an interval has
whose ends have units of their own, `1.05 ms [987 µs, 1.12 ms]`."""
NONE = "–"
"""Text of a cell without a value."""
_NARROWEST = 8
"""Least characters of a column, however narrow the terminal is."""


def align_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, *, keys: int = 1
) -> list[str]:
    """Return the lines of a table: columns as wide as their longest entry, numbers right-aligned.

    A table that is wider than `width` gets its headings and its prose on several lines. If that is not enough, its
    columns are shown in several blocks, with the first columns repeated in each.

    Args:
        header: Headings.
        rows: Cells of each row; as many as there are headings.
        width: Characters of a line; None for lines that are never folded.
        keys: Columns that say what a row is about.
    """
    cells = [[printable(text) for text in row] for row in rows]
    columns = [list(column) for column in zip(header, *cells, strict=True)] if rows else []
    full = [max(map(len, column)) for column in columns]
    if width is None or _total(full) <= width:
        return _lines(columns, full)
    least = [_least_width(column, width) for column in columns]
    lines: list[str] = []
    for block in _blocks(least, width, keys):
        shown = [columns[at] for at in block]
        narrow, whole = [least[at] for at in block], [full[at] for at in block]
        # Two ways to use the line: short columns whole and the rest for one long column, or all folded alike.
        folded = [
            _lines(shown, _widen(start, whole, width)) for start in (narrow, _even(shown, narrow, width))
        ]
        lines += [*([""] if lines else []), *min(folded, key=len)]
    return lines


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _least_width(column: Sequence[str], width: int) -> int:
    """Return the fewest characters in which a column can be read: whole numbers and names, folded prose."""
    heading, *cells = column
    words = max(map(len, heading.split()), default=0)
    longest = max(map(len, cells))
    if longest > _PROSE and any(" " in text for text in cells):
        longest = max(_PROSE, *(len(word) for text in cells for word in text.split()))
    return min(max(words, longest), max(width // 2, _NARROWEST))


def _blocks(least: Sequence[int], width: int, keys: int) -> list[list[int]]:
    """Return the numbers of the columns of each block."""
    lead = list(range(min(keys, len(least))))
    blocks = [list(lead)]
    for at in range(len(lead), len(least)):
        if len(blocks[-1]) > len(lead) and _total([least[one] for one in (*blocks[-1], at)]) > width:
            blocks.append(list(lead))
        blocks[-1].append(at)
    return blocks


def _even(columns: Sequence[Sequence[str]], least: Sequence[int], width: int) -> list[int]:
    """Return the widths `least`, widened until the entry with the most lines cannot have fewer."""
    widths, left = list(least), width - _total(least)
    while True:
        tallest, at = max((_most_lines(column, widths[at]), at) for at, column in enumerate(columns))
        fewer = (by for by in range(1, left + 1) if _most_lines(columns[at], widths[at] + by) < tallest)
        more = next(fewer, None)
        if more is None:
            return widths
        widths[at] += more
        left -= more


def _most_lines(column: Sequence[str], width: int) -> int:
    return max(len(wrap(text, width)) for text in column)


def _widen(least: Sequence[int], full: Sequence[int], width: int) -> list[int]:
    """Return widths that use the whole line: columns that need little more get it first."""
    widths, left = list(least), width - _total(least)
    for at in sorted(range(len(widths)), key=lambda at: full[at] - least[at]):
        more = min(full[at] - widths[at], left)
        if more > 0:
            widths[at] += more
            left -= more
    while left < 0 and max(widths) > _NARROWEST:  # the first columns alone are too wide
        widths[widths.index(max(widths))] -= 1
        left += 1
    return widths


def is_numeric(cells: Iterable[str]) -> bool:
    """Return whether a column holds only short texts that begin with a digit, and empty ones."""
    return all(map(_is_number, filter(None, cells)))


def _is_number(text: str) -> bool:
    return (len(text) <= _PROSE and text.lstrip("+-<~ ")[:1].isdigit()) or text == NONE


def _lines(columns: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Return heading and rows, each folded where an entry is wider than its column."""
    numeric = [is_numeric(column[1:]) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        folded = [wrap(text, width) or [""] for text, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            cells = [
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(parts, widths, numeric, strict=True)
            ]
            lines.append((" " * _GAP).join(cells).rstrip())
    return lines
