from collections.abc import Callable

import pytest

from retbench.cells import Cell
from retbench.workloads import memory
from retbench.workloads.context import Context

from .conftest import make_cell

Make = Callable[[Cell], Context]


@pytest.mark.parametrize("name", ["retnet", "transformer"])
@pytest.mark.parametrize(("depth", "batch_size"), [(1, 1), (300, 2)])
def test_what_is_counted_is_what_the_closed_forms_say(
    context_of: Make, name: str, depth: int, batch_size: int
) -> None:
    measurement = memory.measure(context_of(make_cell(name, "memory", depth, batch_size)))
    found = measurement.metrics
    assert measurement.absent.keys() == {"device_peak_bytes", "reserved_peak_bytes"}
    assert all(metric.unit == "bytes" for metric in found.values())
    value = {key: metric.value for key, metric in found.items()}
    assert value["weight_bytes"] == value["expected_weight_bytes"]
    assert value["state_bytes"] == value["expected_state_bytes"]
    assert value["peak_bytes"] == value["weight_bytes"] + value["state_bytes"] + value["workspace_bytes"]
    assert 0 < value["workspace_bytes"] < value["weight_bytes"]
    assert value["process_peak_bytes"] > value["weight_bytes"]


def test_retnets_memory_does_not_depend_on_the_depth_and_a_transformers_does(context_of: Make) -> None:
    def state_bytes(name: str, depth: int) -> float:
        cell = make_cell(name, "memory", depth)
        return memory.measure(context_of(cell)).metrics["state_bytes"].value

    assert state_bytes("retnet", 64) == state_bytes("retnet", 512)
    assert state_bytes("transformer", 511) == 8 * state_bytes("transformer", 63)  # capacity is depth + 1
