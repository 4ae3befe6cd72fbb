"""Observations that records hold, as data frames: (model, point, replicate, metric, value). Nothing is aggregated."""

from collections.abc import Iterator, Sequence

import pandas as pd

from retbench.records.dates import recorded_start
from retbench.records.record import FAULTY_CEILING, SHARES, Record
from retbench.report.latest import keep_latest
from retbench.report.results import Results, hardware_of, session_of, set_of
from retbench.workloads.workload import measures_cost

OBSERVATION_COLUMNS: dict[str, str] = {
    **dict.fromkeys(("experiment", "workload", "status", "error", "model", "session"), "string"),
    **dict.fromkeys(("batch_size", "context_len", "round"), "Int64"),
    **dict.fromkeys(("metric", "unit"), "string"),
    "value": "float64",
}

RESULT_COLUMNS: dict[str, str] = {
    **dict.fromkeys(("experiment", "profile", "workload", "status", "error"), "string"),
    "started_at": "datetime64[us, UTC]",
    **dict.fromkeys(("model", "architecture", "variant", "size"), "string"),
    **dict.fromkeys(("num_params", "num_params_nonembedding"), "Int64"),
    "checkpoint": "string",
    **dict.fromkeys(("seed", "batch_size", "context_len"), "Int64"),
    **dict.fromkeys(("task", "protocol"), "string"),
    **dict.fromkeys(("num_fewshot", "num_pairs", "round"), "Int64"),
    **dict.fromkeys(("session", "machine", "device", "dtype"), "string"),
    "threads": "Int64",
    "executed": "string",
    **dict.fromkeys(("compiled", "cuda_graph"), "boolean"),
    **dict.fromkeys(("code_revision", "torch_version", "file"), "string"),
    "is_published": "bool",
    **dict.fromkeys(("metric", "unit"), "string"),
    "value": "float64",
}
"""Columns of `results_frame` with their types, which docs/results.md explains."""

_PHASES = ("decode", "prefill", "training", "evaluation")
"""Keys of a record's `backend` of which it has one: the form or kernel that was executed."""


def faulty_shares(record: Record) -> list[str]:
    """Return the shares of ceilings that are above 1 in a record, or absent because they were.

    The other rounds of the same cell then have none either: those in which the ceiling happened to be higher would
    stand for all.
    """
    return [
        name
        for name in SHARES
        if record.absent.get(name) == FAULTY_CEILING
        or (name in record.metrics and record.metrics[name].value > 1)
    ]


def observations(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row per record and metric; a record without a metric has one row with its status.

    Returns:
        Columns `OBSERVATION_COLUMNS`, with their types also without rows.
    """
    rows: list[tuple[object, ...]] = []
    for record, metrics in _sound_metrics(records):
        words = (record.experiment, record.workload, record.status, record.error, record.model.name)
        cell = (*words, session_of(record), record.point.batch_size, record.point.context_len, record.round)
        rows += [(*cell, *metric) for metric in metrics]
    return pd.DataFrame(rows, columns=list(OBSERVATION_COLUMNS)).astype(OBSERVATION_COLUMNS)


def _sound_metrics(records: Sequence[Record]) -> Iterator[tuple[Record, list[tuple[object, ...]]]]:
    """Yield each record with (name, unit, value) of its metrics; three times None where it has none."""
    faulty = {(record.cell_id, share) for record in records for share in faulty_shares(record)}
    for record in records:
        metrics = record.metrics.items() if record.status == "ok" else ()
        sound: list[tuple[object, ...]] = [
            (name, metric.unit, metric.value)
            for name, metric in metrics
            if (record.cell_id, name) not in faulty
        ]
        yield record, sound or [(None, None, None)]


def results_frame(results: Results) -> pd.DataFrame:
    """Return one row per measured value, as `docs/results.md` documents the columns.

    Of records of the same cell and round the latest is kept, as in reports; of costs that of every node and GPU, which
    the column `session` tells apart. A record without a metric has one row.
    """
    places: dict[object, list[Record]] = {}
    for record in results.records:
        places.setdefault(hardware_of(record) if measures_cost(record) else None, []).append(record)
    latest = {id(record) for found in places.values() for record in keep_latest(found)}
    kept = [record for record in results.records if id(record) in latest]
    rows = [
        (*_facts(results, record), *metric) for record, metrics in _sound_metrics(kept) for metric in metrics
    ]
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS)).astype(RESULT_COLUMNS)


def _facts(results: Results, record: Record) -> tuple[object, ...]:
    """Return the columns of a record before those of its metrics."""
    model, point, weights = record.model, record.point, record.model.weights
    found, source = set_of(record), results.source_of(record)
    return (
        *(
            record.experiment,
            record.profile,
            record.workload,
            record.status,
            record.error,
            recorded_start(record),
        ),
        *(model.name, model.architecture, model.variant, model.size),
        *(model.num_params, model.num_params_nonembedding),
        *(weights.source if weights else None, weights.seed if weights else None),
        *(
            point.batch_size,
            point.context_len,
            point.task,
            point.protocol,
            point.num_fewshot,
            point.num_pairs,
        ),
        *(record.round, session_of(record), found.machine, found.device, found.dtype, found.threads),
        next((record.backend[phase] for phase in _PHASES if phase in record.backend), None),
        *(record.backend.get(name) for name in ("compile", "cuda_graph")),
        *(found.code_revision, found.torch_version, source.path, source.is_published),
    )
