"""The facts behind a predicted time: measured rates of operators."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from retbench.errors import UnsupportedError
from retbench.measure import clock, products
from retbench.ops import fused, fused_linear
from retbench.planning import rate_curves, step_rates
from retbench.planning.step_rates import measure_step_rates
from retbench.units import MIB

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_curves, "_WARMUP_S", 0.0)
    monkeypatch.setattr(rate_curves, "_NUM_SAMPLES", 3)
    monkeypatch.setattr(step_rates, "footprints_of", lambda device: [4 * MIB, 16 * MIB])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("quick")
def test_every_rate_is_that_of_its_footprint(dtype: torch.dtype) -> None:
    found = measure_step_rates(CPU, dtype)
    for curve in (found.products, found.attention, found.recurrence, found.product_s, found.attention_s):
        assert [footprint for footprint, _ in curve] == [4 * MIB, 16 * MIB]
    for curve in (found.products, found.attention, found.recurrence):
        assert all(1e6 < rate < 1e13 for _, rate in curve)
    assert all(0 <= seconds < 0.01 for _, seconds in found.product_s)
    assert 0 < found.view_s < found.operator_s < 0.001
    assert all(1e8 < rate < 1e13 for _, rate in found.shared_key_flops_per_s)


@pytest.mark.usefixtures("quick")
def test_no_rate_is_found_where_a_part_takes_longer_than_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_rates, "_call_seconds", lambda small, large, footprint: 1.0)
    with pytest.raises(UnsupportedError, match="while nothing else runs"):
        measure_step_rates(CPU, torch.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_products_of_compiled_steps_are_loops_where_those_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_found", {"by_output, float32": 1})
    monkeypatch.setattr(step_rates, "_products", None)  # eager products, which are not to be measured
    # Every sample takes 0.1 ms, however busy the machine is; by that clock no product would be too large to try.
    monkeypatch.setattr(step_rates, "measure_matmul_rate", lambda device, dtype: 1e12)
    reads = count()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: 1e-4 * next(reads)))
    measured: dict[bool, float] = {}
    measure = step_rates.compiled_attention_seconds

    def attention_seconds(device: torch.device, dtype: torch.dtype, *, share_keys: bool) -> float:
        """Measure, and return another time, so that the two differ."""
        measured[share_keys] = measure(device, dtype, share_keys=share_keys)
        return 3e-5 if share_keys else 2e-5

    monkeypatch.setattr(step_rates, "compiled_attention_seconds", attention_seconds)
    found = measure_step_rates(CPU, torch.float32, compiled=True)
    assert [footprint for footprint, _ in found.products] == [4 * MIB, 16 * MIB]
    assert all(1e6 < rate < 1e13 for _, rate in found.products)
    assert found.product_s == ((1, 0.0),)
    assert all(0 < seconds < 0.001 for seconds in (found.operator_s, *measured.values()))
    assert list(measured.values()) == [pytest.approx(1e-4 / 8)] * 2  # of eight attentions in a sample
    assert (found.attention_s, found.shared_attention_s) == (((1, 2e-5),), ((1, 3e-5),))


@pytest.mark.usefixtures("quick")
def test_an_unknown_kind_of_device_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="rates can be measured"):
        measure_step_rates(torch.device("meta"), torch.float32)


def test_the_recurrence_is_that_of_fused_steps_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    monkeypatch.setattr(fused_linear, "launch", lambda name, *_, **__: launched.append(name))
    for reason, expected in (("no Triton", []), (None, ["linear_step_kernel"])):
        monkeypatch.setattr(fused, "missing_reason", lambda device, dtype, reason=reason: reason)
        num_bytes, make = step_rates._recurrence(CPU, torch.bfloat16, compiled=False)
        make()()
        assert (launched, num_bytes) == (expected, 2 * 4 * 128 * 256 * 4)
