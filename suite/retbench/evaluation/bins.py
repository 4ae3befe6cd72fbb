"""Quantities by bins of a distance: ratios of sums over documents, with their intervals, as series."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retbench.records.record import Series
from retbench.stats.paired import ratio_of_sums


def doubling_ends(first: int, longest: int) -> tuple[int, ...]:
    """Return ends of bins, each twice the one before it, of which the last is `longest` or more."""
    ends = [first]
    while ends[-1] < longest:
        ends.append(2 * ends[-1])
    return tuple(ends)


def ratio_series(
    name: str, unit: str, axis: tuple[str, Sequence[int]], tops: npt.ArrayLike, bottoms: npt.ArrayLike
) -> dict[str, Series]:
    """Return a ratio of sums by bins, with the ends of its 95 % interval over documents as `NAME_low` and `NAME_high`.

    A bin without any count is left out, and a bin with counts in fewer than ten documents has no interval.

    Args:
        name: Name of the series.
        unit: Unit of the ratio.
        axis: Name of the distance, and the ends of its bins.
        tops: Sum of each document in each bin, (documents, bins).
        bottoms: Count of each document in each bin, (documents, bins).
    """
    x_name, ends = axis
    points: dict[str, list[tuple[int, float, int]]] = {}
    for end, top, bottom in zip(ends, np.asarray(tops).T, np.asarray(bottoms).T, strict=True):
        present = bottom > 0
        if not present.any():
            continue
        found = ratio_of_sums(top[present].tolist(), bottom[present].tolist())
        for suffix, value in (("", found.value), ("_low", found.low), ("_high", found.high)):
            if value is not None:
                points.setdefault(name + suffix, []).append((end, value, int(bottom.sum())))
    series = {}
    for key, values in points.items():
        x, y, counts = zip(*values, strict=True)
        series[key] = Series(unit=unit, x_name=x_name, x=x, y=y, counts=counts)
    return series
