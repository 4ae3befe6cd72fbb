"""Rounds made into points: a value with its interval, and the points that have none.

Takes frames of one selection (see `selection`); rows of different comparable sets must not be mixed here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import pandas as pd

from retbench.records.record import Record
from retbench.stats.intervals import CONFIDENCE, Interval, geometric_interval

MAIN_METRIC = {
    "decode": "tpot_s",
    "prefill": "ttft_s",
    "memory": "peak_bytes",
    "training": "step_s",
    "largest_batch": "largest_batch",
}
"""What a workload is compared by; lower is better for each but the largest batch."""

POINT_KEY = ["experiment", "workload", "batch_size", "context_len"]

_PROPER_NAMES = {"retnet": "RetNet", "transformer": "Transformer"}


@dataclass(frozen=True)
class Lineup:
    """The models of a selection in the order in which they are shown.

    Attributes:
        models: Names, the ones that challenge first and Transformers last.
        reference: The Transformer that the others are compared with; None where there is none.
        labels: A readable name of each.
    """

    models: tuple[str, ...]
    reference: str | None
    labels: dict[str, str]

    @property
    def challengers(self) -> tuple[str, ...]:
        """The models that are compared with the reference."""
        return tuple(model for model in self.models if model != self.reference) if self.reference else ()


def lineup(records: Sequence[Record]) -> Lineup:
    """The models that these records are about."""
    architectures = {record.model.name: record.model.architecture for record in records}
    models = sorted(architectures, key=lambda name: (architectures[name] == "transformer", name))
    transformers = [name for name in models if architectures[name] == "transformer"]
    labels = {}
    for name in models:
        kind = architectures[name]
        proper = _PROPER_NAMES.get(kind, kind)
        alone = list(architectures.values()).count(kind) == 1
        labels[name] = proper if alone else _own_label(proper, kind, name)
    return Lineup(tuple(models), transformers[0] if transformers else None, labels)


def _own_label(proper: str, kind: str, name: str) -> str:
    """A model among others of its kind: 'retnet_chunkwise' -> 'chunkwise RetNet', 'wide' -> 'RetNet (wide)'."""
    own = name.removeprefix(f"{kind}_")
    return f"{proper} ({name})" if own == name else f"{own.replace('_', ' ')} {proper}"


def summarise(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row a (cell, metric): the geometric mean of the rounds' values with its interval.

    Args:
        metrics: A `frames.metric_frame`.

    Returns:
        Columns of `POINT_KEY`, model, metric, unit, value, low, high, num_rounds; low and high are NaN with
        one round, and where a value is not positive (then the value is the median).
    """
    columns = ["experiment", "workload", "model", "batch_size", "context_len", "metric", "unit"]
    rows = []
    for key, group in metrics.groupby(columns, sort=True, observed=True):
        values = [float(value) for value in group.sort_values("round")["value"]]
        rows.append((*key, *_interval(values), len(values)))
    return pd.DataFrame(rows, columns=[*columns, "value", "low", "high", "num_rounds"])


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Value, low and high of the rounds of one point."""
    if min(values) <= 0 or len(values) == 1:
        return median(values), math.nan, math.nan
    if min(values) == max(values):  # counted, not timed: exact, without the rounding of a logarithm
        return values[0], values[0], values[0]
    return ends_of(geometric_interval(values, CONFIDENCE))


def ends_of(interval: Interval) -> tuple[float, float, float]:
    """Value, low and high for a column of numbers: an end that is not there is NaN."""
    low = math.nan if interval.low is None else interval.low
    high = math.nan if interval.high is None else interval.high
    return interval.value, low, high


def by_round(metrics: pd.DataFrame, metric: str, model: str) -> pd.DataFrame:
    """Values of one cost of one model: a row a round, a column a context length, NaN where there is none above 0.

    Args:
        metrics: Rows of one experiment, workload and batch size.
        metric: Name of the metric.
        model: Name of the model.
    """
    rows = metrics[(metrics["metric"] == metric) & (metrics["model"] == model) & (metrics["value"] > 0)]
    return rows.pivot(index="round", columns="context_len", values="value").sort_index().sort_index(axis=1)


def failed_points(status: pd.DataFrame) -> pd.DataFrame:
    """One row a cell that has no round that is ok.

    Args:
        status: A `frames.status_frame`.

    Returns:
        Columns of `POINT_KEY`, model, status, error: of the last round.
    """
    key = [*POINT_KEY, "model"]
    measured = status[status["status"] == "ok"][key].drop_duplicates()
    rest = status.merge(measured, on=key, how="left", indicator=True)
    rest = rest[rest["_merge"] == "left_only"].sort_values("round").drop_duplicates(key, keep="last")
    return rest[[*key, "status", "error"]].sort_values(key, ignore_index=True)
