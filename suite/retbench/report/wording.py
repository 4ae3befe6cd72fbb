"""Words and numbers that tables, figures and findings share."""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from retbench.records.environment import processor_name
from retbench.records.record import Record
from retbench.stats.intervals import Crossover, Interval
from retbench.stats.paired import Estimate
from retbench.units import format_tokens

_STATUS_WORDS = {
    "oom": "out of memory",
    "timeout": "timed out",
    "failed": "failed",
    "gate_failed": "forms disagree",
    "unsupported": "not supported here",
    "missing": "not measured",
}

_NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=(?:%|[KMGTB]|[nµm]?s|[KMG]i?B|tokens|threads?)(?![A-Za-z]))")

_LARGEST_FACTOR = 100_000

POINTS = 100
"""Percentage points in a difference of 1 between accuracies."""


def describe_status(status: str) -> str:
    """Return a status in words: 'oom' -> 'out of memory'."""
    return _STATUS_WORDS.get(status, status)


def section_title(experiment: str, workload: str, join: str = ": ") -> str:
    """Return experiment and workload in one; the name once where both have the same."""
    return workload if experiment == workload else f"{experiment}{join}{workload}"


def file_stem(text: str) -> str:
    """Return a name as part of a file name: letters, digits, dashes and underscores only, at most 120 bytes of them."""
    stem = re.sub(r"[^\w-]+", "-", text)
    if len(stem.encode()) <= 120:
        return stem
    first = stem.encode()[:110].decode(errors="ignore")
    return f"{first}-{hashlib.sha256(text.encode()).hexdigest()[:9]}"


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV, with NA for a missing value; no text in it is a formula for a spreadsheet."""
    safe = table.rename(columns=_not_formula)
    for position, kind in enumerate(safe.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            cells = [_not_formula(cell) for cell in safe.iloc[:, position]]
            safe.isetitem(position, np.array(cells, dtype=object))  # whole numbers beside None stay whole
    return safe.to_csv(index=False, na_rep="NA", lineterminator="\n")


def _not_formula(cell: object) -> object:
    """Return a cell with an apostrophe before a text that a spreadsheet would compute."""
    if (
        isinstance(cell, str)
        and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        and not _NUMBER.fullmatch(cell)
    ):
        return f"'{cell}"
    return cell


_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")


def bind_units(text: str) -> str:
    """Return text in which no line break separates a number from its unit."""
    return _NUMBER_AND_UNIT.sub("\u00a0", text)


def join_words(items: Sequence[str]) -> str:
    """Return items as a sentence lists them: 'a, b and c'."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def with_interval(value: str, *ends: str) -> str:
    """Return a value with the ends of its interval, if it has one: '0.983 [0.971, 0.995]'."""
    return f"{value} [{', '.join(ends)}]" if ends else value


def span(low: str, high: str, join: str = "–") -> str:
    """Return a range, or the one text where both ends are the same: '1.2–1.4 %'."""
    return low if low == high else f"{low}{join}{high}"


def range_of(values: Iterable[float], describe: Callable[[float], str], join: str = " to ") -> str:
    """Return the least and the largest of some values as a range: '20.0 M to 40.0 M'."""
    found = list(values)
    return span(describe(min(found)), describe(max(found)), join)


def format_factor(factor: float) -> str:
    """Return a factor with three digits; the ends of an interval over two rounds may be beyond all that is of use."""
    if factor > _LARGEST_FACTOR:
        return f"over {_LARGEST_FACTOR:,}"
    return f"{factor:,.0f}" if factor >= 99.95 else f"{factor:#.3g}"


def format_p(p_value: float) -> str:
    """Return a p-value with two digits, or an upper bound of a very small one."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def describe_p(p_value: float) -> str:
    """Return a p-value as a sentence has it: 'p = 0.013', 'p < 0.0001'."""
    text = format_p(p_value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def describe_estimate(estimate: Estimate, sign: str = "") -> str:
    """Return an estimate with its interval, or that there are too few documents for one."""
    value = f"{estimate.value:{sign}.3f}"
    if estimate.low is None or estimate.high is None:
        return f"{value} (no interval: {estimate.num_documents} documents)"
    return with_interval(value, f"{estimate.low:{sign}.3f}", f"{estimate.high:{sign}.3f}")


def describe_difference(difference: Estimate) -> str:
    """Return a difference with its sign and interval, or that there are too few documents for one."""
    return describe_estimate(difference, "+")


def describe_interval(found: Interval) -> str:
    """Return a mean over seeds with its interval: '0.924 [0.890, 0.958]'."""
    ends = [f"{end:.3f}" for end in (found.low, found.high) if end is not None]
    return with_interval(f"{found.value:.3f}", *ends)


def format_length(tokens: float) -> str:
    """Return a computed length with three digits: 2431.7 -> '2,430'; a whole one, which was measured, with all."""
    is_whole = math.isclose(tokens, round(tokens), rel_tol=1e-9)
    return f"{round(tokens) if is_whole else float(f'{tokens:.3g}'):,.0f}"


def crossing_ends(crossing: Crossover) -> list[str]:
    """Return the ends of a crossover's interval; none where all rounds agree, as on bytes."""
    ends = [format_length(end) for end in (crossing.low, crossing.high) if end is not None]
    return ends if len(set(ends)) == 2 else []


def describe_absence(crossing: Crossover, lengths: Sequence[int]) -> str:
    """Return where the model costs less if the range measured holds no crossover.

    The sign of each round's ratio counts, not its interval: 'ahead in every round at every measured length'.
    """
    if crossing.low is None and crossing.high == lengths[0]:
        return "ahead in every round at every measured length"
    if crossing.high is None and crossing.low == lengths[-1]:
        return f"ahead in no round up to {format_tokens(lengths[-1])}"
    if crossing.high is not None:
        return f"ahead in every round from {format_length(_rounded_up(crossing.high, lengths[-1]))} tokens on"
    return "ahead in some rounds only"


def _rounded_up(tokens: float, longest: float) -> float:
    """Return a computed length rounded up to three digits, so that what holds from it on holds from the result on."""
    step = 10.0 ** max(0, math.floor(math.log10(tokens)) - 2)
    return min(math.ceil(tokens / step) * step, longest)


def device_name(record: Record) -> str:
    """Return the vendor's name of the device of a record; see `processor_name`."""
    gpu = record.environment.get("gpu")
    if isinstance(gpu, dict) and "name" in gpu:
        return str(gpu["name"])
    name = str(record.environment.get("cpu_model") or record.environment.get("machine"))
    return processor_name(name, record.environment.get("cpu_generation"))
