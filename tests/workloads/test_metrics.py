from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.architectures import costs
from retbench.measure.power import EnergyUse
from retbench.records.record import FAULTY_CEILING, SHARES, Ceilings, ReadRate
from retbench.workloads.metrics import (
    counted,
    decode_bytes,
    decode_metrics,
    energy_metrics,
    more_calls,
    prefill_metrics,
    timed,
    training_flops,
    training_metrics,
)

from .conftest import make_cell, with_backend

CEILINGS = Ceilings(read_bandwidth_bytes_per_s=1e9, matmul_flops_per_s=1e12)


def test_decode_metrics_of_made_up_times() -> None:
    cell = make_cell("transformer", "decode", context_len=1000, batch_size=4)
    found = decode_metrics(cell, [0.5, 0.1, 0.2], CEILINGS).metrics
    num_bytes = costs.decode_bytes(cell.model, "float32", 4, 1000)
    assert found["tpot_s"].value == 0.2
    assert found["tpot_s"].samples == (0.5, 0.1, 0.2)
    assert found["tokens_per_s"].value == pytest.approx(4 / 0.2)  # one token for each of four sequences
    assert found["bytes_per_step"].value == num_bytes
    assert found["flops_per_step"].value == costs.decode_flops(cell.model, 4, 1000)
    assert found["bandwidth_ratio"].value == pytest.approx(num_bytes / 1e9 / 0.2)
    assert found["roofline_ratio"].value == found["bandwidth_ratio"].value  # the memory is the lower roof
    assert {name: metric.unit for name, metric in found.items()} == {
        "tpot_s": "s",
        "tokens_per_s": "tokens/s",
        "bytes_per_step": "bytes",
        "flops_per_step": "FLOP",
        "bandwidth_ratio": "ratio",
        "roofline_ratio": "ratio",
    }


def test_decode_roofline_is_the_products_where_they_take_longer() -> None:
    cell = make_cell("retnet", "decode", context_len=1000, batch_size=4)
    slow_products = Ceilings(read_bandwidth_bytes_per_s=1e15, matmul_flops_per_s=1e9)
    found = decode_metrics(cell, [2.0], slow_products).metrics
    assert found["roofline_ratio"].value == pytest.approx(costs.decode_flops(cell.model, 4, 1000) / 1e9 / 2.0)
    assert found["bandwidth_ratio"].value < found["roofline_ratio"].value


def test_a_share_compares_with_the_bandwidth_at_the_footprint_of_the_step() -> None:
    cell = make_cell("transformer", "decode", context_len=1000)
    num_bytes = decode_bytes(cell)
    curve = [(num_bytes // 2, 4e9), (num_bytes, 2e9), (2 * num_bytes, 1e9)]
    rates = [ReadRate(footprint_bytes=size, bytes_per_s=rate, kernel="dot") for size, rate in curve]
    ceilings = Ceilings(read_bandwidth_bytes_per_s=1e9, matmul_flops_per_s=1e15, read_curve=tuple(rates))
    step_s = num_bytes / 2e9 / 0.8
    found = decode_metrics(cell, [step_s], ceilings).metrics
    assert found["roofline_ratio"].value == pytest.approx(0.8)
    assert found["bandwidth_ratio"].value == pytest.approx(0.8)


def test_a_share_above_one_is_absent_with_the_reason() -> None:
    cell = make_cell("transformer", "decode", context_len=1000)
    at_best_s = decode_bytes(cell) / 1e9
    found = decode_metrics(cell, [at_best_s / 1.5], CEILINGS)
    assert found.metrics.keys() & set(SHARES) == set()
    assert found.absent == dict.fromkeys(SHARES, FAULTY_CEILING)
    assert found.metrics["tpot_s"].value == at_best_s / 1.5
    exact = decode_metrics(cell, [at_best_s], CEILINGS)
    assert (exact.metrics["roofline_ratio"].value, exact.absent) == (1.0, {})


def test_prefill_metrics_of_made_up_times() -> None:
    cell = make_cell("retnet", "prefill", context_len=512, batch_size=2)
    found = prefill_metrics(cell, [0.4, 0.2, 0.3], CEILINGS).metrics
    num_bytes = costs.prefill_bytes(cell.model, "float32", 2, 512)
    flops = costs.prefill_flops(cell.model, 2, 512, "chunkwise", 128)
    assert found["ttft_s"].value == 0.3
    assert found["tokens_per_s"].value == pytest.approx(2 * 512 / 0.3)  # every token of both prompts
    assert found["flops_per_call"].value == flops
    assert found["bytes_per_call"].value == num_bytes
    assert found["roofline_ratio"].value == pytest.approx(max(num_bytes / 1e9, flops / 1e12) / 0.3)


@pytest.mark.parametrize(("bandwidth", "rate"), [(1e3, 1e15), (1e15, 1e6)])
def test_prefill_roofline_is_whichever_takes_longer(bandwidth: float, rate: float) -> None:
    cell = make_cell("retnet", "prefill", context_len=2)
    ceilings = Ceilings(read_bandwidth_bytes_per_s=bandwidth, matmul_flops_per_s=rate)
    found = prefill_metrics(cell, [1e5], ceilings).metrics
    moved_s, computed_s = found["bytes_per_call"].value / bandwidth, found["flops_per_call"].value / rate
    assert found["roofline_ratio"].value == pytest.approx(max(moved_s, computed_s) / 1e5)


@pytest.mark.parametrize(("backend", "chunk"), [("parallel", 1024), ("chunkwise", 128), ("recurrent", 1)])
def test_prefill_flops_are_those_of_the_form_that_runs(backend: str, chunk: int) -> None:
    cell = with_backend(make_cell("retnet", "prefill", context_len=4096), backend)
    found = prefill_metrics(cell, [0.1], CEILINGS).metrics
    assert found["flops_per_call"].value == costs.prefill_flops(cell.model, 1, 4096, "chunkwise", chunk)


def test_energy_metrics_of_a_made_up_window() -> None:
    found = energy_metrics(EnergyUse(num_steps=50, energy_j=600.0, seconds=2.0), tokens_per_step=4)
    assert {name: (metric.unit, metric.value) for name, metric in found.items()} == {
        "energy_per_token_j": ("J", 3.0),  # 600 J for 50 steps of four tokens
        "power_w": ("W", 300.0),
    }


def test_training_metrics_of_made_up_times() -> None:
    cell = make_cell("retnet", "training", context_len=512, batch_size=2)
    found = training_metrics(cell, [0.4, 0.2, 0.3], CEILINGS).metrics
    flops = costs.training_flops(cell.model, 2, 512, "chunkwise", 128)
    assert found["step_s"].value == 0.3
    assert found["tokens_per_s"].value == pytest.approx(2 * 512 / 0.3)  # every token of both sequences
    assert found["flops_per_step"].value == flops
    assert found["roofline_ratio"].value == pytest.approx(flops / 1e12 / 0.3)


def test_training_flops_are_those_of_the_form_that_runs() -> None:
    chunkwise = make_cell("retnet", "training", context_len=512)
    forms = ("recurrent", "chunkwise", "parallel")
    recurrent, chunked, parallel = (training_flops(with_backend(chunkwise, name)) for name in forms)
    assert recurrent < chunked < parallel
    checkpointed = chunkwise.settings.model_copy(update={"activation_checkpointing": True})
    again = training_flops(chunkwise.model_copy(update={"settings": checkpointed}))
    assert 1.2 * chunked < again < 4 / 3 * chunked


@given(st.lists(st.floats(min_value=1e-9, max_value=1e3), min_size=1, max_size=50))
def test_a_timed_metric_keeps_every_sample(samples: list[float]) -> None:
    metric = timed(samples)
    assert list(metric.samples) == samples
    assert metric.value == median(samples)


def test_a_count_has_no_samples() -> None:
    assert (counted(7).unit, counted(7).value, counted(7).samples) == ("bytes", 7, ())


@pytest.mark.parametrize(
    ("call_s", "min_steps", "calls"),
    [(5.0, 20, 3), (0.17, 20, 3), (0.1, 20, 5), (0.01, 20, 20), (0.01, 40, 40), (0.01, 1, 3)],
)
def test_a_call_is_timed_as_often_as_fits_but_three_times_at_least(
    call_s: float, min_steps: int, calls: int
) -> None:
    assert 3 + more_calls([call_s] * 3, min_steps) == calls
