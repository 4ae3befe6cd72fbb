"""The tables of the page's first part: one row per context, a column per model, and the ratio to the reference.

With many models there is a row per model and a column per context. Columns that have the same value in every row go
into the caption. `readable_tables` has every metric.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd

from retbench.report.comparisons import pair_ratios
from retbench.report.evaluations import Evaluations
from retbench.report.findings.advantages import advantage
from retbench.report.lineup import Lineup
from retbench.report.points import CostPoint
from retbench.report.sweeps import CostSweep, by_workload
from retbench.report.tables.aligned_text import NONE
from retbench.report.tables.cells import (
    Column,
    ReadableTable,
    TableCell,
    format_metric,
    length_cell,
    number_of,
)
from retbench.report.tables.experiments import metrics_of, quality_table
from retbench.report.tables.readable import readable_tables
from retbench.report.tables.readable_scores import MOST_MODELS, Row, models_by_point
from retbench.report.wording import describe_interval, describe_status, section_title
from retbench.stats.intervals import geometric_interval, mean_interval
from retbench.stats.paired import MIN_SEEDS
from retbench.units import format_tokens
from retbench.workloads.workload import WORKLOADS, MetricSpec


@dataclass(frozen=True)
class CompactTable:
    """A table of text.

    Attributes:
        caption: What it shows, and what is the same in every row.
        frame: The cells.
        column_models: The model of each column whose numbers are of one model; None for other columns.
        row_models: The same of each row.
    """

    caption: str
    frame: pd.DataFrame
    column_models: tuple[str | None, ...]
    row_models: tuple[str | None, ...]


def cost_tables(sweeps: Sequence[CostSweep]) -> list[CompactTable]:
    """Return a table per experiment and workload of its primary metric."""
    return [_cost_table(of_one) for of_one in by_workload(sweeps) if metrics_of(of_one[0])]


@dataclass(frozen=True)
class _Grid:
    """The primary metric of one experiment and workload in words, by model and point."""

    sweeps: Sequence[CostSweep]
    values: Mapping[tuple[str, CostPoint], str]
    ratios: Mapping[tuple[str, CostPoint], TableCell]

    @property
    def lineup(self) -> Lineup:
        return self.sweeps[0].models

    @property
    def models(self) -> list[str]:
        measured = {model for model, _ in self.values}
        return [model for model in self.lineup.models if model in measured]

    @property
    def points(self) -> list[CostPoint]:
        return [(sweep.batch_size, length) for sweep in self.sweeps for length in sweep.lengths]

    def batch_words(self, batch_size: int) -> str:
        known = WORKLOADS.get(self.sweeps[0].workload)
        return NONE if known and known.finds_batch else TableCell(str(batch_size), batch_size)

    @property
    def versus(self) -> str:
        return f"vs. {self.lineup.labels[str(self.lineup.reference)]}" if self.ratios else ""


def _cost_table(sweeps: Sequence[CostSweep]) -> CompactTable:
    metric = metrics_of(sweeps[0])[0]
    values = {key: text for sweep in sweeps for key, text in _values(sweep, metric)}
    grid = _Grid(sweeps, values, {key: text for sweep in sweeps for key, text in _ratios(sweep, metric)})
    caption = f"{section_title(sweeps[0].experiment, sweeps[0].workload)}, {metric.heading}"
    make = _row_per_model if len(grid.models) > MOST_MODELS else _row_per_point
    return make(grid, caption)


def _row_per_point(grid: _Grid, caption: str) -> CompactTable:
    """Return a row per batch size and context length, with a column per model and per ratio."""
    compared_models = {model for model, _ in grid.ratios}
    labels, compared = grid.lineup.labels, [model for model in grid.models if model in compared_models]
    rows = []
    for point in grid.points:
        row = {"batch": grid.batch_words(point[0]), "context": length_cell(point[1])}
        row |= {labels[model]: grid.values.get((model, point), NONE) for model in grid.models}
        row |= {f"{labels[model]} {grid.versus}": grid.ratios.get((model, point), NONE) for model in compared}
        rows.append(row)
    of_columns = {labels[model]: model for model in grid.models}
    of_columns |= {f"{labels[model]} {grid.versus}": model for model in compared}
    return _captioned(caption, pd.DataFrame(rows, dtype=object), ("batch", "context"), of_columns)


def _row_per_model(grid: _Grid, caption: str) -> CompactTable:
    """Return a row per model and batch size, with the ratio at the longest context at which it has one."""
    rows, of_rows = [], []
    lengths = sorted({length for _, length in grid.points})
    for model, batch in product(grid.models, sorted({batch for batch, _ in grid.points})):
        row = {"model": grid.lineup.labels[model], "batch": grid.batch_words(batch)}
        row |= {format_tokens(length): grid.values.get((model, (batch, length)), NONE) for length in lengths}
        deepest = next((n for n in reversed(lengths) if (model, (batch, n)) in grid.ratios), None)
        if grid.versus and deepest is not None:
            found = grid.ratios[model, (batch, deepest)]
            row[grid.versus] = TableCell(f"{found} at {format_tokens(deepest)}", found.number)
        elif grid.versus:
            row[grid.versus] = NONE
        rows.append(row)
        of_rows.append(model)
    return _captioned(caption, pd.DataFrame(rows, dtype=object), ("batch",), {}, tuple(of_rows))


def _values(sweep: CostSweep, metric: MetricSpec) -> Iterator[tuple[tuple[str, CostPoint], str]]:
    """Yield the value of each model at each point, or why there is none."""
    failed, rows = sweep.failed, sweep.rows(metric.name)
    for model, length, status in zip(failed["model"], failed["context_len"], failed["status"], strict=True):
        yield (str(model), (sweep.batch_size, int(length))), describe_status(str(status))
    for model, length, value in zip(rows["model"], rows["context_len"], rows["value"], strict=True):
        yield (
            (str(model), (sweep.batch_size, int(length))),
            TableCell(format_metric(metric.name, float(value), metric.unit), float(value)),
        )


def _ratios(sweep: CostSweep, metric: MetricSpec) -> Iterator[tuple[tuple[str, CostPoint], TableCell]]:
    """Yield how each model compares with the reference at each point: '7.63× faster [6.94, 8.39]'."""
    if sweep.primary is None:
        return
    for _, row in pair_ratios(sweep.metrics, sweep.models).iterrows():
        found = advantage(metric, row)
        text = f"{found.size} {found.interval.removeprefix('95 % CI ')}".strip()
        cell = TableCell(text, float(row["ratio"]))
        yield (str(row["model"]), (sweep.batch_size, int(row["context_len"]))), cell


def quality_tables(evaluations: Evaluations) -> list[CompactTable]:
    """Return a table per experiment and workload that scores documents: the primary metric of each model."""
    made: list[CompactTable] = []
    for experiment in sorted({record.experiment for record in evaluations.records}):
        frame = quality_table(evaluations, experiment)
        scored = frame[frame["workload"].map(_scores_documents)]
        for workload, table in readable_tables(scored).items():
            primary = WORKLOADS[workload].primary
            caption = f"{section_title(experiment, workload)}, {primary.heading}"
            if any(column.heading == "model" and column.kind == "key" for column in table.columns):
                numbers = scored[scored["workload"] == workload]
                made += _tables_per_point(table, numbers, primary, caption, evaluations.models)
            else:
                made.append(_quality_table(table, primary, caption, evaluations.models))
    return made


def _scores_documents(workload: str) -> bool:
    return workload in WORKLOADS and WORKLOADS[workload].replicate == "document"


def _quality_table(table: ReadableTable, primary: MetricSpec, caption: str, models: Lineup) -> CompactTable:
    """Return task points, the primary metric per model, and the comparison, of a readable table."""
    frame, lead, own, compared = table.frame, [], [], []
    for at, column in enumerate(table.columns):
        if column == Column("metric", "key"):  # a row per metric
            frame = frame[frame.iloc[:, at].isin(["acc", primary.heading])]
        elif column.kind == "key":
            lead.append(at)
        elif column.kind == "comparison":
            compared.append(at)
        elif column.model is not None and column.metric in (None, primary.name):
            own.append(at)
    labels = {at: models.labels[str(table.columns[at].model)] for at in own}
    chosen = [*lead, *own, *compared]
    headings = [labels.get(at, table.columns[at].heading) for at in chosen]
    shown = frame.iloc[:, chosen].set_axis(headings, axis="columns")
    of_columns = {labels[at]: str(table.columns[at].model) for at in own}
    return _captioned(caption, shown, [table.columns[at].heading for at in lead], of_columns)


def _tables_per_point(
    table: ReadableTable, scored: pd.DataFrame, primary: MetricSpec, caption: str, models: Lineup
) -> Iterator[CompactTable]:
    """Yield a table per corpus, protocol, context and size, of a readable table with a row per model.

    One or two seeds have columns of their own. Of more there is the mean with its interval over the seeds, and where it
    is of fewer than the table has, of how many.
    """
    row = ["model", "parameters", "state or cache"]
    point = [
        one.heading for one in table.columns if one.kind == "key" and one.heading not in ("model", "seed")
    ]
    shown = [one for one in table.columns if one.kind == "comparison" or one.metric == primary.name]
    shown.sort(key=lambda column: column.kind == "comparison")
    replicates = _replicates(scored, point)
    for key, part in table.frame.groupby(point, sort=False):
        seeds = list(part["seed"].unique()) if "seed" in part else []
        lines, own = part.to_dict(orient="records"), dict[str, None]()
        rows: dict[str, dict[str, str]] = {}
        for column, line in product(shown, lines):
            name, model = column.heading, str(line["model"])
            cell = line[name]
            if len(seeds) >= MIN_SEEDS:
                cell = _mean(column, replicates.get((*map(str, key), model), ()), len(seeds))
            elif len(seeds) > 1:
                name += f", seed {line['seed']}"
            own[name] = None
            rows.setdefault(model, {lead: line[lead] for lead in row})[name] = cell
        frame = pd.DataFrame(rows.values(), columns=[*row, *own], dtype=object).fillna(NONE)
        frame["model"] = [models.labels[model] for model in rows]
        notes = [*map(str, key), *(f"seed {seed}" for seed in seeds if len(seeds) == 1)]
        if len(seeds) >= MIN_SEEDS:
            notes.append(f"mean of {len(seeds)} seeds [95 % CI over seeds]")
        of_point = ", ".join([caption, *(note for note in notes if note != NONE)])
        yield CompactTable(of_point, frame, (None,) * len(frame.columns), tuple(rows))


def _replicates(scored: pd.DataFrame, point: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """Return the rows of each seed, by the keys of a point and the model."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for lead, sides in models_by_point(scored.to_dict(orient="records")):  # type: ignore[arg-type]
        key = [lead["task" if name == "corpus" else name] for name in point]
        for model, side in sides.items():
            found.setdefault((*key, model), []).append(side)
    return found


def _mean(column: Column, sides: Sequence[Row], num_seeds: int) -> str:
    """Return the mean of a column over the seeds with its interval; a dash without values.

    The ratio is the geometric mean of the ratios of each seed: models of one seed were trained on the same batches.
    """
    numbers = (number_of(side.get(str(column.metric))) for side in sides)
    values = [number for number in numbers if number is not None]
    if not values:
        return NONE
    estimate = geometric_interval if column.kind == "comparison" else mean_interval
    found = estimate(values)
    fewer = f" ({len(values)} of {num_seeds} seeds)" if len(values) < num_seeds else ""
    return TableCell(f"{describe_interval(found)}{fewer}", found.value)


def _captioned(
    caption: str,
    frame: pd.DataFrame,
    lead: Sequence[str],
    column_models: Mapping[str, str],
    row_models: tuple[str | None, ...] = (),
) -> CompactTable:
    """Move the leading columns that have one value only into the caption, but for the last one."""
    constant = [name for name in lead if frame[name].nunique() == 1]
    if len(constant) == len(lead) and frame.columns[0] == lead[0]:  # a row needs a heading
        constant.pop()
    notes = [f"{name} {frame[name].iloc[0]}" for name in constant if frame[name].iloc[0] != NONE]
    frame = frame.drop(columns=constant)
    columns = tuple(column_models.get(str(name)) for name in frame.columns)
    return CompactTable(", ".join([caption, *notes]), frame, columns, row_models or (None,) * len(frame))
