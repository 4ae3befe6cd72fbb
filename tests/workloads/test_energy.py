from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from retbench.measure.power import EnergyUse
from retbench.models.state import DecoderState
from retbench.planning.cells import Cell
from retbench.workloads import context as contexts
from retbench.workloads import decode, prefill
from retbench.workloads.context import Context
from retbench.workloads.states import stream_states

from .conftest import make_cell

Make = Callable[[Cell], Context]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A counter of 3 W; what each step was said to take, in the order asked."""
    asked: list[float] = []

    def pretend(step: Callable[[], object], *, device: torch.device, step_s: float) -> EnergyUse:
        asked.append(step_s)
        for _ in range(3):
            step()
        return EnergyUse(num_steps=3, energy_j=18.0, seconds=6.0)

    monkeypatch.setattr(contexts, "measure_energy", pretend)
    return asked


@pytest.mark.parametrize("name", ["retnet", "transformer"])
@pytest.mark.parametrize(("workload", "module"), [("decode", decode), ("prefill", prefill)])
def test_the_step_is_repeated_at_the_same_depth_after_the_samples(
    context_of: Make, counter: list[float], name: str, workload: str, module: ModuleType
) -> None:
    context = context_of(make_cell(name, workload, 64, batch_size=2))
    if workload == "decode" and name == "retnet":
        stream_states(context.model, [context.cell], context.states, lambda _done, _total: None)
    seen: list[tuple[int, int]] = []
    forward = context.model.forward

    def spy(tokens: torch.Tensor, state: DecoderState | None = None, **options: bool) -> torch.Tensor:
        if state is not None:
            seen.append((state.position, tokens.shape[1]))
        return forward(tokens, state, **options)

    context.model.forward = spy  # type: ignore[method-assign]
    found = module.measure(context)
    main, one_step, num_tokens = (
        ("tpot_s", (64, 1), 2) if workload == "decode" else ("ttft_s", (0, 64), 2 * 64)
    )
    assert counter == [found.metrics[main].value]
    assert seen[-3:] == [one_step] * 3
    assert found.metrics["energy_per_token_j"].value == pytest.approx(18.0 / (3 * num_tokens))
    assert found.metrics["power_w"].value == pytest.approx(3.0)
    assert found.backend["energy_steps"] == 3
    assert found.absent == {}


def test_a_cpu_has_none_and_says_why(context_of: Make) -> None:
    found = prefill.measure(context_of(make_cell("transformer", "prefill", 8)))
    assert found.absent == dict.fromkeys(["energy_per_token_j", "power_w"], "the device is a CPU")
    assert "energy_steps" not in found.backend
