from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (1.0, "1.00 s"),
        (123.4, "123 s"),
        (0.00123, "1.23 ms"),
        (0.0456, "45.6 ms"),
        (7.89e-6, "7.89 µs"),
        (5e-9, "5.00 ns"),
        (5e-10, "0.50 ns"),
        (-0.002, "-2.00 ms"),
        (0.9999, "1.00 s"),
        (0.0009999, "1.00 ms"),
        (0.0009995, "1.00 ms"),
        (99.96, "100 s"),
        (9.999, "10.0 s"),
        (527883224.0, "5.28e+08 s"),
        (4.1e-15, "4.10e-15 s"),
    ],
)
def test_format_seconds_picks_the_unit_and_three_digits(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3600, "1 h 00 min"),
        (3599.7, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_format_duration_reads_as_a_person_says_it(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (6291456, "6.00 MiB"),
        (2**30, "1.00 GiB"),
        (80 * 2**30, "80.0 GiB"),
        (2**40, "1024 GiB"),
        (97656310548 * 2**30, "97,656,310,548 GiB"),
        (2**20 - 1, "1.00 MiB"),
        (2**30 - 1, "1.00 GiB"),
    ],
)
def test_format_bytes_is_binary(num_bytes: int, text: str) -> None:
    assert units.format_bytes(num_bytes) == text


def test_gib_and_gb_differ() -> None:
    assert units.GIB == 1_073_741_824
    assert units.GB == 1_000_000_000
    assert units.format_rate(units.GIB, "B/s") == "1.07 GB/s"


@pytest.mark.parametrize(
    ("per_second", "unit", "text"),
    [
        (30.3e9, "B/s", "30.3 GB/s"),
        (139e9, "FLOP/s", "139 GFLOP/s"),
        (3.35e12, "B/s", "3.35 TB/s"),
        (66.5, "tokens/s", "66.5 tokens/s"),
        (1234, "tokens/s", "1.23 ktokens/s"),
        (999.9e6, "B/s", "1.00 GB/s"),
    ],
)
def test_format_rate_uses_decimal_prefixes(per_second: float, unit: str, text: str) -> None:
    assert units.format_rate(per_second, unit) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (24_500_000, "24.5 M"),
        (6.74e9, "6.74 B"),
        (1500, "1.50 K"),
        (999_999, "1.00 M"),
    ],
)
def test_format_count_uses_the_fields_letters(count: float, text: str) -> None:
    assert units.format_count(count) == text


def test_a_number_of_things_has_their_plural() -> None:
    assert [units.format_items(count, "run") for count in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


def test_format_percent_multiplies_a_ratio_by_100() -> None:
    assert units.format_percent(0.0123) == "1.2 %"
    assert units.format_percent(1) == "100.0 %"
    assert units.format_percent(-0.0004) == "0.0 %", "nothing is below zero by nothing"


@pytest.mark.parametrize(
    ("num_tokens", "text"),
    [(32768, "32K"), (1024, "1K"), (1000, "1000"), (1025, "1025"), (1, "1"), (50_000, "50,000")],
)
def test_format_tokens_writes_whole_multiples_of_1024_with_k(num_tokens: int, text: str) -> None:
    assert units.format_tokens(num_tokens) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.12345, "0.1235"),
        (9511.2, "9511"),
        (9999.6, "10,000"),
        (18654.3, "18,654"),
        (999_999, "999,999"),
        (2.5e7, "2.500e+07"),
        (27.4, "27.40"),
        (12.0, "12"),
        (0.0, "0"),
        (5e-06, "5.000e-06"),
    ],
)
def test_format_number_has_one_notation_up_to_a_million(number: float, text: str) -> None:
    assert units.format_number(number) == text


def test_tokens_per_second_counts_the_tokens_of_one_call() -> None:
    # 100 calls of 8 tokens at half a second each make 16 tokens a second, not 1600.
    assert units.tokens_per_second(8, 0.5) == 16.0


@given(st.floats(min_value=1e-9, max_value=1e6))
def test_format_seconds_loses_at_most_half_a_percent(seconds: float) -> None:
    number, unit = units.format_seconds(seconds).split()
    size = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]
    assert float(number.replace(",", "")) * size == pytest.approx(seconds, rel=0.0051)


@given(st.integers(min_value=0, max_value=2**50))
def test_format_bytes_loses_at_most_half_a_percent(num_bytes: int) -> None:
    number, unit = units.format_bytes(num_bytes).split()
    size = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
    assert float(number.replace(",", "")) * size == pytest.approx(num_bytes, rel=0.0051)


@pytest.mark.parametrize(
    ("write", "units_by_size", "step"),
    [
        (units.format_seconds, ("ns", "µs", "ms", "s"), 1000),
        (units.format_bytes, ("B", "KiB", "MiB", "GiB"), 1024),
        (units.format_energy, ("µJ", "mJ", "J"), 1000),
        (lambda rate: units.format_rate(rate, "B/s"), ("B/s", "kB/s", "MB/s", "GB/s", "TB/s"), 1000),
        (units.format_count, ("", "K", "M", "B"), 1000),
    ],
    ids=["seconds", "bytes", "energy", "rate", "count"],
)
@given(data=st.data())
def test_no_number_is_written_as_a_whole_of_the_next_unit(
    write: Callable[[float], str], units_by_size: Sequence[str], step: int, data: st.DataObject
) -> None:
    smallest = {"ns": 1e-9, "µJ": 1e-6}.get(units_by_size[0], 1.0)
    power = data.draw(st.integers(min_value=1, max_value=len(units_by_size) - 1))
    boundary = data.draw(st.sampled_from([9990, 9994, 9995, 9996, 9999, 10_000])) / 10_000
    share = data.draw(st.one_of(st.just(boundary), st.floats(min_value=0.9, max_value=1.1)))
    number, _, unit = write(share * smallest * step**power).partition(" ")
    position = units_by_size.index(unit)
    assert position in (power - 1, power)
    assert 1 <= float(number) < step or position == len(units_by_size) - 1


def test_format_energy_and_power_take_three_digits() -> None:
    assert [units.format_energy(joules) for joules in (12.34, 0.0123, 4.5e-5)] == [
        "12.3 J",
        "12.3 mJ",
        "45.0 µJ",
    ]
    assert [units.format_power(watts) for watts in (287.4, 62.04)] == ["287 W", "62.0 W"]


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("tpot_s", "s"),
        ("tokens_per_s", "tokens/s"),
        ("bytes_per_step", "bytes"),
        ("energy_per_token_j", "J"),
        ("num_bytes", "count"),
        ("acc_bytes", "ratio"),
        ("word_perplexity", None),
        ("exact", None),
        ("s", None),
    ],
)
def test_the_name_of_a_metric_states_its_unit(metric: str, unit: str | None) -> None:
    assert units.stated_unit(metric) == unit
