"""Comparisons of one size over the seeds of its trainings.

An interval over documents is about two models as they were trained, and another seed's result often lies outside. From
`MIN_SEEDS` trainings on, Student's interval over them decides which model is better, on the documents that were scored.
"""

from collections.abc import Sequence

from retbench.report.wording import with_interval
from retbench.stats.intervals import Interval, geometric_interval, mean_interval
from retbench.stats.paired import Estimate, PairedAccuracy

MIN_SEEDS = 3
"""Fewest trainings of one size for an interval over them."""


def ratio_over_seeds(ratios: Sequence[Estimate]) -> Interval | None:
    """Return the geometric mean of a size's ratios with its interval over the trainings; None for too few of them."""
    return geometric_interval([ratio.value for ratio in ratios]) if len(ratios) >= MIN_SEEDS else None


def difference_over_seeds(pairs: Sequence[PairedAccuracy]) -> Interval | None:
    """Return the mean of a size's differences of accuracies with its interval over the trainings, or None likewise."""
    return mean_interval([pair.difference for pair in pairs]) if len(pairs) >= MIN_SEEDS else None


def describe_interval(found: Interval) -> str:
    """Return a mean over seeds with its interval: '0.924 [0.890, 0.958]'."""
    ends = [f"{end:.3f}" for end in (found.low, found.high) if end is not None]
    return with_interval(f"{found.value:.3f}", *ends)
