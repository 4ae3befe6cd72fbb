"""Tables for people: cells of text, one table per workload, with readable units."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import pandas as pd

from retbench.report.tables.aligned_text import NONE
from retbench.report.tables.cells import (
    Column,
    ReadableTable,
    TableCell,
    TableLine,
    format_metric,
    is_missing,
    number_of,
)
from retbench.report.tables.experiments import (
    COST_LEAD,
    PAIRED_ROUNDS,
    POINT_COLUMNS,
    QUALITY_LEAD,
    RATIO,
    REFERENCE,
    UNPAIRED,
)
from retbench.report.tables.readable_scores import Row, score_lines
from retbench.report.wording import describe_status, with_interval
from retbench.units import stated_unit
from retbench.workloads.workload import WORKLOADS, Workload

_RATIO_OF = {"s": "time ", "bytes": "memory "}
_OPTIONAL_KEYS = ("seed", "protocol", "shots", "pairs")


def readable_tables(frame: pd.DataFrame, labels: Mapping[str, str] | None = None) -> dict[str, ReadableTable]:
    """Return a table of `experiments.table_of` for people: one table of text per workload, with readable units.

    Args:
        frame: The table.
        labels: Readable name of each model, for the heading of the ratio to the reference; its name without them.
    """
    tables: dict[str, ReadableTable] = {}
    for name, part in frame.groupby("workload", sort=False):
        rows: list[Row] = part.to_dict(orient="records")  # type: ignore[assignment]
        tables[str(name)] = _table(list(_lines(str(name), rows, labels or {})))
    return tables


def _table(lines: Sequence[TableLine]) -> ReadableTable:
    """Return rows as a table, without the optional keys that no row has."""
    columns = tuple(
        column
        for column in dict.fromkeys(column for line in lines for column in line)
        if column.heading not in _OPTIONAL_KEYS or any(line.get(column, NONE) != NONE for line in lines)
    )
    cells = [[line.get(column, NONE) for column in columns] for line in lines]
    # As objects, since a column of strings would hold plain ones, without the number of a cell.
    frame = pd.DataFrame(cells, columns=[column.heading for column in columns], dtype=object)
    return ReadableTable(columns, frame)


def _lines(workload: str, rows: Sequence[Row], labels: Mapping[str, str]) -> Iterator[TableLine]:
    """Yield the readable rows of one workload."""
    known = WORKLOADS.get(workload)
    costs = [row for row in rows if not is_missing(row.get("rounds"))]
    quality = [row for row in rows if is_missing(row.get("rounds"))]
    if costs:  # of a workload that is not installed here, the records of one experiment may hold both
        yield from _cost_lines(known, costs, labels)
    if quality:
        yield from score_lines(workload, quality)


def _cost_lines(
    known: Workload | None, rows: Sequence[Row], labels: Mapping[str, str]
) -> Iterator[TableLine]:
    """Yield one row per (model, batch size, context length); the primary column says why a value is missing."""
    headings = {metric.name: metric.heading for metric in known.metrics} if known else {}
    units = {metric.name: metric.unit for metric in known.metrics} if known else {}
    lead = {*COST_LEAD, *POINT_COLUMNS, *QUALITY_LEAD, RATIO, UNPAIRED, PAIRED_ROUNDS}
    present = [
        name
        for name in dict.fromkeys([*headings, *(str(name) for row in rows for name in row)])
        if name not in lead and not name.endswith(("_low", "_high"))
        if any(not is_missing(row.get(name)) for row in rows)
    ]
    main = known.primary.name if known else (present or ["status"])[0]
    has_ratio = any(not is_missing(row.get(RATIO)) for row in rows)
    keys = {"model": "model", "batch_size": "batch", "context_len": "context"}
    if known and known.finds_batch:
        del keys["batch_size"]
    columns = {name: Column(heading, "key") for name, heading in keys.items()}
    columns[main] = Column(headings.get(main, main), metric=main)
    if has_ratio:
        columns[RATIO] = Column(
            _ratio_heading(units.get(main) or stated_unit(main), rows, labels), "comparison", metric=RATIO
        )
    for name in present:
        columns.setdefault(name, Column(headings.get(name, name), metric=name))
    for row in rows:
        line = {column: _cost_cell(row, name, main, units.get(name)) for name, column in columns.items()}
        num_paired = number_of(row.get(PAIRED_ROUNDS))
        paired = "" if num_paired is None else f" ({num_paired:.0f} paired)"
        yield line | {Column("rounds"): f"{row['rounds_ok']:.0f} of {row['rounds']:.0f}{paired}"}


def _ratio_heading(unit: str | None, rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    kind = _RATIO_OF.get(unit or "", "")
    reference = next((str(row[REFERENCE]) for row in rows if not is_missing(row.get(REFERENCE))), "reference")
    return f"{kind}ratio to {labels.get(reference, reference)}"


def _cost_cell(row: Row, name: str, main: str, unit: str | None) -> str:
    """Return one cell as text; without a value, the status in the primary column and a dash in the others."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    if is_missing(value):
        if name != main:
            return NONE
        return "not recorded" if row["status"] == "ok" else describe_status(str(row["status"]))
    numbers = (number_of(row.get(f"{name}{end}")) for end in ("", "_low", "_high"))
    write = _format_ratio if name == RATIO else partial(format_metric, name, unit=unit)
    text = _with_unit([write(number) for number in numbers if number is not None])
    is_unpaired = name == RATIO and bool(number_of(row.get(UNPAIRED)))
    return TableCell(f"{text} (unpaired)" if is_unpaired else text, number_of(value))


def _format_ratio(ratio: float) -> str:
    return f"{ratio:#.3g}".removesuffix(".")


def _with_unit(texts: Sequence[str]) -> str:
    """Return value and ends as '8.12 [8.01, 8.23] ms', with the unit once where all share it."""
    numbers, units = zip(*(text.partition(" ")[::2] for text in texts), strict=True)
    if len(set(units)) == 1:
        return f"{with_interval(*numbers)} {units[0]}".rstrip()
    return with_interval(*texts)
