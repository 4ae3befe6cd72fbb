"""One model against another within rounds: ratios, where one overtakes; and how one's cost depends on the length."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import correlation, linear_regression

import pandas as pd

from retbench.report.points import MAIN_METRIC, POINT_KEY, Lineup, by_round, ends_of
from retbench.stats.intervals import (
    CONFIDENCE,
    Crossover,
    Equivalence,
    crossover,
    ratio_interval,
    slope_equivalence,
)

LEVEL_MARGIN = 0.05
"""A cost whose ratio of the deepest to the shallowest context lies within 1 ± this is called level."""

LINEAR_MARGIN = 0.02
"""A cost that a straight line misses at no length by more than this share of it is called linear in the length."""


@dataclass(frozen=True)
class Line:
    """The straight line through a cost over the context length, by least squares.

    Attributes:
        lengths: Those it was fitted to, tokens.
        slope: Of the line, a token.
        intercept: At no token.
        largest_residual: Of any point, over the point's value.
        r_squared: Share of the variance that the line explains; nearly 1 for a square as well.
    """

    lengths: tuple[int, ...]
    slope: float
    intercept: float
    largest_residual: float
    r_squared: float

    @property
    def fits(self) -> bool:
        """Whether the cost is linear in the length."""
        return self.largest_residual <= LINEAR_MARGIN


def pair_ratios(metrics: pd.DataFrame, models: Lineup) -> pd.DataFrame:
    """Each model's main metric over the reference's, paired within rounds.

    Args:
        metrics: A `frames.metric_frame`.
        models: Whom to compare with whom.

    Returns:
        Columns of `POINT_KEY`, model, reference, metric, ratio, low, high, num_rounds; a row a point at which
        both have a cost above 0 in a round that they share; low and high are NaN with one such round.
    """
    columns = [*POINT_KEY, "model", "reference", "metric", "ratio", "low", "high", "num_rounds"]
    main = metrics[(metrics["metric"] == metrics["workload"].map(MAIN_METRIC)) & (metrics["value"] > 0)]
    keys = [*POINT_KEY, "metric", "round"]
    reference = main[main["model"] == models.reference][[*keys, "value"]]
    rows = []
    for model in models.challengers:
        mine = main[main["model"] == model][[*keys, "value"]]
        both = mine.merge(reference, on=keys, suffixes=("", "_reference"))
        for key, group in both.groupby([*POINT_KEY, "metric"], sort=True, observed=True):
            *point, metric = key
            top, bottom = list(group["value"]), list(group["value_reference"])
            rows.append((*point, model, models.reference, metric, *_ratio(top, bottom), len(group)))
    return pd.DataFrame(rows, columns=columns)


def _ratio(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, float, float]:
    """Ratio, low and high of rounds that are paired."""
    return ends_of(ratio_interval(top, bottom, CONFIDENCE))


@dataclass(frozen=True)
class Peak:
    """The most tokens/s of a model and of the reference at one context length, each at the best of its batch sizes.

    Attributes:
        batch_sizes: The model's and the reference's.
        values: Their tokens/s: geometric means of the rounds.
        ratio: The model's over the reference's, low and high, paired within rounds; NaN with one round.
    """

    batch_sizes: tuple[int, int]
    values: tuple[float, float]
    ratio: tuple[float, float, float]


def find_peak(metrics: pd.DataFrame, points: pd.DataFrame, model: str, reference: str) -> Peak | None:
    """The most tokens/s of two models.

    Args:
        metrics: Rows of a `frames.metric_frame` of one experiment, workload and context length.
        points: The same of `points.summarise`.
        model: Whose.
        reference: Over whom.

    Returns:
        The two peaks; None where one of the models has none, or they share no round.
    """
    best = []
    for name in (model, reference):
        mine = points[(points["model"] == name) & (points["metric"] == "tokens_per_s")]
        if mine.empty:
            return None
        best.append(mine.sort_values("value").iloc[-1])
    rounds = [
        metrics[
            (metrics["model"] == point["model"])
            & (metrics["metric"] == "tokens_per_s")
            & (metrics["batch_size"] == point["batch_size"])
        ].set_index("round")["value"]
        for point in best
    ]
    both = pd.concat(rounds, axis=1, join="inner", keys=["top", "bottom"])
    if both.empty:
        return None
    top, bottom = best
    return Peak(
        batch_sizes=(int(top["batch_size"]), int(bottom["batch_size"])),
        values=(float(top["value"]), float(bottom["value"])),
        ratio=_ratio(list(both["top"]), list(both["bottom"])),
    )


def find_crossover(
    metrics: pd.DataFrame, metric: str, model: str, reference: str
) -> tuple[list[int], Crossover] | None:
    """The context length from which on `model` costs less than `reference`.

    Args:
        metrics: Rows of one experiment, workload and batch size.
        metric: The cost.
        model: Whose advantage is looked for.
        reference: Over whom.

    Returns:
        The lengths that were used, and the crossover; None where the two share fewer than two lengths.
    """
    lengths, ratios = _complete(by_round(metrics, metric, model) / by_round(metrics, metric, reference))
    return (lengths, crossover(lengths, ratios)) if len(lengths) > 1 else None


def find_slope(metrics: pd.DataFrame, metric: str, model: str) -> tuple[list[int], Equivalence] | None:
    """Whether a cost is the same at the deepest context as at the shallowest.

    Args:
        metrics: Rows of one experiment, workload and batch size.
        metric: The cost.
        model: Whose.

    Returns:
        The lengths that were used, and the verdict; None with fewer than two lengths.
    """
    lengths, values = _complete(by_round(metrics, metric, model))
    return (lengths, slope_equivalence(lengths, values, LEVEL_MARGIN)) if len(lengths) > 1 else None


def fit_line(points: pd.DataFrame, metric: str, model: str) -> Line | None:
    """The line through a metric of one model, whose points have a value each.

    Args:
        points: Rows of `points.summarise`, of one experiment, workload and batch size.
        metric: The metric, above 0.
        model: Whose.

    Returns:
        The line; None with fewer than three lengths, for a line goes through any two, and where all values are the
        same or one is not above 0.
    """
    rows = points[(points["metric"] == metric) & (points["model"] == model)].sort_values("context_len")
    lengths = [int(length) for length in rows["context_len"]]
    values = [float(value) for value in rows["value"]]
    if len(lengths) < 3 or min(values) <= 0 or min(values) == max(values):
        return None
    return line_through(lengths, values)


def line_through(lengths: Sequence[int], values: Sequence[float]) -> Line:
    """The line through three costs or more, above 0 and not all the same."""
    slope, intercept = linear_regression(lengths, values)
    residuals = [
        abs(intercept + slope * length - value) / value for length, value in zip(lengths, values, strict=True)
    ]
    return Line(tuple(lengths), slope, intercept, max(residuals), correlation(lengths, values) ** 2)


def _complete(table: pd.DataFrame) -> tuple[list[int], list[list[float]]]:
    """Lengths and rounds without gaps: lengths that half of the rounds lack go first, then rounds that lack one."""
    present = table.notna().sum(axis=0)
    kept = table.loc[:, present * 2 > present.max()].dropna(axis=0)
    if kept.empty:
        return [], []
    return [int(length) for length in kept.columns], kept.to_numpy().tolist()
