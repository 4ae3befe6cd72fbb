"""Costs of one model compared with another's: ratios and crossovers; and how a cost grows with the context length.

A ratio is paired within the rounds of one measurement session. Models that share no session are compared unpaired, with
the wider interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import correlation, linear_regression
from typing import NamedTuple

import pandas as pd

from retbench.report.lineup import Lineup
from retbench.report.sweeps import POINT_KEY, CostSweep, value_and_ends
from retbench.stats.intervals import (
    Crossover,
    Equivalence,
    Interval,
    crossover,
    ratio_interval,
    slope_equivalence,
    unpaired_ratio_interval,
)
from retbench.units import format_tokens
from retbench.workloads.workload import WORKLOADS, Workload

LEVEL_MARGIN = 0.05
"""A cost is constant in context length where the ratio of the last to the first length lies within 1 ± this."""

LINEAR_MARGIN = 0.02
"""A cost is linear in context length where a straight line misses no point by more than this share of it."""


@dataclass(frozen=True)
class Line:
    """Straight line through a cost over the context length, by least squares.

    Attributes:
        lengths: Context lengths of the fit, tokens.
        slope: Cost per token.
        intercept: Cost at no token.
        largest_residual: Largest residual over the point's value.
        r_squared: Share of the variance that the line explains; nearly 1 for a square as well.
    """

    lengths: tuple[int, ...]
    slope: float
    intercept: float
    largest_residual: float
    r_squared: float

    @property
    def fits(self) -> bool:
        """True if the cost is linear in context length."""
        return self.largest_residual <= LINEAR_MARGIN


class CostRatio(NamedTuple):
    """Ratio of two costs at one point; the ends are NaN without an interval.

    Attributes:
        num_rounds: Paired rounds, or the fewer rounds of the two models.
        unpaired: Whether the models were measured in different sessions.
    """

    ratio: float
    low: float
    high: float
    num_rounds: int
    unpaired: bool


Rounds = Mapping[tuple[str, int], float]
"""Values of one model at one point by (measurement session, round)."""


def compare_rounds(mine: Rounds, theirs: Rounds) -> tuple[Interval, bool] | None:
    """Return the ratio of two models' values, and whether it is unpaired.

    Models that share a measurement session are compared in the rounds that both have there; None without such a round.
    A cost is above 0: other values do not count.
    """
    mine, theirs = ({key: value for key, value in side.items() if value > 0} for side in (mine, theirs))
    shared = sorted(mine.keys() & theirs.keys(), key=lambda key: key[1])
    if shared:
        return ratio_interval([mine[key] for key in shared], [theirs[key] for key in shared]), False
    sessions = {session for session, _ in mine} & {session for session, _ in theirs}
    if sessions or not mine or not theirs:
        return None
    return unpaired_ratio_interval(list(mine.values()), list(theirs.values())), True


def cost_ratio(mine: pd.DataFrame, theirs: pd.DataFrame) -> CostRatio | None:
    """Return the ratio of two models' observations of one cost at one point; None where they cannot be compared."""
    found = compare_rounds(_rounds(mine), _rounds(theirs))
    return CostRatio(*value_and_ends(found[0]), found[0].num_rounds, found[1]) if found else None


def _rounds(rows: pd.DataFrame) -> Rounds:
    found = zip(rows["session"], rows["round"], rows["value"], strict=True)
    return {(str(session), int(number)): float(value) for session, number, value in found}


def shared_rounds(mine: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return those observations of one cost of two models that a paired `cost_ratio` compares."""
    key = ["session", "round"]
    mine, theirs = (side[side["value"] > 0] for side in (mine, theirs))
    return mine.merge(theirs[key], on=key), theirs.merge(mine[key], on=key)


def pair_ratios(metrics: pd.DataFrame, models: Lineup) -> pd.DataFrame:
    """Return each model's primary metric over the reference's, at every point that both have.

    The columns are those of `POINT_KEY`, model, reference, metric and the fields of `CostRatio`.
    """
    columns = [*POINT_KEY, "model", "reference", "metric", *CostRatio._fields]
    primary = {name: workload.primary.name for name, workload in WORKLOADS.items()}
    main = metrics[metrics["metric"] == metrics["workload"].map(primary)]
    keys = [*POINT_KEY, "metric"]
    reference = dict(iter(main[main["model"] == models.reference].groupby(keys, observed=True)))
    rows = []
    for model in models.challengers:
        for key, mine in main[main["model"] == model].groupby(keys, sort=True, observed=True):
            found = cost_ratio(mine, reference[key]) if key in reference else None
            if found is not None:
                *point, metric = key
                rows.append((*point, model, models.reference, metric, *found))
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class Comparison:
    """A sweep of an installed workload, with the ratios of its models to the reference."""

    sweep: CostSweep

    @cached_property
    def ratios(self) -> pd.DataFrame:
        """Rows of `pair_ratios`; none where no two models were measured at the same point."""
        return pair_ratios(self.sweep.metrics, self.sweep.models)

    @property
    def workload(self) -> Workload:
        """Workload of the sweep."""
        return WORKLOADS[self.sweep.workload]

    @property
    def reference(self) -> str:
        """Model that the others are compared with."""
        return str(self.sweep.models.reference)

    @property
    def batch(self) -> str:
        """Batch size, to follow a clause: ', batch 8'; empty where the workload finds it."""
        return "" if self.workload.finds_batch else f", batch {self.sweep.batch_size}"

    @property
    def deepest(self) -> int:
        """Longest context at which a model is compared."""
        return int(self.ratios["context_len"].max())

    @cached_property
    def ranking(self) -> list[str]:
        """Models compared at the longest context, the best one first."""
        rows = self.ratios[self.ratios["context_len"] == self.deepest]
        ascending = self.workload.primary.lower_is_better is not False
        return [str(model) for model in rows.sort_values("ratio", ascending=ascending)["model"]]

    def named(self, model: str) -> str:
        """Return the name of a model in a sentence."""
        return self.sweep.models.named(model)


def by_round(metrics: pd.DataFrame, metric: str, model: str) -> pd.DataFrame:
    """Return one cost of a sweep: a row per round of a session, a column per context length; NaN without a value."""
    return _pivot(_rows(metrics, metric, model), "value")


def _rows(metrics: pd.DataFrame, metric: str, model: str) -> pd.DataFrame:
    return metrics[(metrics["metric"] == metric) & (metrics["model"] == model) & (metrics["value"] > 0)]


def _pivot(rows: pd.DataFrame, values: str) -> pd.DataFrame:
    table = rows.pivot(index=["session", "round"], columns="context_len", values=values)
    return table.sort_index(level="round", sort_remaining=False).sort_index(axis=1)


def ratios_by_round(metrics: pd.DataFrame, metric: str, model: str, reference: str) -> pd.DataFrame:
    """Return the ratios of two costs: a row per paired round, a column per context length.

    Models that share no measurement session have one row: the ratios of their geometric means.
    """
    sides = [_rows(metrics, metric, name) for name in (model, reference)]
    both = sides[0].merge(sides[1], on=["session", "round", "context_len"], suffixes=("", "_reference"))
    if set(sides[0]["session"]) & set(sides[1]["session"]):
        return _pivot(both.assign(ratio=both["value"] / both["value_reference"]), "ratio")
    ratios = {
        length: found.ratio
        for length, mine in sides[0].groupby("context_len", sort=True)
        if (found := cost_ratio(mine, sides[1][sides[1]["context_len"] == length])) is not None
    }
    return pd.DataFrame([ratios])


def find_crossover(
    metrics: pd.DataFrame, metric: str, model: str, reference: str
) -> tuple[list[int], Crossover] | None:
    """Return the lengths used and the context length from which on `model` costs less than `reference`.

    The note says how many rounds were left out. None where the two share fewer than two lengths of a sweep's metrics.
    """
    lengths, ratios, num_rounds = _complete(ratios_by_round(metrics, metric, model, reference))
    if len(lengths) < 2:
        return None
    found = crossover(lengths, ratios)
    left_out = _left_out(lengths, len(ratios), num_rounds)
    return lengths, replace(found, note=f"{found.note} {left_out}".strip())


def find_primary_crossover(sweep: CostSweep, model: str) -> tuple[list[int], Crossover] | None:
    """Return the crossover of a sweep's primary metric with the reference; None too where that is not a cost."""
    metric = sweep.primary
    if metric is None or not metric.lower_is_better:
        return None
    return find_crossover(sweep.metrics, metric.name, model, str(sweep.models.reference))


def find_slope(metrics: pd.DataFrame, metric: str, model: str) -> tuple[list[int], Equivalence, str] | None:
    """Return the lengths used, whether a cost is constant in context length, and how many rounds were left out, if any.

    None with fewer than two lengths.
    """
    lengths, values, num_rounds = _complete(by_round(metrics, metric, model))
    if len(lengths) < 2:
        return None
    return (
        lengths,
        slope_equivalence(lengths, values, LEVEL_MARGIN),
        _left_out(lengths, len(values), num_rounds),
    )


def fit_line(points: pd.DataFrame, metric: str, model: str) -> Line | None:
    """Return the line through a metric of a sweep's points.

    None with fewer than three lengths, since a line passes through any two, and where all values are equal or one is
    not above 0.
    """
    rows = points[(points["metric"] == metric) & (points["model"] == model)].sort_values("context_len")
    lengths = [int(length) for length in rows["context_len"]]
    values = [float(value) for value in rows["value"]]
    if len(lengths) < 3 or min(values) <= 0 or min(values) == max(values):
        return None
    return line_through(lengths, values)


def line_through(lengths: Sequence[int], values: Sequence[float]) -> Line:
    """Return the line through three costs or more, above 0 and not all equal."""
    slope, intercept = linear_regression(lengths, values)
    residuals = [
        abs(intercept + slope * length - value) / value for length, value in zip(lengths, values, strict=True)
    ]
    return Line(tuple(lengths), slope, intercept, max(residuals), correlation(lengths, values) ** 2)


def _left_out(lengths: Sequence[int], counted: int, num_rounds: int) -> str:
    """Return a sentence on the rounds that count where others lack some of the lengths; nothing where all count."""
    reach = f"{format_tokens(lengths[0])} to {format_tokens(lengths[-1])}"
    some = f"Only rounds with every length from {reach} count, {counted} of {num_rounds}."
    return some if counted < num_rounds else ""


def _complete(table: pd.DataFrame) -> tuple[list[int], list[list[float]], int]:
    """Return lengths and rounds without gaps, and how many rounds have any of these lengths.

    Lengths that half of the rounds lack are dropped, then incomplete rounds. Before that, lengths are dropped that the
    measurement session with the most lengths lacks, of several the latest: no round of it has them.
    """
    if "session" in table.index.names and len(table):
        has = table.notna().groupby(level="session").any()
        widest = max(has.index, key=lambda session: (has.loc[session].sum(), session))
        table = table.loc[:, has.loc[widest]]
    present = table.notna().sum(axis=0)
    found = table.loc[:, present * 2 > present.max()].dropna(how="all")
    kept = found.dropna()
    if kept.empty:
        return [], [], len(found)
    return [int(length) for length in kept.columns], kept.to_numpy().tolist(), len(found)
