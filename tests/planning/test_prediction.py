"""Predicted time and memory of decoding, with made-up devices."""

from dataclasses import replace
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report.synthetic_records import matched_pair
from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.planning.prediction import (
    LONGEST_CONTEXT,
    OperatorCount,
    StepRates,
    StepTimes,
    expected,
    predict,
    predict_crossover,
    rates_from,
    roofline,
)
from retbench.records.record import Ceilings, ReadRate

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
        {"t": TRANSFORMER},
        [(2, 1024)],
        dtype="float32",
        times=StepTimes(lambda *_: 0.25, lambda *_: 0.5),
        memory_bytes=10**9,
    )
    assert (found.at_best_s, found.expected_s, found.tokens_per_s) == (0.25, 0.5, 4)
    assert found.moved_bytes == costs.decode_bytes(TRANSFORMER, "float32", 2, 1024)
    assert found.weight_bytes == costs.weight_bytes(TRANSFORMER, "float32")
    assert found.state_bytes == costs.state_bytes(TRANSFORMER, "float32", 2, 1025)
    assert found.memory_bytes == found.weight_bytes + found.state_bytes + found.workspace_bytes
    assert found.largest_batch == costs.largest_batch(TRANSFORMER, "float32", 10**9, 1024)


@pytest.mark.parametrize("extra", [0, 1])
def test_the_largest_batch_is_the_last_that_fits(extra: int) -> None:
    largest = costs.largest_batch(RETNET, "float32", 10**9, 1024)
    (found,) = predict(
        {"r": RETNET},
        [(largest + extra, 1024)],
        dtype="float32",
        times=StepTimes(SLOW_MEMORY, None),
        memory_bytes=10**9,
    )
    assert found.fits is (extra == 0)
    assert (found.memory_bytes <= 10**9) is (extra == 0)


def test_without_a_known_memory_nothing_is_said_of_it() -> None:
    times = StepTimes(SLOW_MEMORY, None)
    (found,) = predict({"r": RETNET}, [(1, 8)], dtype="float32", times=times, memory_bytes=None)
    assert (found.largest_batch, found.fits) == (None, None)
    assert found.expected_s is None
    assert found.tokens_per_s == pytest.approx(1 / SLOW_MEMORY(RETNET, 1, 8))


@given(
    flat=st.floats(1.0, 100.0),
    start=st.floats(0.1, 50.0),
    slope=st.floats(1e-5, 1.0),
)
def test_the_crossover_is_the_first_length_at_which_the_first_model_is_faster(
    flat: float, start: float, slope: float
) -> None:
    def step_time(model: object, batch_size: int, context_len: int) -> float:
        return flat if model is RETNET else start + slope * context_len

    def is_ahead(length: int) -> bool:
        return flat < start + slope * length

    found = predict_crossover(RETNET, TRANSFORMER, 1, step_time).context_len
    if found is None:
        assert not is_ahead(LONGEST_CONTEXT)
    else:
        assert is_ahead(found)
        assert found == 1 or not is_ahead(found - 1)


@given(flat=st.floats(1.0, 100.0), start=st.floats(0.1, 50.0), slope=st.floats(1e-4, 1.0))
def test_a_model_whose_step_grows_more_is_ahead_up_to_a_length_or_nowhere(
    flat: float, start: float, slope: float
) -> None:
    def step_time(model: object, batch_size: int, context_len: int) -> float:
        return flat if model is TRANSFORMER else start + slope * context_len

    def is_ahead(length: int) -> bool:
        return start + slope * length < flat

    found = predict_crossover(RETNET, TRANSFORMER, 1, step_time)
    assert found.context_len is None
    if found.ahead_to is None:
        assert not is_ahead(1)
    else:
        assert is_ahead(found.ahead_to)
        assert not is_ahead(found.ahead_to + 1)


RATES = StepRates(
    products=((10**6, 4e9), (10**9, 2e9)),
    attention=((10**6, 1e9),),
    recurrence=((10**6, 5e8),),
    matmul_flops_per_s=1e15,
    shared_key_flops_per_s=((2, 2e9), (32, 4e9)),
    operator_s=1e-5,
    product_s=((10**6, 2e-5), (10**9, 4e-5)),
    attention_s=((1, 3e-4),),
    shared_attention_s=((1, 7e-4),),
    view_s=1e-6,
)
COUNT = OperatorCount(total=100, products=30, attentions=4, shared_attentions=2, views=50)


def test_an_expected_step_is_its_bytes_at_the_rates_of_its_footprint_and_its_operators() -> None:
    step_time = expected(RATES, "float32", lambda model: COUNT)
    for model in (RETNET, TRANSFORMER):
        moved = costs.decode_traffic(model, "float32", 1, 1024)
        share = log(moved.footprint / 1e6) / log(1e3)
        assert 0 < share < 1
        assert step_time(model, 1, 1024) == pytest.approx(
            moved.weights / (4e9 - share * 2e9)
            + moved.caches / 1e9
            + moved.states / 5e8
            + 100 * 1e-5
            + 30 * (2e-5 + share * 2e-5)
            + 4 * 3e-4
            + 2 * 7e-4
            + 50 * 1e-6
        )


@pytest.mark.parametrize(("name", "per_value"), [("transformer-mqa", 2), ("mla", 2 * (4 + 4.5) / 4.5)])
def test_queries_that_share_keys_take_operations_beside_the_bytes(name: str, per_value: float) -> None:
    """A query takes two operations per value of its keys and values. A latent, which has the values of four heads and
    a rotated half, is both, but for that half."""
    model = resolve_model(named_specs()[name], "25m")
    values = costs.state_bytes(model, "float32", 2, 1025) // 4
    flops = 8 * per_value * values  # eight queries share each key: between the rates of 2 and of 32 half-way

    def seconds(rate: float | None) -> float:
        rates = RATES if rate is None else replace(RATES, shared_key_flops_per_s=((1, rate),))
        return expected(rates, "float32", lambda model: COUNT)(model, 2, 1024)

    bytes_s = 4 * values / 1e9
    assert seconds(None) - seconds(1e30) == pytest.approx(flops / 3e9 - bytes_s)
    assert seconds(1e8) - seconds(1e30) == pytest.approx(flops / 1e8 - bytes_s)
    # They are no part of the operations at the rate of large products.
    slow = replace(RATES, matmul_flops_per_s=1e6, shared_key_flops_per_s=((1, 1e30),))
    found = expected(slow, "float32", lambda model: COUNT)(model, 2, 1024)
    assert found < costs.decode_flops(model, 2, 1024) / 1e6 - 0.9 * flops / 1e6 + 1


@pytest.mark.parametrize("model", [RETNET, TRANSFORMER])
def test_a_datasheet_adds_its_kernels_to_the_bytes(model: ModelConfig) -> None:
    ceilings = Ceilings(read_bandwidth_bytes_per_s=1e12, matmul_flops_per_s=1e15)
    at_best = roofline(ceilings, "float32")(model, 1, 1024)
    found = expected(rates_from(ceilings, 2e-6), "float32", lambda model: COUNT)(model, 1, 1024)
    assert found == pytest.approx(at_best + 100 * 2e-6)


def test_rates_from_ceilings_follow_the_read_curve() -> None:
    curve = tuple(
        ReadRate(footprint_bytes=size, bytes_per_s=rate, kernel="dot") for size, rate in RATES.products
    )
    ceilings = Ceilings(read_bandwidth_bytes_per_s=1.0, matmul_flops_per_s=1e15, read_curve=curve)
    assert rates_from(ceilings, 2e-6).products == RATES.products


def test_a_large_batch_is_bound_by_its_operations() -> None:
    slow = replace(RATES, matmul_flops_per_s=1e6)
    found = expected(slow, "float32", lambda model: COUNT)(RETNET, 64, 64)
    assert found > costs.decode_flops(RETNET, 64, 64) / 1e6


@given(batch_size=st.integers(1, 64), context_len=st.integers(1, 2**17))
def test_the_traffic_of_a_step_is_what_it_moves(batch_size: int, context_len: int) -> None:
    for model in (RETNET, TRANSFORMER):
        moved = costs.decode_traffic(model, "bfloat16", batch_size, context_len)
        assert sum(moved) == costs.decode_bytes(model, "bfloat16", batch_size, context_len)
    assert costs.decode_traffic(RETNET, "bfloat16", batch_size, context_len).caches == 0
    assert moved.states == 0
