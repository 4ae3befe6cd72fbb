"""Cost sweeps: one workload of an experiment at one batch size over context lengths, with its rounds as points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import pandas as pd

from retbench.records.dates import started
from retbench.records.record import SHARES, Record
from retbench.report.frames import observations
from retbench.report.lineup import Lineup, lineup
from retbench.report.points import group
from retbench.report.selection import Selection, matched_groups
from retbench.report.wording import describe_status, file_stem, join_words, range_of, section_title
from retbench.stats.intervals import Interval, geometric_interval
from retbench.units import format_tokens
from retbench.workloads.workload import WORKLOADS, MetricSpec

DATA_COLUMNS = ["model", "context_len", "metric", "unit", "value", "low", "high", "num_rounds", "status"]
"""Columns of the data of a figure of cost."""

POINT_WORDS = (
    "Points are geometric means of the rounds' medians, bars their 95 % intervals (often narrower than the marker; "
    "cut where they leave the plot)."
)
"""Meaning of the points and bars of a figure of cost."""

POINT_KEY = ["experiment", "workload", "batch_size", "context_len"]


def summarise(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (cell, metric): the geometric mean of the rounds' values with its interval.

    Args:
        metrics: A `frames.observations` of one selection.

    Returns:
        Columns of `POINT_KEY`, model, metric, unit, value, low, high, num_rounds. The ends are NaN with one round, and
        where a value is not positive (then the value is the median). The interval of a share of a ceiling ends at 1 at
        the latest: no share exceeds that, so an interval cut there covers the share as often.
    """
    columns = ["experiment", "workload", "model", "batch_size", "context_len", "metric", "unit"]
    rows = []
    for key, rounds in metrics.groupby(columns, sort=True, observed=True):
        values = [float(value) for value in rounds.sort_values("round")["value"]]
        value, low, high = _interval(values)
        rows.append((*key, value, low, min(high, 1.0) if key[-2] in SHARES else high, len(values)))
    return pd.DataFrame(rows, columns=[*columns, "value", "low", "high", "num_rounds"])


def mean_of_rounds(values: Sequence[float]) -> float:
    """Return the value of rounds as `summarise` does."""
    return _interval(values)[0]


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    if min(values) <= 0 or len(values) == 1:
        return median(values), math.nan, math.nan
    if min(values) == max(values):  # counted, not timed: exact, without the rounding of a logarithm
        return values[0], values[0], values[0]
    return value_and_ends(geometric_interval(values))


def value_and_ends(interval: Interval) -> tuple[float, float, float]:
    """Return value, low and high as numbers; a missing end is NaN."""
    low = math.nan if interval.low is None else interval.low
    high = math.nan if interval.high is None else interval.high
    return interval.value, low, high


def failed_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell without a successful round: `POINT_KEY`, model, and the last status and error.

    Args:
        frame: A `frames.observations` of one selection.
    """
    key = [*POINT_KEY, "model"]
    ok = (frame["status"] == "ok").groupby([frame[name] for name in key]).transform("any")
    failed = frame[~ok].sort_values("round").drop_duplicates(key, keep="last")
    return failed[[*key, "status", "error"]].sort_values(key, ignore_index=True)


def with_failures(rows: pd.DataFrame, failed: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return measured rows, and a row per metric of each point that failed: the data of a figure of cost."""
    missing = failed.drop(columns="error").merge(pd.DataFrame({"metric": metrics}), how="cross")
    frame = pd.concat([rows.assign(status="ok"), missing], ignore_index=True)
    return frame.sort_values(["metric", "model", "context_len", "batch_size"], ignore_index=True)


@dataclass(frozen=True)
class CostSweep:
    """One workload of one experiment at one batch size.

    Attributes:
        models: All models of the experiment's group, so that a model looks the same everywhere.
        metrics: Its rows of `frames.observations` that have a metric.
        points: Its rows of `summarise`.
        failed: Its rows of `failed_points`.
        records: Its records.
    """

    experiment: str
    workload: str
    batch_size: int
    models: Lineup
    metrics: pd.DataFrame
    points: pd.DataFrame
    failed: pd.DataFrame
    records: tuple[Record, ...]

    @property
    def stem(self) -> str:
        """Name of its experiment and workload, fit for a file name."""
        return file_stem(section_title(self.experiment, self.workload, "_"))

    @property
    def name(self) -> str:
        """Name, unique in a selection and fit for a file name."""
        return f"{self.stem}_batch{self.batch_size}"

    @property
    def primary(self) -> MetricSpec | None:
        """Metric by which models are compared; None of a workload that is not installed here."""
        known = WORKLOADS.get(self.workload)
        return known.primary if known else None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every context length, measured or failed, in order."""
        return tuple(sorted({record.point.context_len for record in self.records}))

    @property
    def num_rounds(self) -> int:
        """Rounds of the cell that has most, or more where the newest run was to measure more, as far as it is known."""
        planned = max(self.records, key=started).num_rounds or 0
        return max(planned, len({record.round for record in self.records}))

    def rows(self, metric: str) -> pd.DataFrame:
        """Return the points of one metric."""
        return self.points[self.points["metric"] == metric]

    def data(self, metrics: list[str], more: Sequence[tuple[object, ...]] = ()) -> pd.DataFrame:
        """Return the data of a figure of some metrics: their points, those that failed, and rows computed from all.

        Args:
            metrics: Names of the metrics.
            more: Computed rows: model, metric, unit, value, low, high, status.
        """
        rows = self.points[self.points["metric"].isin(metrics)]
        data = with_failures(rows, self.failed, metrics).reindex(columns=DATA_COLUMNS)
        columns = ["model", "metric", "unit", "value", "low", "high", "status"]
        computed = pd.DataFrame(list(more), columns=columns).reindex(columns=DATA_COLUMNS).astype(data.dtypes)
        return pd.concat([data, computed], ignore_index=True)

    def cell(self, model: str, length: int) -> list[Record]:
        """Return the records of one model at one context length."""
        return [r for r in self.records if (r.model.name, r.point.context_len) == (model, length)]

    def reason_beyond(self, models: Sequence[str], length: int) -> str:
        """Return why one of these models has no value at the next context beyond `length`; empty if all have."""
        failed = self.failed[(self.failed["context_len"] > length) & self.failed["model"].isin(models)]
        if failed.empty:
            return ""
        first = failed.sort_values("context_len").iloc[0]
        label, status = self.models.named(str(first["model"])), describe_status(str(first["status"]))
        return f"at {format_tokens(int(first['context_len']))} {label} has no value: {status}"

    def subtitle(self, metric: str) -> str:
        """Return the batch size and the meaning of the error bars."""
        return _with_batch(self.batch_size, describe_rounds(self.rows(metric)))


def _with_batch(batch_size: int, rounds: str) -> str:
    return f"batch {batch_size}{'; ' if rounds.startswith('bars') else ', '}{rounds}"


def describe_rounds(rows: pd.DataFrame) -> str:
    """Return the meaning of the error bars of points, or that there are none."""
    counts = rows["num_rounds"][rows["low"].notna()]
    if counts.empty:
        return "one round"
    return f"bars: 95 % interval of {range_of(counts, '{:.0f}'.format)} rounds"


def make_sweeps(selection: Selection) -> list[CostSweep]:
    """Return every cost sweep of a selection, sorted by experiment, workload and batch size."""
    sweeps = [sweep for records in matched_groups(selection.costs) for sweep in _sweeps(records)]
    return sorted(sweeps, key=lambda sweep: (sweep.experiment, sweep.workload, sweep.batch_size))


def _sweeps(records: Sequence[Record]) -> list[CostSweep]:
    frame, models = observations(records), lineup(records)
    metrics, failed = frame[frame["metric"].notna()], failed_points(frame)
    points = summarise(metrics)
    groups = group(records, lambda record: (record.experiment, record.workload, record.point.batch_size))
    return [
        CostSweep(
            *key,
            models=models,
            metrics=_part(metrics, *key),
            points=_part(points, *key),
            failed=_part(failed, *key),
            records=tuple(mine),
        )
        for key, mine in groups.items()
    ]


def _part(frame: pd.DataFrame, experiment: str, workload: str, batch_size: int) -> pd.DataFrame:
    mine = (frame["experiment"] == experiment) & (frame["workload"] == workload)
    return frame[mine & (frame["batch_size"] == batch_size)]


def by_workload(sweeps: Sequence[CostSweep]) -> list[list[CostSweep]]:
    """Return the sweeps of one experiment and workload together, one per batch size, in their order."""
    return list(group(sweeps, lambda sweep: (sweep.experiment, sweep.workload)).values())


def swept_by_batch(sweeps: Sequence[CostSweep]) -> bool:
    """Return whether a workload is swept over more batch sizes than context lengths."""
    return len(sweeps) > len({length for sweep in sweeps for length in sweep.lengths})


def name_of(sweeps: Sequence[CostSweep]) -> str:
    """Return the name of the figure of sweeps that differ in the batch size."""
    return sweeps[0].name if len(sweeps) == 1 else sweeps[0].stem


def subtitle_of(unit: str, sweeps: Sequence[CostSweep], metric: str) -> str:
    """Return unit, batch size unless panels name several, and the meaning of the error bars."""
    rounds = describe_rounds(pd.concat([sweep.rows(metric) for sweep in sweeps]))
    if len({sweep.batch_size for sweep in sweeps}) == 1:
        return f"{unit}, {_with_batch(sweeps[0].batch_size, rounds)}"
    return f"{unit}; {rounds}"


def describe_batches(sweeps: Sequence[CostSweep]) -> str:
    """Return the batch sizes of a figure that has a panel for each of them: 'a panel per batch size (1 and 8)'."""
    sizes = join_words([str(sweep.batch_size) for sweep in sweeps])
    return f"batch {sizes}" if len(sweeps) == 1 else f"a panel per batch size ({sizes})"


def stack_data(sweeps: Sequence[CostSweep], data: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the data of several sweeps in one table, with their batch size if there are several."""
    if len(data) == 1:
        return data[0]
    frames = [each.assign(batch_size=sweep.batch_size) for sweep, each in zip(sweeps, data, strict=True)]
    return pd.concat(frames, ignore_index=True)
