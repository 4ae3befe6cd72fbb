"""Tables of quality for people: the models side by side, one table a workload."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from retbench.report.readings import TRAINING_RUN
from retbench.report.scenes import describe_status
from retbench.report.score_frame import LEAD, QUESTION_COLUMNS
from retbench.report.tasks import ACCURACIES, paper_average
from retbench.units import format_count, format_percent, format_rate, format_tokens

Row = Mapping[str, Any]

POINTS = 100
"""Percentage points in a difference of 1 between accuracies."""

_LOSSES = {"nats_per_token": "nats/token", "bits_per_byte": "bits/byte", "word_perplexity": "word perplexity"}
_UNSCORED = ("num_truncated", "num_tokens", "tokens_per_s")
"""Metrics of an evaluation that are no score."""


def readable_scores(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table of `score_frame` for people: one a workload, models as columns, what is the same everywhere left out."""
    writers = {"perplexity": _perplexities, "zeroshot": _answers, TRAINING_RUN: _trainings}
    tables = {}
    for workload, writer in writers.items():
        rows: list[Row] = frame[frame["workload"] == workload].to_dict(orient="records")  # type: ignore[assignment]
        if rows:
            table = pd.DataFrame(list(writer(rows))).fillna("–")
            idle = [name for name in ("seed", "protocol") if name in table and set(table[name]) == {"–"}]
            tables[workload] = table.drop(columns=idle)
    return tables


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _sides(rows: Sequence[Row]) -> Iterator[tuple[dict[str, str], dict[str, Row]]]:
    """Rows that stand side by side: what was asked of which subject, in words, and the row of each model."""
    names = (*QUESTION_COLUMNS, "size", "seed")
    for key, group in groupby(rows, key=lambda row: tuple(row[name] for name in names)):
        values = dict(zip(names, key, strict=True))
        words = {"size": str(values["size"]), "seed": _plain(values["seed"])}
        context = format_tokens(int(values["context_len"]))
        lead = {"task": _plain(values["task"]), "protocol": _plain(values["protocol"]), "context": context}
        yield lead | {"shots": _plain(values["num_fewshot"])} | words, {str(r["model"]): r for r in group}


def _models(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """All models, and those that were compared with the reference."""
    models = dict.fromkeys(str(row["model"]) for row in rows)
    compared = {str(row["model"]) for row in rows if not _missing(row["reference"])}
    return list(models), [model for model in models if model in compared]


def _plain(value: object) -> str:
    return "–" if _missing(value) else str(value)


def _perplexities(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    """Losses of the models at each point, and the ratio of their bits per byte, or per token where no bytes are."""
    models, challengers = _models(rows)
    ratios = {"byte": "bits_per_byte_ratio", "token": "bits_per_token_ratio"}
    units = [u for u, column in ratios.items() if any(not _missing(row.get(column)) for row in rows)]
    for words, sides in _sides(rows):
        line = {"corpus": words["task"], **{n: words[n] for n in ("protocol", "context", "size", "seed")}}
        tokenizers = {_plain(side["tokenizer"]) for side in sides.values()}
        for metric, heading in _LOSSES.items():
            for model in models:
                text = _loss(sides.get(model), metric)
                if metric == "nats_per_token" and len(tokenizers) > 1 and model in sides:
                    text += f" ({_plain(sides[model]['tokenizer'])})"  # another token: not to be compared
                line[f"{heading}, {model}"] = text
        for unit in units or ["byte"]:
            line |= _verdicts(sides, challengers, ratios[unit], f"ratio of bits/{unit}", _ratio)
        yield line


def _loss(side: Row | None, metric: str) -> str:
    """A loss with four digits; without a value the reason."""
    if side is None:
        return describe_status("missing")
    value = side.get(metric, math.nan)
    if _missing(value):
        return "–" if side["status"] == "ok" else describe_status(str(side["status"]))
    return f"{value:.4g}" if metric == "word_perplexity" else f"{value:.4f}"


def _verdicts(
    sides: Mapping[str, Row],
    challengers: Sequence[str],
    column: str,
    heading: str,
    write: Callable[[Row, str], str],
) -> dict[str, str]:
    """A column for each model that is compared with the reference."""
    line = {}
    for model in challengers:
        side = sides.get(model, {})
        own = f"{heading}, {model}" if len(challengers) > 1 else heading
        line[own] = "not compared" if not _missing(side.get("not_compared")) else write(side, column)
    return line


def _ratio(side: Row, column: str) -> str:
    """A ratio with its interval."""
    return _with_ends(side, column, lambda value: f"{value:.3f}")


def _points(side: Row, column: str) -> str:
    """A difference of accuracies in percentage points with its interval."""
    return _with_ends(side, column, lambda value: f"{POINTS * value:+.1f}")


def _with_ends(side: Row, column: str, write: Callable[[Any], str]) -> str:
    value, low, high = (side.get(f"{column}{end}") for end in ("", "_low", "_high"))
    if _missing(value):
        return "–"
    return write(value) if _missing(low) else f"{write(value)} [{write(low)}, {write(high)}]"


def _answers(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    """Accuracies of the models in each task with their differences, then the paper's average."""
    models, challengers = _models(rows)
    means: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for words, sides in _sides(rows):
        lead = {name: words[name] for name in ("task", "shots", "context", "size", "seed")}
        key = (words["shots"], words["size"], words["seed"])
        for model, side in sides.items():
            if not _missing(side.get("acc", math.nan)):
                means.setdefault(key, {}).setdefault(words["task"], {})[model] = float(side["acc"])
        for metric in _metrics(sides):
            line = lead | {"metric": metric}
            line |= {model: _answer(sides.get(model), metric) for model in models}
            if metric in ACCURACIES:
                line |= _verdicts(sides, challengers, f"{metric}_difference", "difference, points", _points)
                line |= _verdicts(sides, challengers, f"{metric}_mcnemar_p", "McNemar p", _chance)
            yield line
    for (shots, size, seed), accuracies in means.items():
        found = paper_average(accuracies)
        if found is not None and len(found[1]) == len(models):
            tasks, values = found
            line = {"task": f"mean of {', '.join(tasks)}", "shots": shots, "size": size, "seed": seed}
            yield line | {"metric": "acc", **{model: format_percent(values[model]) for model in models}}


def _metrics(sides: Mapping[str, Row]) -> list[str]:
    """The scores that any side has, accuracies first; "acc" where none has one."""
    skipped = ("_stderr", "_low", "_high", "_difference", "_ratio", "_mcnemar_p")
    found = {
        name
        for side in sides.values()
        for name, value in side.items()
        if name not in (*LEAD, *_UNSCORED, "not_compared")
        and not name.endswith(skipped)
        and not _missing(value)
    }
    return [*(m for m in ACCURACIES if m in found), *sorted(found - set(ACCURACIES))] or ["acc"]


def _answer(side: Row | None, metric: str) -> str:
    """A score with its standard error; an accuracy in percent."""
    if side is None:
        return describe_status("missing")
    value, error = side.get(metric), side.get(f"{metric}_stderr")
    if _missing(value):
        return "–" if side["status"] == "ok" else describe_status(str(side["status"]))
    assert value is not None
    if metric in ACCURACIES:
        return format_percent(value) if _missing(error) else f"{POINTS * value:.1f} ± {POINTS * error:.1f} %"  # type: ignore[operator]
    return f"{value:.4g}" if _missing(error) else f"{value:.4g} ± {error:.2g}"


def _chance(side: Row, column: str) -> str:
    """A p-value, not more exact than it is worth."""
    value = side.get(column)
    return "–" if _missing(value) else format_p(float(value))  # type: ignore[arg-type]


def format_p(p_value: float) -> str:
    """A p-value with two digits, or that it is small."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def _trainings(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    """A line a run: what it was given and where it ended."""
    for row in rows:
        loss, rate = row.get("validation_loss_nats"), row.get("tokens_per_s")
        tokens = row.get("num_tokens") if not _missing(row.get("num_tokens")) else row["trained_tokens"]
        yield {
            "model": str(row["model"]),
            "size": str(row["size"]),
            "seed": _plain(row["seed"]),
            "run": str(row["role"]),
            "learning rate": "–" if _missing(row["learning_rate"]) else f"{row['learning_rate']:.3g}",
            "sequence": format_tokens(int(row["context_len"])),
            "tokens": "–" if _missing(tokens) else format_count(float(tokens)),  # type: ignore[arg-type]
            "validation loss, nats/token": _loss({**row, "loss": loss}, "loss"),
            "tokens/s": "–" if _missing(rate) else format_rate(float(rate), "").strip(),  # type: ignore[arg-type]
        }
