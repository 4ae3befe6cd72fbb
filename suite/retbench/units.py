"""Conversion of numbers from base units on disk to readable units in print; no other module converts units.

Stored numbers are in s, bytes, bytes/s, FLOP/s, tokens/s and ratios (never percent).
GiB is 2^30 bytes and GB is 10^9 bytes; the two never mix.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache

GIB = 2**30
MIB = 2**20
KIB = 2**10
GB = 10**9

_TIME_STEPS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_SHORTEST_S, _LONGEST_S = 1e-11, 1e6
"""Between these, a duration is written without an exponent."""
_BYTE_STEPS = ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "B"))
_RATE_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
_ENERGY_STEPS = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))
PRINTED_UNITS: dict[str, tuple[float, str]] = {
    "GB": (GB, "bytes"),
    "MB": (1e6, "bytes"),
    "bytes": (1, "bytes"),
    "ms": (1e-3, "s"),
    "wps": (1, "tokens/s"),
    "tokens/s": (1, "tokens/s"),
    "percent": (0.01, "ratio"),
    "x": (1, "ratio"),
    "ratio": (1, "ratio"),
    "perplexity": (1, "ratio"),
    "nats": (1, "nats"),
    "number": (1, "count"),
    "px": (1, "count"),
}
"""Units that papers print in: size in the base unit, and the base unit. RetNet's words per second are tokens."""

_UNIT_WORDS = {unit: unit for unit in ("s", "bytes", "bits", "nats", "ratio", "tokens")}
_UNIT_WORDS |= {"j": "J", "w": "W", "flops": "FLOP"}
"""Base units by the word of a metric's name that states them."""
_FIRST_WORDS = {"num": "count", "acc": "ratio"}

_COUNT_STEPS = ((1e9, " B"), (1e6, " M"), (1e3, " K"), (1, ""))


@lru_cache(maxsize=1024)
def stated_unit(metric: str) -> str | None:
    """Return the base unit that the name of a metric states, such as "bytes" of `peak_bytes`; None if it states none.

    A name with `num_` is a count, and one with `acc` a share: `acc_bytes` is normalised by bytes. One with `_per_` has
    the unit of what is before it, over seconds in `tokens_per_s`.
    """
    first = metric.split("_", 1)[0]
    if first in _FIRST_WORDS:
        return _FIRST_WORDS[first]
    before, per, divisor = metric.rpartition("_per_")
    *_, word = (before if per and "_" not in divisor else metric).split("_")
    if word == metric:  # a name of one word
        return None
    unit = _UNIT_WORDS.get(word)
    return f"{unit}/s" if unit and per and divisor == "s" else unit


def _three_digits(value: float) -> str:
    """Return three significant digits without an exponent; large numbers have all digits."""
    rounded = _rounded(value)
    if rounded >= 100:
        return _whole(value)
    return f"{value:.{1 if rounded >= 10 else 2}f}"


def _whole(value: float) -> str:
    """Return a whole number, with thousands separators where it has five digits or more."""
    return f"{value:.0f}" if abs(round(value)) < 10_000 else f"{value:,.0f}"


def _rounded(value: float) -> float:
    """Return the magnitude rounded to three digits, so that 0.9999 s is 1.00 s and not 1000 ms.

    A quotient is rounded in decimal: 0.0009995 s is a little less than 0.9995 ms in a double, and 999.5 µs is not.
    """
    return abs(float(f"{Decimal(f'{value:.12g}'):.3g}"))


def _pick(value: float, steps: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """Return the largest unit in which `value` is 1 or more, or the smallest unit."""
    return next((step for step in steps if _rounded(value / step[0]) >= 1), steps[-1])


def format_seconds(seconds: float) -> str:
    """Format a duration with three significant digits: 0.00123 -> '1.23 ms'."""
    if not seconds:
        return "0 s"
    if not _SHORTEST_S <= abs(seconds) < _LONGEST_S:  # the end of an interval over two rounds
        return f"{seconds:.2e} s"
    size, unit = _pick(seconds, _TIME_STEPS)
    return f"{_three_digits(seconds / size)} {unit}"


def format_duration(seconds: float) -> str:
    """Format a waiting time in words: 75 -> '1 min 15 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {secs:02d} s"


def format_bytes(num_bytes: float) -> str:
    """Format a size in binary units: 6291456 -> '6.00 MiB'."""
    size, unit = _pick(num_bytes, _BYTE_STEPS)
    return f"{num_bytes:.0f} B" if size == 1 else f"{_three_digits(num_bytes / size)} {unit}"


def format_energy(joules: float) -> str:
    """Format an energy with three significant digits: 0.0123 -> '12.3 mJ'."""
    size, unit = _pick(joules, _ENERGY_STEPS)
    return f"{_three_digits(joules / size)} {unit}"


def format_power(watts: float) -> str:
    """Format a power with three significant digits: 287.4 -> '287 W'."""
    return f"{_three_digits(watts)} W"


def format_rate(per_second: float, unit: str) -> str:
    """Format a rate with a decimal prefix: (30.3e9, 'B/s') -> '30.3 GB/s'."""
    size, prefix = _pick(per_second, _RATE_STEPS)
    return f"{_three_digits(per_second / size)} {prefix}{unit}"


def format_count(count: float) -> str:
    """Format a count with its usual prefix: 24_500_000 -> '24.5 M', 6.74e9 -> '6.74 B'."""
    size, suffix = _pick(count, _COUNT_STEPS)
    return f"{count:.0f}" if size == 1 else f"{_three_digits(count / size)}{suffix}"


def format_items(count: int, noun: str) -> str:
    """Write a number of things: (1, 'run') -> '1 run', (2, 'run') -> '2 runs'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_percent(ratio: float) -> str:
    """Format a ratio as percent: 0.0123 -> '1.2 %'."""
    return f"{100 * ratio:z.1f} %"


def format_tokens(num_tokens: int) -> str:
    """Format a context length as papers do: 32768 -> '32K', 1000 -> '1000', 50000 -> '50,000'."""
    if num_tokens >= 1024 and num_tokens % 1024 == 0:
        return f"{_whole(num_tokens // 1024)}K"
    return _whole(num_tokens)


def read_tokens(text: str) -> int:
    """Read a number of tokens as people write it: '8192', '8_192', '8,192', '8K', '8k'; K is 1,024 and M 1,024².

    Raises:
        ValueError: it is not a number, or no whole number of tokens.
    """
    match = _TOKENS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a number of tokens; write it as 8192, 8_192 or 8K")
    count = Decimal(match["number"].replace(",", "").replace("_", "")) * _TOKEN_STEPS[match["unit"].upper()]
    if count % 1:
        raise ValueError(f"{text!r} is {count:f} tokens; give a whole number")
    return int(count)


_TOKENS = re.compile(
    r"(?P<number>[0-9]{1,3}(?:,[0-9]{3})+|[0-9](?:_?[0-9]){0,17}(?:\.[0-9]{1,6})?) ?(?P<unit>[kKmM]?)"
)
_TOKEN_STEPS = {"": 1, "K": KIB, "M": MIB}


def format_batch(size: float) -> str:
    """Format a batch size: 1024 -> '1024', 16384 -> '16,384'."""
    return _whole(size)


def format_number(number: float) -> str:
    """Format a number without a unit with four significant digits, from 10,000 to a million whole: '18,654'.

    A last zero is kept: 27.4 -> '27.40'. Whole numbers below 10,000, such as counts, have no decimals.
    """
    if 9999.5 <= abs(number) < 1e6:
        return f"{number:,.0f}"
    return f"{number:.4g}" if abs(number) < 1e4 and number % 1 == 0 else f"{number:#.4g}".rstrip(".")


def format_size(name: str) -> str:
    """Write the name of a model size for people: '25m' -> '25M', 'fla-1.3b' -> 'fla-1.3B'."""
    return re.sub(r"(?<=[0-9])[kmb]$", lambda unit: unit[0].upper(), name)


def from_printed(value: float, unit: str) -> tuple[float, str]:
    """Convert a number as a paper prints it to its base unit: (4.19, 'MB') -> (4190000.0, 'bytes')."""
    size, base = PRINTED_UNITS[unit]
    return value * size, base


_PRINTED_WORDS = {"percent": " %", "x": "x", "perplexity": "", "ratio": "", "number": "", "wps": " words/s"}


def format_printed(value: float, unit: str) -> str:
    """Format a number as a paper prints it, with its unit: (70.0, 'percent') -> '70 %', (13.9, 'GB') -> '13.9 GB'."""
    return f"{value:g}{_PRINTED_WORDS.get(unit, f' {unit}')}"


def tokens_per_second(num_tokens: int, seconds: float) -> float:
    """Return the rate of `num_tokens` produced in one call of `seconds` (not of several calls)."""
    return num_tokens / seconds
