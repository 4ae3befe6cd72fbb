"""Readable rows of scores: losses, slices of a text, tasks with right answers, and trainings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

from retbench.papers.tasks import paper_average
from retbench.report.points import scores_of
from retbench.report.tables.aligned_text import NONE
from retbench.report.tables.cells import (
    Column,
    TableCell,
    TableLine,
    format_metric,
    is_missing,
    key_cells,
    length_cell,
    number_cell,
    number_of,
    plain_cell,
)
from retbench.report.tables.experiments import COST_LEAD, POINT_COLUMNS, QUALITY_LEAD, REFERENCE
from retbench.report.wording import POINTS, describe_status, format_p, with_interval
from retbench.units import format_bytes, format_count, format_number, format_percent, format_size
from retbench.workloads.workload import WORKLOADS, Workload

Row = Mapping[str, Any]

_FIRST_SCORES = ("acc", "acc_norm")
"""Scores that stand before the others."""

_SHARES = (*_FIRST_SCORES, "acc_far", "contains", "choice", "exact", "guess")
"""Metrics that are a share of right answers."""

MOST_MODELS = 3
"""Models that have a column each; more of them have a row each."""

_NOT_SCORES = ("num_examples", "num_requests", "num_truncated", "num_tokens", "tokens_per_s")
"""Metrics of an evaluation that are not scores."""


def score_lines(workload: str, rows: Sequence[Row]) -> Iterator[TableLine]:
    """Yield the readable rows of the scores of one workload."""
    known = WORKLOADS.get(workload)
    if known is not None and known.replicate == "seed":
        yield from _training_lines(known, rows)
        return
    kind = scores_of(workload)
    if kind == "slices":
        yield from _slice_lines(workload, rows)
    else:
        yield from _loss_lines(workload, rows) if kind == "text" else _answer_lines(rows)


def models_by_point(rows: Sequence[Row]) -> Iterator[tuple[dict[str, str], dict[str, Row]]]:
    """Yield each task point and instance in words, with the row of each model."""
    names = (*POINT_COLUMNS, "size", "seed")
    for key, found in groupby(rows, key=lambda row: tuple(row[name] for name in names)):
        values, members = dict(zip(names, key, strict=True)), list(found)
        lead = {
            "task": plain_cell(values["task"]),
            "protocol": plain_cell(values["protocol"]),
            "context": length_cell(values["context_len"]),
            "shots": plain_cell(values["num_fewshot"]),
            "pairs": plain_cell(values["num_pairs"]),
            "size": _size(members[0]),
            "seed": plain_cell(values["seed"]),
        }
        yield lead, {str(row["model"]): row for row in members}


def _size(row: Row) -> str:
    """Return the name of a model's size, with its parameters as its number."""
    return TableCell(format_size(str(row["size"])), number_of(row["num_params_nonembedding"]))


def _models(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return all models, and those that were compared with the reference."""
    models = dict.fromkeys(str(row["model"]) for row in rows)
    compared = {str(row["model"]) for row in rows if not is_missing(row[REFERENCE])}
    return list(models), [model for model in models if model in compared]


def _loss_lines(workload: str, rows: Sequence[Row]) -> Iterator[TableLine]:
    """Yield the losses of the models at each point, and the ratio of their bits per byte or token.

    Few models stand side by side in one row; more of them have a row each.
    """
    models, challengers = _models(rows)
    ratios = {unit: f"bits_per_{unit}_ratio" for unit in ("byte", "token")}
    units = [u for u, column in ratios.items() if any(not is_missing(row.get(column)) for row in rows)]
    compared = {
        ratios[unit]: Column(f"ratio of bits/{unit}", "comparison", metric=ratios[unit])
        for unit in units or ["byte"]
    }
    for lead, sides in models_by_point(rows):
        point = key_cells(
            corpus=lead["task"], **{n: lead[n] for n in ("protocol", "context", "size", "seed")}
        )
        if len(models) > MOST_MODELS:
            yield from (point | _model_line(workload, model, sides, compared) for model in models)
            continue
        line = point
        for metric in WORKLOADS[workload].metrics:
            for model in models:
                column = Column(f"{metric.heading}, {model}", model=model, metric=metric.name)
                line[column] = _loss(sides, model, metric.name)
        for name, column in compared.items():
            line |= _compared(sides, challengers, name, column, _three_decimals)
        yield line


def _slice_lines(workload: str, rows: Sequence[Row]) -> Iterator[TableLine]:
    """Yield a row per slice of a text, with the scores of the models and their differences from the reference's."""
    models, challengers = _models(rows)
    column = Column("difference", "comparison")
    for lead, sides in models_by_point(rows):
        point = key_cells(corpus=lead["task"], bytes=lead["context"], size=lead["size"], seed=lead["seed"])
        for metric in WORKLOADS[workload].metrics:
            line = point | key_cells(metric=metric.heading)
            line |= {Column(model, model=model): _score(sides.get(model), metric.name) for model in models}
            difference = f"{metric.name}_difference"
            yield line | _compared(sides, challengers, difference, column, lambda value: f"{value:+.3f}")


def _model_line(
    workload: str, model: str, sides: Mapping[str, Row], compared: Mapping[str, Column]
) -> TableLine:
    """Return one model's parameters, its state after the context, its losses and its ratios to the reference."""
    side = sides.get(model, {})
    line = key_cells(model=model)
    for heading, name, write in (
        ("parameters", "num_params_nonembedding", format_count),
        ("state or cache", "state_bytes", format_bytes),
    ):
        line[Column(heading, metric=name)] = number_cell(number_of(side.get(name)), write)
    for metric in WORKLOADS[workload].metrics:
        line[Column(metric.heading, metric=metric.name)] = _loss(sides, model, metric.name)
    for name, column in compared.items():
        line |= _compared(sides, [model], name, column, _three_decimals)
    return line


def _loss(sides: Mapping[str, Row], model: str, metric: str) -> str:
    """Return a loss; per token with the tokenizer's name where the models have several."""
    cell = _score(sides.get(model), metric)
    tokenizers = {plain_cell(side["tokenizer"]) for side in sides.values()}
    if metric.endswith("_per_token") and len(tokenizers) > 1 and model in sides:
        # A loss per token of another tokenizer is not comparable.
        return TableCell(
            f"{cell} ({plain_cell(sides[model]['tokenizer'])})", number_of(sides[model].get(metric))
        )
    return cell


def _three_decimals(value: float) -> str:
    return f"{value:.3f}"


def _score(side: Row | None, metric: str) -> str:
    """Return a score with its standard error; without a value the reason."""
    if side is None:
        return describe_status("missing")
    value, error = number_of(side.get(metric)), number_of(side.get(f"{metric}_stderr"))
    if value is None:
        return NONE if side["status"] == "ok" else describe_status(str(side["status"]))
    return TableCell(_write_score(metric, value, error), value)


def _write_score(metric: str, value: float, error: float | None) -> str:
    if metric in _SHARES:
        return format_percent(value) if error is None else f"{POINTS * value:.1f} ± {POINTS * error:.1f} %"
    if "nats" in metric or "bits" in metric:
        return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"
    if metric.endswith("_bytes"):
        return format_bytes(value)
    return format_number(value) if error is None else f"{format_number(value)} ± {_error(error)}"


def _error(error: float) -> str:
    """Return a standard error with two significant digits, whole from 100 on: '1,234'."""
    return f"{error:#.2g}".rstrip(".") if error < 99.5 else format_number(round(error))


def _compared(
    sides: Mapping[str, Row],
    challengers: Sequence[str],
    metric: str,
    column: Column,
    write: Callable[[float], str],
) -> TableLine:
    """Return a column per model that is compared with the reference: the value with its interval."""
    line: TableLine = {}
    for model in challengers:
        side = sides.get(model, {})
        value, low, high = (number_of(side.get(f"{metric}{end}")) for end in ("", "_low", "_high"))
        ends = [write(end) for end in (low, high) if end is not None]
        own = replace(column, heading=f"{column.heading}, {model}") if len(challengers) > 1 else column
        is_refused = not is_missing(side.get("not_compared"))
        text = NONE if value is None else with_interval(write(value), *ends)
        line[own] = "not compared" if is_refused else TableCell(text, value)
    return line


def _answer_lines(rows: Sequence[Row]) -> Iterator[TableLine]:
    """Yield the scores of the models in each task with their differences, then the paper's average."""
    models, challengers = _models(rows)
    difference = Column("difference, points", "comparison")
    means: dict[tuple[str, str, str, str], dict[str, dict[str, float]]] = {}
    for lead, sides in models_by_point(rows):
        point = key_cells(
            **{name: lead[name] for name in ("task", "shots", "pairs", "context", "size", "seed")}
        )
        key = (lead["shots"], lead["context"], lead["size"], lead["seed"])
        for model, side in sides.items():
            if (accuracy := number_of(side.get("acc"))) is not None:
                means.setdefault(key, {}).setdefault(lead["task"], {})[model] = accuracy
        for metric in _scores_of(sides):
            line = point | key_cells(metric=metric)
            line |= {Column(model, model=model): _score(sides.get(model), metric) for model in models}
            if metric in _SHARES:
                line |= _compared(sides, challengers, f"{metric}_difference", difference, _signed_points)
                line |= _compared(sides, challengers, f"{metric}_mcnemar_p", Column("McNemar p"), format_p)
            yield line
    for (shots, context, size, seed), accuracies in means.items():
        found = paper_average(accuracies)
        if found is not None and len(found[1]) == len(models):
            tasks, values = found
            point = key_cells(shots=shots, context=context, size=size, seed=seed)
            line = key_cells(task=f"mean of {', '.join(tasks)}") | point | key_cells(metric="acc")
            yield line | {Column(m, model=m): number_cell(values[m], format_percent) for m in models}


def _signed_points(value: float) -> str:
    return f"{POINTS * value:+.1f}"


def _scores_of(sides: Mapping[str, Row]) -> list[str]:
    """Return the scores of any model; "acc" where there is none."""
    skipped = ("_stderr", "_low", "_high", "_difference", "_ratio", "_mcnemar_p")
    found = {
        name
        for side in sides.values()
        for name, value in side.items()
        if name not in (*QUALITY_LEAD, *COST_LEAD, *_NOT_SCORES)
        and not name.endswith(skipped)
        and not is_missing(value)
    }
    return [*(m for m in _FIRST_SCORES if m in found), *sorted(found - set(_FIRST_SCORES))] or ["acc"]


def _training_lines(known: Workload, rows: Sequence[Row]) -> Iterator[TableLine]:
    """Yield one row per training: its settings and its final metrics."""
    metrics = [
        metric
        for metric in known.metrics
        if not metric.optional or any(not is_missing(row.get("validation_acc")) for row in rows)
    ]
    # A task has no tokenizer, and its losses are means over the answers; see `points.loss_unit`.
    is_task = all(is_missing(row["tokenizer"]) for row in rows)
    headings = {m: m.heading.replace("/token", "/answer") if is_task else m.heading for m in metrics}
    for row in rows:
        found = (number_of(row.get(name)) for name in ("num_tokens", "trained_tokens"))
        tokens = next((number for number in found if number is not None), None)
        line = key_cells(
            model=str(row["model"]), size=_size(row), seed=plain_cell(row["seed"]), run=str(row["role"])
        )
        line |= {
            Column("learning rate", "key"): number_cell(number_of(row["learning_rate"]), "{:.3g}".format),
            Column("sequence", "key"): length_cell(row["context_len"]),
            Column("tokens"): number_cell(tokens, format_count),
            **{Column(headings[m], metric=m.name): _training_score(row, m.name) for m in metrics},
        }
        speed = number_of(row.get("tokens_per_s"))
        yield line | {Column("tokens/s"): number_cell(speed, partial(format_metric, "tokens_per_s"))}


def _training_score(row: Row, metric: str) -> str:
    """Return a metric of a training, or that the run has not learnt its task."""
    value = number_of(row.get(metric))
    if metric == "learnt_step" and value is None and number_of(row.get("validation_acc")) is not None:
        return "not learnt"
    if metric == "validation_acc" and value is not None:
        return TableCell(format_percent(value), value)
    return _score(row, metric)
