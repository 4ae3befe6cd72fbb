"""The papers' numbers as typed objects, read from the TOML files beside this module.

A sheet is a table or figure, or a part of one: rows and columns of numbers that share source, kind, unit and
conditions. Numbers stand in the files as the papers have them, and leave here in base units.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from retbench.errors import ConfigError, unknown_name
from retbench.strict import Strict, explain
from retbench.units import PRINTED_UNITS, format_printed, from_printed

Kind = Literal["printed", "read_off", "third_party", "derived"]
"""printed: a number of the text, a table or a label. read_off: from a figure, by its pixels. third_party: from a figure
that was not seen here, by somebody's eye. derived: arithmetic on the others."""

KIND_WORDS: dict[Kind, str] = {
    "printed": "printed",
    "read_off": "read off by its pixels",
    "third_party": "read off by others",
    "derived": "derived from the paper's numbers",
}
"""How a number came to be, in words."""


class Conditions(Strict):
    """Under which numbers were taken; what is absent here does not apply, or is named in `not_stated`."""

    size: str | None = None
    """A name in `retbench list --sizes`, where all numbers of the sheet are of one."""
    hardware: str | None = None
    batch_size: int | None = Field(default=None, ge=1)
    context_len: int | None = Field(default=None, ge=1)
    protocol: str | None = None
    """What was done, in words."""
    training: str | None = None
    """What the models were trained on."""
    not_stated: tuple[str, ...] = ()
    """What could move the numbers and is nowhere in the paper."""


class Ratio(Strict):
    """How a derived row comes from two others: `top` over `bottom`, column by column."""

    top: str
    """SHEET/ROW of the same paper."""
    bottom: str
    saved: bool = False
    """The share that is saved: 1 - top / bottom."""


class Sheet(Strict):
    """Numbers of one source."""

    source: str
    """Table or figure."""
    kind: Kind
    metric: str
    """What the numbers are."""
    unit: str
    """As printed; a name in `units.PRINTED_UNITS`."""
    columns: tuple[str, ...] = Field(min_length=1)
    rows: dict[str, tuple[float, ...]] = Field(min_length=1)
    conditions: Conditions = Conditions()
    doubts: tuple[str, ...] = ()
    """What keeps the numbers from being taken at their word, a sentence each."""
    averages: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Columns that are the mean of others."""
    ratios: dict[str, Ratio] = Field(default_factory=dict)
    """Of a derived sheet: where its rows come from."""
    derivation: str | None = None
    """The same in words, where rows are no ratios."""

    @model_validator(mode="after")
    def _whole(self) -> "Sheet":
        if self.unit not in PRINTED_UNITS:
            raise ValueError(f"unit is {self.unit!r}, and known are {', '.join(PRINTED_UNITS)}")
        for row, values in self.rows.items():
            if len(values) != len(self.columns):
                raise ValueError(f"row '{row}' has {len(values)} numbers for {len(self.columns)} columns")
        parts = {part for parts in self.averages.values() for part in parts}
        if strange := sorted((parts | self.averages.keys()) - set(self.columns)):
            raise ValueError(f"averages name '{strange[0]}', which is no column")
        is_derived = self.derivation is not None or self.ratios.keys() == self.rows.keys()
        if is_derived != (self.kind == "derived"):
            raise ValueError("a derived sheet, and no other, says where its rows come from")
        return self


class Paper(Strict):
    """One file: what one paper prints."""

    name: str
    title: str
    arxiv: str
    trust: str
    """How the numbers came into the file."""
    sheets: dict[str, Sheet] = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_exist(self) -> "Paper":
        for name, sheet in self.sheets.items():
            for place in (place for ratio in sheet.ratios.values() for place in (ratio.top, ratio.bottom)):
                source, _, row = place.partition("/")
                if source not in self.sheets or row not in self.sheets[source].rows:
                    raise ValueError(f"sheet '{name}' is derived from '{place}', which is no SHEET/ROW here")
        return self


@dataclass(frozen=True)
class Number:
    """One number of a paper.

    Attributes:
        place: PAPER/SHEET/ROW/COLUMN.
        value: In the base unit.
        unit: The base unit.
        printed: As the paper has it, with its unit.
        source: Paper and table or figure, in words.
        kind: How it came to be.
        conditions: Under which it was taken.
        doubts: What keeps it from being taken at its word.
    """

    place: str
    value: float
    unit: str
    printed: str
    source: str
    kind: Kind
    conditions: Conditions
    doubts: tuple[str, ...]


@cache
def load_papers() -> dict[str, Paper]:
    """Every paper by its name.

    Raises:
        ConfigError: a file is not what it should be; the message names the place.
    """
    files = sorted(
        (
            item
            for item in resources.files("retbench.papers").joinpath("printed").iterdir()
            if item.name.endswith(".toml")
        ),
        key=lambda item: item.name,
    )
    return {
        item.name.removesuffix(".toml"): parse_paper(
            item.name.removesuffix(".toml"), item.read_text(encoding="utf-8")
        )
        for item in files
    }


def parse_paper(name: str, text: str) -> Paper:
    """The paper that a TOML text holds.

    Raises:
        ConfigError: it is not TOML, or holds something unknown, missing or contradictory.
    """
    try:
        return Paper.model_validate({"name": name, **tomllib.loads(text)})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}.toml: not valid TOML: {error}. Mend the file at that place.") from error
    except ValidationError as error:
        raise ConfigError(explain(error, Paper, f"{name}.toml")) from error


def find_number(place: str) -> Number:
    """The number at PAPER/SHEET/ROW/COLUMN, in its base unit; ConfigError with a suggestion when there is none."""
    parts = place.split("/")
    if len(parts) != 4:
        raise ConfigError(f"'{place}' is no number of a paper. Give PAPER/SHEET/ROW/COLUMN.")
    name, sheet_name, row, column = parts
    papers = load_papers()
    if name not in papers:
        raise unknown_name("paper", name, papers, where=place)
    paper = papers[name]
    if sheet_name not in paper.sheets:
        raise unknown_name("sheet", sheet_name, paper.sheets, where=place)
    sheet = paper.sheets[sheet_name]
    if row not in sheet.rows:
        raise unknown_name("row", row, sheet.rows, where=place)
    if column not in sheet.columns:
        raise unknown_name("column", column, sheet.columns, where=place)
    as_printed = sheet.rows[row][sheet.columns.index(column)]
    value, unit = from_printed(as_printed, sheet.unit)
    source = f"{paper.title} (arXiv:{paper.arxiv}) {sheet.source}"
    printed = format_printed(as_printed, sheet.unit)
    return Number(place, value, unit, printed, source, sheet.kind, sheet.conditions, sheet.doubts)
