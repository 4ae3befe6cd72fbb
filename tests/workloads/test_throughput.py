"""Decode throughput: eager steps of a whole batch, whatever the profile says of compiled steps."""

from collections.abc import Callable

import pytest

from retbench.planning.cells import Cell
from retbench.workloads import throughput
from retbench.workloads.context import Context
from retbench.workloads.states import stream_states

from .conftest import CEILINGS, make_cell

Make = Callable[[Cell], Context]


def compiled(cell: Cell) -> Cell:
    return cell.model_copy(update={"settings": cell.settings.model_copy(update={"compile": True})})


@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_the_tokens_of_all_sequences_are_counted_and_nothing_is_compiled(
    context_of: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(compiled(make_cell(name, "throughput", 64, batch_size=3)))
    if name == "retnet":
        stream_states(context.model, [context.cell], context.states, lambda _done, _total: None)
    monkeypatch.setattr(context.compiler, "prepare", lambda *_: pytest.fail("it was compiled"))
    found = throughput.measure(context)
    assert found.backend["compile"] is False
    assert "compile_s" not in found.backend
    seconds = found.metrics["tpot_s"].value
    assert found.metrics["tokens_per_s"].value == pytest.approx(3 / seconds)
    assert {metric.name for metric in throughput.WORKLOAD.metrics if not metric.optional} <= {
        *found.metrics,
        *found.absent,
    }


def test_an_estimate_does_not_depend_on_what_is_compiled() -> None:
    cell = make_cell("transformer", "throughput", 4096, batch_size=8)
    assert throughput.estimate(compiled(cell), CEILINGS) == throughput.estimate(cell, CEILINGS)
    alone = make_cell("transformer", "throughput", 4096)
    assert throughput.estimate(cell, CEILINGS) > throughput.estimate(alone, CEILINGS)


def test_its_code_is_that_of_decode_steps_too() -> None:
    assert "retbench.workloads.decode" in throughput.WORKLOAD.modules
