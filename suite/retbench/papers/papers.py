"""The papers' numbers and the makers' datasheets as typed objects, read from the TOML files of this package.

A sheet is a table or figure, or a part of one: rows and columns of numbers that share source, kind, unit and
conditions. The files have the numbers as printed; `find_number` returns them in base units. A datasheet gives the
ceilings of a device that is not here to be measured.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from retbench.config.dtypes import Dtype
from retbench.errors import ConfigError, UnsupportedError, unknown_name
from retbench.records.record import Ceilings
from retbench.strict import Strict, explain
from retbench.units import PRINTED_UNITS, format_printed, from_printed

Entry = TypeVar("Entry", bound=Strict)
Value = TypeVar("Value")
Kind = Literal["printed", "vector", "read_off", "derived"]
"""printed: a number of the text, a table or a label. vector: from the coordinates of a figure's lines in the PDF.
read_off: from the pixels of a figure. derived: computed from the others."""

KIND_WORDS: dict[Kind, str] = {
    "printed": "printed",
    "vector": "decoded from the PDF",
    "read_off": "read off by its pixels",
    "derived": "derived from the paper's numbers",
}
"""Words for the origin of a number."""


class Conditions(Strict):
    """Conditions of the numbers; what is absent here does not apply, or is named in `not_stated`."""

    size: str | None = None
    """A name in `retbench list --sizes`, if all numbers of the sheet have the same size."""
    hardware: str | None = None
    batch_size: int | None = Field(default=None, ge=1)
    context_len: int | None = Field(default=None, ge=1)
    protocol: str | None = None
    """Procedure, in words."""
    training: str | None = None
    """Training data of the models."""
    not_stated: tuple[str, ...] = ()
    """Conditions that could change the numbers and are nowhere in the paper."""


class Ratio(Strict):
    """A derived row: row `top` over row `bottom`, column by column."""

    top: str
    """SHEET/ROW of the same paper."""
    bottom: str
    saved: bool = False
    """If true, the share that is saved: 1 - top / bottom."""


class Sheet(Strict):
    """Numbers of one source."""

    source: str
    """Table or figure."""
    kind: Kind
    metric: str
    """Quantity that the numbers measure."""
    unit: str
    """Printed unit; a name in `units.PRINTED_UNITS`."""
    columns: tuple[str, ...] = Field(min_length=1)
    rows: dict[str, tuple[float, ...]] = Field(min_length=1)
    conditions: Conditions = Conditions()
    doubts: tuple[str, ...] = ()
    """Reasons to doubt the numbers, a sentence each."""
    averages: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Columns that are the mean of others."""
    ratios: dict[str, Ratio] = Field(default_factory=dict)
    """Origin of the rows of a derived sheet."""
    derivation: str | None = None
    """The origin in words, where rows are no ratios."""

    @model_validator(mode="after")
    def _consistent(self) -> "Sheet":
        if self.unit not in PRINTED_UNITS:
            raise ValueError(f"unit is {self.unit!r}. Use one of {', '.join(PRINTED_UNITS)}")
        for row, values in self.rows.items():
            if len(values) != len(self.columns):
                raise ValueError(f"row '{row}' has {len(values)} numbers for {len(self.columns)} columns")
        parts = {part for parts in self.averages.values() for part in parts}
        if strange := sorted((parts | self.averages.keys()) - set(self.columns)):
            raise ValueError(f"averages name '{strange[0]}', which is not a column")
        is_derived = self.derivation is not None or self.ratios.keys() == self.rows.keys()
        if is_derived != (self.kind == "derived"):
            raise ValueError("only a derived sheet has ratios or a derivation, and it needs one of them")
        return self


class Paper(Strict):
    """Printed numbers of one paper: one file."""

    name: str
    title: str
    arxiv: str
    origin: str
    """Origin of the numbers in the file, and their error."""
    sheets: dict[str, Sheet] = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_exist(self) -> "Paper":
        for name, sheet in self.sheets.items():
            for place in (place for ratio in sheet.ratios.values() for place in (ratio.top, ratio.bottom)):
                source, _, row = place.partition("/")
                if source not in self.sheets or row not in self.sheets[source].rows:
                    raise ValueError(
                        f"sheet '{name}' is derived from '{place}', which is not a SHEET/ROW of this file"
                    )
        return self


@dataclass(frozen=True)
class Number:
    """One number of a paper, with what its sheet says about it."""

    place: str
    """PAPER/SHEET/ROW/COLUMN."""
    value: float
    unit: str
    """Base unit of the value."""
    printed: str
    """Printed value with its unit."""
    source: str
    """Paper and table or figure, in words."""
    kind: Kind
    metric: str
    """Quantity that the number measures."""
    conditions: Conditions
    doubts: tuple[str, ...]
    origin: str
    """Paper, and the origin of its numbers."""


MODEL_TITLES = {
    "ar_hit": "AR-Hit",
    "based": "Based",
    "chatglm3_128k": "ChatGLM3 128K",
    "deltanet": "DeltaNet",
    "deltanet_global": "DeltaNet with global attention",
    "deltanet_window": "DeltaNet with window attention",
    "gated_deltanet": "Gated DeltaNet",
    "gated_deltanet_h1": "Gated DeltaNet-H1",
    "gated_deltanet_h2": "Gated DeltaNet-H2",
    "gated_retnet": "gated RetNet",
    "gla": "GLA",
    "gla_convolution": "GLA with convolution",
    "gpt4_128k": "GPT-4 128K",
    "h3": "H3",
    "h3_with_s6": "H3 with S6",
    "hgrn2": "HGRN2",
    "hybrid_h3": "hybrid H3",
    "hyena": "Hyena",
    "linear_transformer": "Linear Transformer",
    "lwm": "LWM",
    "mamba": "Mamba",
    "mamba2": "Mamba-2",
    "mamba2_attention": "Mamba-2 with attention",
    "mamba2_n16": "Mamba-2, N = 16",
    "mamba2_n256": "Mamba-2, N = 256",
    "mamba2_n64": "Mamba-2, N = 64",
    "minicpm_128k": "MiniCPM 128K",
    "of_flash": "of the Transformer with FlashAttention",
    "of_transformer": "of the Transformer",
    "openllama_3b_v2": "OpenLLaMA 3B v2",
    "over_flash": "over the Transformer with FlashAttention",
    "over_transformer": "over the Transformer",
    "pythia": "Pythia",
    "rwkv": "RWKV",
    "rwkv4": "RWKV-4",
    "s4": "S4",
    "s6": "S6",
    "samba": "Samba",
    "stablelm_alpha_3b_v2": "StableLM-Alpha 3B v2",
    "transformer++": "Transformer++",
    "transformer_flash": "Transformer with FlashAttention",
    "yarn_mistral": "YaRN-Mistral",
    "yoco": "YOCO",
    "yoco_1_6t": "YOCO, 1.6T tokens",
    "yoco_1m_tokens": "YOCO, 1M context",
    "yoco_1t": "YOCO, 1T tokens",
    "yoco_3b": "YOCO 3B",
    "yoco_gated_retnet": "YOCO with gated retention",
    "yoco_swa": "YOCO with sliding windows",
}
"""Proper names of rows and columns, and of architectures that claims await."""

RETNET_PAPER = "retnet"
"""Name of the file with the numbers of arXiv:2307.08621."""


def read_data(name: str) -> str:
    """Return the text of a file of this package."""
    return resources.files("retbench.papers").joinpath(name).read_text(encoding="utf-8")


def validate(model: type[Entry], name: str, fields: Mapping[str, Any], where: str) -> Entry:
    """Return a named table as an object; ConfigError, which names the place, where it is invalid."""
    try:
        return model.model_validate({"name": name, **fields})
    except ValidationError as error:
        raise ConfigError(explain(error, model, where)) from error


@cache
def load_papers() -> dict[str, Paper]:
    """Return every paper by name; ConfigError, which names the place, where a file is invalid."""
    files = sorted(item.name for item in resources.files("retbench.papers").joinpath("printed").iterdir())
    names = [name.removesuffix(".toml") for name in files if name.endswith(".toml")]
    return {name: parse_paper(name, read_data(f"printed/{name}.toml")) for name in names}


def parse_paper(name: str, text: str) -> Paper:
    """Return the paper of a TOML text; ConfigError where it holds something unknown, missing or contradictory."""
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}.toml: not valid TOML: {error}. Correct the file there.") from error
    return validate(Paper, name, fields, f"{name}.toml")


def _find(kind: str, name: str, table: Mapping[str, Value], place: str) -> Value:
    if name not in table:
        raise unknown_name(kind, name, table, where=place)
    return table[name]


def find_number(place: str) -> Number:
    """Return the number at PAPER/SHEET/ROW/COLUMN in its base unit; ConfigError with a suggestion if there is none."""
    parts = place.split("/")
    if len(parts) != 4:
        raise ConfigError(f"'{place}' is not a number of a paper. Use PAPER/SHEET/ROW/COLUMN.")
    name, sheet_name, row, column = parts
    paper = _find("paper", name, load_papers(), place)
    sheet = _find("sheet", sheet_name, paper.sheets, place)
    values = _find("row", row, sheet.rows, place)
    if column not in sheet.columns:
        raise unknown_name("column", column, sheet.columns, where=place)
    as_printed = values[sheet.columns.index(column)]
    value, unit = from_printed(as_printed, sheet.unit)
    title = f"{paper.title} (arXiv:{paper.arxiv})"
    printed = format_printed(as_printed, sheet.unit)
    return Number(
        place=place,
        value=value,
        unit=unit,
        printed=printed,
        source=f"{title} {sheet.source}",
        kind=sheet.kind,
        metric=sheet.metric,
        conditions=sheet.conditions,
        doubts=sheet.doubts,
        origin=f"{title}: {paper.origin}",
    )


class Datasheet(Strict):
    """Figures that the maker states of one device."""

    name: str
    title: str
    source: str
    memory_bytes: int = Field(ge=1)
    """Memory by the maker's count."""
    usable_bytes: int = Field(ge=1)
    """Memory that the driver exposes to a process."""
    usable_source: str
    read_bandwidth_bytes_per_s: float = Field(gt=0)
    matmul_flops_per_s: dict[Dtype, float]
    """Rate of dense matrix products by dtype."""
    kernel_s: float = Field(gt=0)
    """Seconds per kernel of a replayed CUDA graph, beside what its bytes take. No datasheet has it."""
    kernel_source: str

    def ceilings(self, dtype: str) -> Ceilings:
        """Return the stated ceilings at a dtype; UnsupportedError where the datasheet has none."""
        rates: dict[str, float] = dict(self.matmul_flops_per_s.items())
        if dtype not in rates:
            raise UnsupportedError(
                f"the datasheet of {self.title} has no rate of products in {dtype}. Give one of {', '.join(rates)}."
            )
        bandwidth = self.read_bandwidth_bytes_per_s
        return Ceilings(read_bandwidth_bytes_per_s=bandwidth, matmul_flops_per_s=rates[dtype])


@cache
def load_datasheets() -> dict[str, Datasheet]:
    """Return every datasheet by the name of its device; ConfigError where the file is invalid."""
    tables = tomllib.loads(read_data("datasheets.toml"))
    return {name: validate(Datasheet, name, fields, "datasheets.toml") for name, fields in tables.items()}


def find_datasheet(name: str) -> Datasheet:
    """Return the datasheet of a device; ConfigError with a suggestion if there is none."""
    sheets = load_datasheets()
    if name not in sheets:
        raise unknown_name("device", name, [*sheets, "cpu", "cuda"], where="--device")
    return sheets[name]
