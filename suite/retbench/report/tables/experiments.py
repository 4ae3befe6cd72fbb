"""The table of an experiment, in base units: one row per (model, point), with the comparison with the reference.

`table_of` has the unit in each column's name, for csv and json; `formats.render` also writes it for people.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pandas as pd

from retbench.records.record import Record
from retbench.report.comparisons import pair_ratios
from retbench.report.contents import Contents
from retbench.report.document_comparisons import DocumentComparison
from retbench.report.evaluations import Evaluations
from retbench.report.points import (
    fact,
    instance_of,
    is_final,
    learning_rate,
    num_trained_tokens,
    scores_of,
    state_bytes_of,
    task_point_of,
)
from retbench.report.sweeps import CostSweep, by_workload, swept_by_batch
from retbench.workloads.workload import WORKLOADS, MetricSpec, replicate_of

RATIO = "ratio_to_reference"
REFERENCE = "reference"
"""Column with the name of the model that a row is compared with; in a table of costs there only if some are."""
UNPAIRED = "ratio_is_unpaired"
"""Column of rows whose ratio compares different measurement sessions; there only if some do."""
PAIRED_ROUNDS = "ratio_rounds"
"""Column with the rounds behind a ratio where they are fewer than those with a value; there only if some are."""

COST_LEAD = ("model", "workload", "batch_size", "context_len", "status", "rounds_ok", "rounds")
POINT_COLUMNS = ("task", "protocol", "context_len", "num_fewshot", "num_pairs")
QUALITY_LEAD = (
    "model",
    "workload",
    *POINT_COLUMNS,
    "size",
    "seed",
    "status",
    "num_params_nonembedding",
    "tokenizer",
    "trained_tokens",
    "learning_rate",
    "role",
    "num_documents",
    REFERENCE,
    "not_compared",
)
"""Columns that are text or whole numbers; None where there is none."""


def table_of(contents: Contents, experiment: str) -> pd.DataFrame:
    """Return the table of one experiment.

    Returns:
        For costs: columns `COST_LEAD`, then metrics in the unit of their name, with `_low` and `_high` (95 %) where
        they are measured anew in each round. The ratio to the model in the column `reference` is that of the
        workload's primary metric, paired within rounds: below 1 where the model needs less, above 1 where it fits
        more sequences. Batch sizes follow each other at one length where there are more of them than lengths.
        For quality: columns `QUALITY_LEAD`, metrics, the analytical `state_bytes` of one sequence after `context_len`
        tokens where documents are scored by a loss, and on the row of a model that was compared with the reference
        `bits_per_byte_ratio` and `bits_per_byte_difference` (per token where the scored text has no whole bytes), or
        per accuracy `<metric>_difference` and `<metric>_mcnemar_p`, with the ends of the 95 % intervals; of slices of
        a text `<metric>_difference`.
        NaN where a metric is not defined, or the status is not ok.
    """
    frames = []
    if any(sweep.experiment == experiment for sweep in contents.sweeps):
        frames.append(cost_table([sweep for sweep in contents.sweeps if sweep.experiment == experiment]))
    evaluations = contents.evaluations
    if evaluations and any(point.experiment == experiment for point in evaluations.task_points()):
        frames.append(quality_table(evaluations, experiment))
    return frames[0] if len(frames) == 1 else _stacked(frames)


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return frames of different columns as one; numbers stay numbers and None stays None."""
    columns = list(dict.fromkeys(str(name) for frame in frames for name in frame.columns))
    rows = [row for frame in frames for row in frame.astype(object).to_dict(orient="records")]
    numbers = {name for frame in frames for name in frame.columns if frame[name].dtype == "float64"}
    return _object_frame(rows, columns, numbers)


def _object_frame(rows: Sequence[Any], columns: list[str], numbers: set[str]) -> pd.DataFrame:
    table = pd.DataFrame([[row.get(name) for name in columns] for row in rows], columns=columns, dtype=object)
    types: dict[str, str] = {name: "float64" for name in columns if name in numbers}
    return table.astype(types)


def cost_table(sweeps: Sequence[CostSweep]) -> pd.DataFrame:
    """Return the rows of an experiment's cost sweeps."""
    rows: list[dict[str, Any]] = []
    for of_one in by_workload(sweeps):
        block = [row for sweep in of_one for row in _cost_rows(sweep)]
        if swept_by_batch(of_one):
            order = list(dict.fromkeys(row["model"] for row in block))
            block.sort(key=lambda row: (order.index(row["model"]), row["context_len"], row["batch_size"]))
        rows += block
    names = dict.fromkeys(name for row in rows for name in row)
    ratio = [name for name in names if name.startswith("ratio_")]
    columns = [*COST_LEAD, *(name for name in names if name not in (*COST_LEAD, *ratio)), *ratio]
    numbers = dict.fromkeys(set(columns) - {*COST_LEAD, REFERENCE, UNPAIRED}, "float64")
    return pd.DataFrame(rows, columns=columns).astype(numbers)


def _cost_rows(sweep: CostSweep) -> Iterator[dict[str, Any]]:
    """Yield the rows of one sweep: every model at every length, measured or not."""
    ratios = pair_ratios(sweep.metrics, sweep.models)
    found = {(p.model, p.context_len, p.metric): (p.value, p.low, p.high) for p in sweep.points.itertuples()}
    found |= {(p.model, p.context_len, RATIO): (p.ratio, p.low, p.high) for p in ratios.itertuples()}
    unpaired = {(p.model, p.context_len): p.unpaired for p in ratios.itertuples()}
    paired = {(p.model, p.context_len): p.num_rounds for p in ratios.itertuples() if not p.unpaired}
    for model, length in product(sweep.models.models, sweep.lengths):
        row = _outcome(sweep, model, length)
        for metric in (*metrics_of(sweep), MetricSpec(RATIO, RATIO, has_interval=True)):
            ends = ("", "_low", "_high") if metric.has_interval else ("",)
            values = found.get((model, length, metric.name), (None, None, None))
            row |= {f"{metric.name}{end}": value for end, value in zip(ends, values, strict=False)}
        if unpaired:
            row[REFERENCE] = sweep.models.reference if (model, length) in unpaired else None
        if any(unpaired.values()):
            row[UNPAIRED] = unpaired.get((model, length))
        if (num_paired := paired.get((model, length), row["rounds_ok"])) < row["rounds_ok"]:
            row[PAIRED_ROUNDS] = num_paired
        yield row


def metrics_of(sweep: CostSweep) -> list[MetricSpec]:
    """Return the metrics of a workload's table; of a workload that is not installed here, those of the records."""
    found = sorted(str(metric) for metric in sweep.points["metric"].unique())
    known = WORKLOADS.get(sweep.workload)
    if known is None:
        return [MetricSpec(name, name.replace("_", " ")) for name in found]
    return [metric for metric in known.metrics if metric.name in found or not metric.optional]


def _outcome(sweep: CostSweep, model: str, length: int) -> dict[str, Any]:
    """Return the outcome of one model at one length: 'ok' where any round has a value."""
    statuses = [record.status for record in sweep.cell(model, length)]
    num_ok = statuses.count("ok")
    return {
        "model": model,
        "workload": sweep.workload,
        "batch_size": sweep.batch_size,
        "context_len": length,
        "status": "ok" if num_ok else statuses[-1] if statuses else "missing",
        "rounds_ok": num_ok,
        "rounds": sweep.num_rounds,
    }


def quality_table(evaluations: Evaluations, experiment: str) -> pd.DataFrame:
    """Return one row per (task point, instance, model) of an experiment."""
    rows = [
        _quality_row(evaluations, record)
        for point in evaluations.task_points()
        if point.experiment == experiment
        for record in _ordered(evaluations, evaluations.at(point))
    ]
    columns = list(dict.fromkeys([*QUALITY_LEAD, *(name for row in rows for name in row)]))
    return _object_frame(rows, columns, {*columns} - {*QUALITY_LEAD})


def _ordered(evaluations: Evaluations, records: Sequence[Record]) -> list[Record]:
    """Return records of one task point by size, seed and model; of trainings the grid first."""
    instances, models = evaluations.instances(records), evaluations.models.models
    return sorted(
        records,
        key=lambda r: (
            instances.index(instance_of(r)),
            is_final(r),
            models.index(r.model.name),
            learning_rate(r) or 0.0,
        ),
    )


def _quality_row(evaluations: Evaluations, record: Record) -> dict[str, Any]:
    point, instance = task_point_of(record), instance_of(record)
    is_training = replicate_of(record) == "seed"
    row: dict[str, Any] = {
        "model": record.model.name,
        "workload": record.workload,
        **{name: getattr(point, name) for name in POINT_COLUMNS},
        "size": instance.size,
        "seed": instance.seed,
        "status": record.status,
        "num_params_nonembedding": record.model.num_params_nonembedding,
        "tokenizer": fact(record, "tokenizer"),
        "trained_tokens": num_trained_tokens(record),
        "learning_rate": learning_rate(record),
        "role": ("final" if is_final(record) else "tuning") if is_training else None,
        "num_documents": record.documents.num_documents if record.documents else None,
    }
    row |= {name: metric.value for name, metric in record.metrics.items() if name not in row}
    if scores_of(record.workload) == "text":
        row["state_bytes"] = state_bytes_of(record)
    key = (point, instance, record.model.name)
    made = [c for c in evaluations.comparisons if (c.point, c.instance, c.model) == key]
    return row | (_comparison_columns(made[0]) if made else {})


def _comparison_columns(comparison: DocumentComparison) -> dict[str, Any]:
    row: dict[str, Any] = {REFERENCE: comparison.reference, "not_compared": comparison.refusal}
    bits = f"bits_per_{comparison.unit}"
    estimates = {f"{bits}_ratio": comparison.ratio, f"{bits}_difference": comparison.difference}
    estimates |= {f"{metric}_difference": found for metric, found in comparison.slices.items()}
    for column, estimate in estimates.items():
        if estimate is not None:
            row |= {column: estimate.value, f"{column}_low": estimate.low, f"{column}_high": estimate.high}
    for metric, pair in comparison.accuracies.items():
        column = f"{metric}_difference"
        row |= {column: pair.difference, f"{column}_low": pair.low, f"{column}_high": pair.high}
        row |= {f"{metric}_mcnemar_p": pair.p_value}
    return row
