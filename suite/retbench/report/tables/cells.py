"""Cells and columns of tables for people: texts that carry the numbers that they show, and what a column is about."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import pandas as pd

from retbench.report.tables.aligned_text import NONE
from retbench.units import (
    format_bytes,
    format_energy,
    format_number,
    format_percent,
    format_power,
    format_rate,
    format_seconds,
    format_tokens,
    stated_unit,
)

Kind = Literal["key", "value", "comparison"]


class TableCell(str):
    """Text of a cell of a table, with the number that it shows: a page sorts the rows by it."""

    number: float | None
    """In base units; None for a text without a number."""

    def __new__(cls, text: str, number: float | None = None) -> Self:
        """Return a text that carries a number."""
        cell = super().__new__(cls, text)
        cell.number = number
        return cell


@dataclass(frozen=True)
class Column:
    """A column of a table for people.

    Attributes:
        heading: Unique in its table.
        kind: A key says what a row is about, a value is measured, and a comparison is with the reference.
        model: The model of the numbers; None where the model is that of the row, or there is none.
        metric: The column in base units that is shown; None where that differs between rows.
    """

    heading: str
    kind: Kind = "value"
    model: str | None = None
    metric: str | None = None


TableLine = dict[Column, str]


@dataclass(frozen=True)
class ReadableTable:
    """A table for people: its columns, and its cells as a frame with their headings."""

    columns: tuple[Column, ...]
    frame: pd.DataFrame


def is_missing(value: object) -> bool:
    """Return whether a table has no value here."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def number_of(value: object) -> float | None:
    """Return the number in a cell of a table; None for a text, and where there is no value."""
    return None if is_missing(value) or not isinstance(value, int | float) else float(value)


def number_cell(value: float | None, write: Callable[[float], str]) -> str:
    """Return a number as a cell; a dash where there is none."""
    return NONE if value is None else TableCell(write(value), value)


def plain_cell(value: object) -> str:
    """Return a text or a whole number as a cell; a dash where there is none."""
    return NONE if is_missing(value) else TableCell(str(value), number_of(value))


def length_cell(num_tokens: float) -> str:
    """Return a context length as a cell: '32K'."""
    return TableCell(format_tokens(int(num_tokens)), num_tokens)


def key_cells(**cells: str) -> TableLine:
    """Return the cells that say what a row is about, by their headings."""
    return {Column(heading, "key"): cell for heading, cell in cells.items()}


_FORMATS: dict[str | None, Callable[[float], str]] = {
    "bytes": format_bytes,
    "ratio": format_percent,
    "J": format_energy,
    "W": format_power,
    "s": format_seconds,
}
"""Formats of numbers by base unit."""


def format_metric(name: str, number: float, unit: str | None = None) -> str:
    """Return a number of a metric with its unit, given the base unit; by default the one that the name states."""
    if name == "context_len":
        return format_tokens(int(number))
    unit = unit or stated_unit(name)
    if number >= 1000 and (unit == "count" or name == "batch_size"):
        return f"{number:,.0f}"
    if unit and unit.endswith("/s"):
        return format_rate(number, "").strip()
    return _FORMATS.get(unit, format_number)(number)
