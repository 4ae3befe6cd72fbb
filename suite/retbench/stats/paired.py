"""Statistics over documents: two models on the same texts or questions, compared document by document.

The unit is the document, because another evaluation would draw other documents. Both models' results of a document
stay together, so that its difficulty cancels. Functions raise RecordError for missing, unpaired or impossible values.

An interval over documents is about two models as they were trained, and another seed's result often lies outside. From
`MIN_SEEDS` trainings of one size on, Student's interval over them decides which model is better, on the documents that
were scored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

from retbench.errors import RecordError
from retbench.stats.intervals import (
    CONFIDENCE,
    Array,
    Interval,
    finite_array,
    geometric_interval,
    mean_interval,
    paired,
)

NUM_RESAMPLES = 10_000
SIGNIFICANT = 1 - CONFIDENCE
"""Largest p-value of a significant difference."""
MIN_DOCUMENTS = 10
"""With fewer documents a bootstrap interval covers too little: only the value is given."""
MIN_SEEDS = 3
"""Fewest trainings of one size for an interval over them."""

_DRAWN_AT_ONCE = 2_000_000
"""Documents drawn in one pass, which bounds the memory of resampling."""


@dataclass(frozen=True)
class Estimate:
    """A ratio of sums over documents; with fewer than `MIN_DOCUMENTS` it has neither interval nor p-value.

    The p-value is two-sided, against the value that means no difference. It is below 5 % where the interval excludes
    that value, up to the grain of the resampling.
    """

    value: float
    low: float | None
    high: float | None
    num_documents: int
    p_value: float | None = None


@dataclass(frozen=True)
class PairedAccuracy:
    """Accuracies of two models on the same questions, compared.

    Attributes:
        first: Questions that only the first answers correctly.
        second: Questions that only the second answers correctly.
        num_documents: Questions.
        difference: Accuracy of the first minus that of the second.
        low: Lower end of the difference's interval.
        high: Upper end.
        p_value: McNemar's exact test, two-sided: the chance of a split as uneven as `first` to `second` where
            neither model is better.
    """

    first: int
    second: int
    num_documents: int
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def is_significant(self) -> bool:
        """True where the test finds one model better."""
        return self.p_value < SIGNIFICANT


def ratio_of_sums(
    tops: Sequence[float],
    bottoms: Sequence[float],
    *,
    null: float = 0.0,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the sum of `tops` over the sum of `bottoms`, one pair per document, with a bootstrap interval.

    With the log-likelihoods of two models on the same documents this is the ratio of their bits per byte. With their
    difference over the documents' bytes it is the difference. Documents are drawn with replacement, both values
    together. The interval is the percentile one, its quantiles moved outwards by what Student's t and the
    factor sqrt(n / (n - 1)) add for few documents (Hesterberg, arXiv:1411.5279, "expanded percentile"). The p-value is
    the confidence that is lacking where an end of such an interval lies at `null`.

    All values are finite, and the bottoms neither negative nor all zero. The same seed gives the same interval.
    """
    _check_paired(len(tops), len(bottoms), "documents")
    columns = np.stack([finite_array(tops, "tops: document"), finite_array(bottoms, "bottoms: document")])
    if columns[1].min() < 0 or columns[1].sum() <= 0:
        raise RecordError(
            "the documents' denominators must not be negative nor all zero; "
            f"the smallest is {columns[1].min()} and their sum {columns[1].sum()}. Find the record that holds them."
        )
    num_documents = columns.shape[1]
    top, bottom = (float(column.sum()) for column in columns)
    value = top / bottom
    if not math.isfinite(value):
        raise RecordError(
            f"the sums over the documents are {top} and {bottom}, whose ratio is no finite number. Find the record "
            "that holds them."
        )
    if num_documents < MIN_DOCUMENTS:
        return Estimate(value, None, None, num_documents)
    sums = _resampled_sums(columns, num_resamples, seed)
    with np.errstate(over="ignore"):
        ratios = np.divide(sums[0], sums[1], out=np.full(num_resamples, math.inf), where=sums[1] > 0)
    factor = math.sqrt(num_documents / (num_documents - 1))
    level = float(ndtr(factor * stdtrit(num_documents - 1, (1 - CONFIDENCE) / 2)))
    # Between two infinite values there is no line, and the result of the interpolation is not a number.
    with np.errstate(invalid="ignore"):
        ends = np.quantile(ratios, [level, 1 - level])
    low, high = np.where(np.isnan(ends), math.inf, ends)
    below, above = (np.count_nonzero(beyond) / num_resamples for beyond in (ratios <= null, ratios >= null))
    outside = max(min(below, above), 1 / num_resamples)
    p_value = min(1.0, 2 * float(stdtr(num_documents - 1, ndtri(outside) / factor)))
    return Estimate(value, float(low), float(high), num_documents, p_value)


def _resampled_sums(columns: Array, num_resamples: int, seed: int) -> Array:
    """Return sums of each column over documents drawn with replacement, (columns, resamples)."""
    generator = np.random.default_rng(seed)
    num_documents = columns.shape[1]
    step = max(1, _DRAWN_AT_ONCE // num_documents)
    parts = []
    for start in range(0, num_resamples, step):
        drawn = generator.integers(num_documents, size=(min(step, num_resamples - start), num_documents))
        parts.append(np.stack([column[drawn].sum(axis=1) for column in columns]))
    return np.concatenate(parts, axis=1)


def _check_paired(num_first: int, num_second: int, unit: str) -> None:
    if num_first != num_second or num_first == 0:
        raise RecordError(
            f"{num_first} {unit} on one side and {num_second} on the other: they are compared in pairs, of which there "
            f"must be at least one. Keep the {unit} that both sides have."
        )


def paired_accuracy(first: Sequence[bool], second: Sequence[bool]) -> PairedAccuracy:
    """Compare two models that answered the same questions.

    The test is McNemar's exact test on the questions that one model alone answers correctly. The interval of the
    difference is Agresti and Min's "Wald+2" for matched proportions (Statistics in Medicine 24, 2005, 729-740). It adds
    half a question to each of the four cells, so that it keeps its coverage with few questions and has a width where
    no answer differs.
    """
    _check_paired(len(first), len(second), "answers")
    mine, theirs = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    count = len(mine)
    only_first, only_second = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    discordant = only_first + only_second
    p_value = min(1.0, 2 * float(bdtr(min(only_first, only_second), discordant, 0.5))) if discordant else 1.0
    middle = (only_first - only_second) / (count + 2)
    spread = math.sqrt(discordant + 1 - (only_first - only_second) ** 2 / (count + 2)) / (count + 2)
    half = float(ndtri((1 + CONFIDENCE) / 2)) * spread
    return PairedAccuracy(
        first=only_first,
        second=only_second,
        num_documents=count,
        difference=(only_first - only_second) / count,
        low=max(-1.0, middle - half),
        high=min(1.0, middle + half),
        p_value=p_value,
    )


def proportion_interval(num_right: int, num_documents: int) -> tuple[float, float]:
    """Return Wilson's score interval of the proportion of questions that a model answers correctly."""
    if not 0 <= num_right <= num_documents or num_documents == 0:
        raise RecordError(
            f"{num_right} right answers to {num_documents} questions. Find the record that says so."
        )
    z = float(ndtri((1 + CONFIDENCE) / 2))
    share, spread = num_right / num_documents, z * z / num_documents
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def ratio_over_seeds(ratios: Sequence[Estimate]) -> Interval | None:
    """Return the geometric mean of a size's ratios with its interval over the trainings; None for too few of them."""
    return geometric_interval([ratio.value for ratio in ratios]) if len(ratios) >= MIN_SEEDS else None


def difference_over_seeds(pairs: Sequence[PairedAccuracy]) -> Interval | None:
    """Return the mean of a size's differences of accuracies with its interval over the trainings, or None likewise."""
    return mean_interval([pair.difference for pair in pairs]) if len(pairs) >= MIN_SEEDS else None


def p_over_seeds(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's t against a mean of 0 over the trainings; 1 for a single one."""
    found = paired(differences)
    return min(1.0, 2 * min(found.p_above(0), found.p_below(0)))
