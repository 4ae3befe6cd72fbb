from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from retbench.data import text
from retbench.errors import RetbenchError
from retbench.models.state import DecoderState
from retbench.planning.cells import Cell
from retbench.records.record import ReadRate
from retbench.workloads import context as context_module
from retbench.workloads import prefill
from retbench.workloads.context import CAPTURE_BYTES, Context

from .conftest import make_cell

Make = Callable[[Cell], Context]


@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_every_call_is_the_whole_prompt_from_an_empty_state(context_of: Make, name: str) -> None:
    context = context_of(make_cell(name, "prefill", 100, batch_size=2))
    seen: list[int] = []
    whole = context.model.prefill

    def spy(tokens: torch.Tensor, state: DecoderState) -> torch.Tensor:
        assert torch.equal(tokens, text.read_rows(2, 100))
        assert not any(value.any() for key, value in state.tensors().items() if key != "position")
        seen.append(state.position)
        return whole(tokens, state)

    context.model.prefill = spy  # type: ignore[method-assign]
    found = prefill.measure(context)
    calls = len(found.metrics["ttft_s"].samples)
    assert calls in (3, 4)  # min_steps is 4; a slow machine has time for three only
    assert set(seen) == {0}
    assert found.backend["timed_calls"] == calls
    assert (
        found.backend["prefill"] == "chunkwise"
        if name == "retnet"
        else "sdpa" in str(found.backend["prefill"])
    )
    assert ("kv_capacity" in found.backend) == (name == "transformer")


def test_the_best_read_rate_of_a_worker_is_the_ceiling_at_its_footprint(
    context_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rates of a shared machine differ by a third from one second to the next."""
    first = context_of(make_cell("retnet", "prefill", 8))
    second = replace(first, read_rates=first.read_rates)
    rates = iter([2e9, 3e9, 1e9, None, 5e9])

    def measured(device: torch.device, size: int) -> ReadRate | None:
        rate = next(rates)
        return rate and ReadRate(footprint_bytes=size, bytes_per_s=rate, kernel="dot")

    monkeypatch.setattr(context_module, "measure_read_rate", measured)
    found = []
    for context, again in ((first, False), (first, True), (second, False), (second, True), (second, True)):
        context.measure_read_rate(100, again=again)
        found.append(context.ceilings_at(100).read_bytes_per_s(100))
    assert found == [2e9, 3e9, 3e9, 3e9, 3e9]
    second.measure_read_rate(200)
    assert second.ceilings_at(200).read_curve[-1].bytes_per_s == 5e9
    second.measure_read_rate(None)
    assert second.ceilings_at(None) == second.ceilings


@pytest.mark.parametrize(("free", "is_measured"), [(CAPTURE_BYTES + 99, False), (CAPTURE_BYTES + 100, True)])
def test_a_read_rate_on_cuda_needs_room_below_the_limit(
    context_of: Make, monkeypatch: pytest.MonkeyPatch, free: int, is_measured: bool
) -> None:
    """Memory that runs out in a capture leaves a process that cannot measure another cell."""
    cell = make_cell("retnet", "prefill", 8)
    settings = cell.settings.model_copy(update={"memory_limit_bytes": 10**9})
    on_cuda = replace(
        context_of(cell.model_copy(update={"settings": settings})), device=torch.device("cuda:0")
    )
    asked = []
    monkeypatch.setattr(context_module, "headroom_bytes", lambda device, limit: asked.append(limit) or free)
    monkeypatch.setattr(context_module, "largest_footprint", lambda device: 10**9)
    monkeypatch.setattr(context_module, "free_memory", lambda device: None)
    rate = ReadRate(footprint_bytes=100, bytes_per_s=1e9, kernel="dot")
    monkeypatch.setattr(context_module, "measure_read_rate", lambda device, size: rate)
    on_cuda.measure_read_rate(100)
    assert asked == [10**9]
    assert on_cuda.read_rates == ({100: rate} if is_measured else {})


def test_a_share_without_ceilings_is_an_error_that_says_what_to_declare(context_of: Make) -> None:
    context = replace(context_of(make_cell("retnet", "prefill", 8)), ceilings=None)
    with pytest.raises(RetbenchError, match="no metric of workload 'prefill' is a share"):
        context.ceilings_at(100)
