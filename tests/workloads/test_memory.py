from collections.abc import Callable

import pytest
import torch

from retbench.architectures import costs
from retbench.planning.cells import Cell
from retbench.workloads import memory
from retbench.workloads.context import Context

from .conftest import make_cell

Make = Callable[[Cell], Context]


@pytest.mark.parametrize("name", ["retnet", "transformer", "concat"])
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


def test_a_concatenated_cache_needs_its_earlier_copy_and_no_token_twice(context_of: Make) -> None:
    depth, found = 4000, {}
    for name in ("transformer", "concat"):
        cell = make_cell(name, "memory", depth)
        measured = memory.measure(context_of(cell)).metrics
        found[name] = {key: metric.value for key, metric in measured.items()}
    expected = costs.decode_workspace_bytes(cell.model, "float32", 1, depth)
    assert found["concat"]["workspace_bytes"] == pytest.approx(expected, rel=0.02)
    assert found["concat"]["state_bytes"] == found["transformer"]["state_bytes"]
    assert found["concat"]["peak_bytes"] > found["transformer"]["peak_bytes"] + 0.9 * depth * 128 * 4


def test_retnets_memory_does_not_depend_on_the_depth_and_a_transformers_does(context_of: Make) -> None:
    def state_bytes(name: str, depth: int) -> float:
        cell = make_cell(name, "memory", depth)
        return memory.measure(context_of(cell)).metrics["state_bytes"].value

    assert state_bytes("retnet", 64) == state_bytes("retnet", 512)
    assert state_bytes("transformer", 511) == 8 * state_bytes("transformer", 63)  # capacity is depth + 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_a_gpus_allocator_holds_what_the_closed_forms_say(context_of: Make, name: str) -> None:
    """But for what it rounds each tensor up by, a few constants, and the workspace of cuBLAS."""
    cell = make_cell(name, "memory", 1023, batch_size=2)
    device = torch.device("cuda:0")
    before = torch.cuda.memory_allocated(device)
    on_cpu = context_of(cell)
    context = Context(cell, on_cpu.model.to(device), device, on_cpu.ceilings, on_cpu.states, on_cpu.compiler)
    weights = torch.cuda.memory_allocated(device) - before
    num_tensors = sum(1 for _ in context.model.parameters()) + sum(1 for _ in context.model.buffers())
    expected = costs.weight_bytes(cell.model, "float32")
    assert expected <= weights <= expected + 1024 * num_tensors
    with torch.inference_mode():
        state = context.model.init_state(2, 1024)
    held = torch.cuda.memory_allocated(device) - before - weights
    assert held == costs.state_bytes(cell.model, "float32", 2, 1024) == state.num_bytes
    del state
    found = {key: metric.value for key, metric in memory.measure(context).metrics.items()}
    assert found["weight_bytes"] == expected
    assert found["state_bytes"] == found["expected_state_bytes"] == held
    ours = before + found["peak_bytes"]
    assert (
        ours <= found["device_peak_bytes"] <= ours + 80 * 2**20
    )  # cuBLAS: 32 MiB on an H100, for each handle
    assert found["device_peak_bytes"] <= found["reserved_peak_bytes"]
