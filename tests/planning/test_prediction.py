"""What decoding should take: the arithmetic, with made-up devices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report.synthetic_records import matched_pair
from retbench.architectures import costs
from retbench.errors import ConfigError
from retbench.planning.prediction import StepCurve, find_crossover, predict, roofline
from retbench.records.record import Ceilings

PAIR = matched_pair("25m")
RETNET, TRANSFORMER = PAIR["retnet"], PAIR["transformer"]
SLOW_MEMORY = roofline(Ceilings(read_bandwidth_bytes_per_s=1e9, matmul_flops_per_s=1e15), "float32")
SLOW_PRODUCTS = roofline(Ceilings(read_bandwidth_bytes_per_s=1e15, matmul_flops_per_s=1e9), "float32")


def test_a_step_takes_the_longer_of_its_bytes_and_its_operations() -> None:
    point = (2, 4096)
    assert SLOW_MEMORY(TRANSFORMER, *point) == costs.decode_bytes(TRANSFORMER, "float32", *point) / 1e9
    assert SLOW_PRODUCTS(TRANSFORMER, *point) == costs.decode_flops(TRANSFORMER, *point) / 1e9


def test_a_prediction_holds_the_closed_forms() -> None:
    (found,) = predict(
        {"t": TRANSFORMER}, [(2, 1024)], dtype="float32", step_time=lambda *_: 0.5, memory_bytes=10**9
    )
    assert found.tokens_per_s == 4
    assert found.weight_bytes == costs.weight_bytes(TRANSFORMER, "float32")
    assert found.state_bytes == costs.state_bytes(TRANSFORMER, "float32", 2, 1025)
    assert found.memory_bytes == found.weight_bytes + found.state_bytes + found.workspace_bytes
    assert found.largest_batch == costs.largest_batch(TRANSFORMER, "float32", 10**9, 1024)


@pytest.mark.parametrize("extra", [0, 1])
def test_the_largest_batch_is_the_last_that_fits(extra: int) -> None:
    largest = costs.largest_batch(RETNET, "float32", 10**9, 1024)
    (found,) = predict(
        {"r": RETNET}, [(largest + extra, 1024)], dtype="float32", step_time=SLOW_MEMORY, memory_bytes=10**9
    )
    assert found.fits is (extra == 0)
    assert (found.memory_bytes <= 10**9) is (extra == 0)


def test_without_a_known_memory_nothing_is_said_of_it() -> None:
    (found,) = predict({"r": RETNET}, [(1, 8)], dtype="float32", step_time=SLOW_MEMORY, memory_bytes=None)
    assert (found.largest_batch, found.fits) == (None, None)


@given(
    flat=st.floats(1.0, 100.0),
    start=st.floats(0.1, 50.0),
    slope=st.floats(1e-4, 1.0),
    last=st.integers(1, 300),
)
def test_the_crossover_is_the_first_length_that_looking_at_each_finds(
    flat: float, start: float, slope: float, last: int
) -> None:
    def step_time(model: object, batch_size: int, context_len: int) -> float:
        return flat if model is RETNET else start + slope * context_len

    found = find_crossover(RETNET, TRANSFORMER, 1, step_time, (1, last))
    ahead = [length for length in range(1, last + 1) if flat <= start + slope * length]
    assert found.context_len == (ahead[0] if ahead else None)


def test_a_step_lies_on_a_line_between_lengths() -> None:
    curve = StepCurve({100: 7.0, 300: 11.0})
    assert curve.seconds(100) == 7.0
    assert curve.seconds(150) == 8.0
    assert curve.seconds(300) == 11.0


@pytest.mark.parametrize("length", [99, 301])
def test_a_curve_says_nothing_of_lengths_outside(length: int) -> None:
    with pytest.raises(ConfigError, match="lies outside 100 to 300"):
        StepCurve({100: 7.0, 300: 11.0}).seconds(length)
