from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from retbench.data import text
from retbench.errors import RetbenchError
from retbench.models.state import DecoderState
from retbench.planning.cells import Cell
from retbench.records.record import ReadRate
from retbench.workloads import prefill
from retbench.workloads.context import Context

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


def test_the_better_of_two_read_rates_is_the_ceiling_at_their_footprint(context_of: Make) -> None:
    context = context_of(make_cell("retnet", "prefill", 8))
    slow, fast = (ReadRate(footprint_bytes=100, bytes_per_s=rate, kernel="dot") for rate in (1e9, 2e9))
    for rates in ((slow, fast), (fast, slow), (None, fast)):
        assert context.ceilings_with(*rates).read_curve == (fast,)
    assert context.ceilings_with(None, slow).read_bytes_per_s(100) == 1e9
    assert context.ceilings_with(None, None) == context.ceilings
    assert context.measure_read_rate(None) is None


def test_a_share_without_ceilings_is_an_error_that_says_what_to_declare(context_of: Make) -> None:
    context = replace(context_of(make_cell("retnet", "prefill", 8)), ceilings=None)
    with pytest.raises(RetbenchError, match="no metric of workload 'prefill' is a share"):
        context.ceilings_with()
