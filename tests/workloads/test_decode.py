from collections.abc import Callable

import pytest
import torch

from retbench.cells import Cell
from retbench.data import text
from retbench.errors import UnsupportedError
from retbench.models.state import DecoderState
from retbench.workloads import decode
from retbench.workloads.context import Context
from retbench.workloads.states import stream_states

from .conftest import make_cell

Make = Callable[[Cell], Context]


def ready(context: Context) -> Context:
    if context.cell.model_name == "retnet":
        stream_states(context.model, [context.cell], context.states, lambda _done, _total: None)
    return context


@pytest.mark.parametrize("name", ["retnet", "transformer"])
@pytest.mark.parametrize(("depth", "batch_size"), [(1, 1), (64, 1), (65, 3)])
def test_every_timed_step_is_at_the_depth_and_follows_an_untimed_one(
    context_of: Make, name: str, depth: int, batch_size: int
) -> None:
    context = ready(context_of(make_cell(name, "decode", depth, batch_size)))
    seen: list[tuple[int, list[int]]] = []
    forward = context.model.forward

    def spy(tokens: torch.Tensor, state: DecoderState | None = None, **options: bool) -> torch.Tensor:
        if state is not None and tokens.shape[1] == 1:
            seen.append((state.position, tokens[:, 0].tolist()))
        return forward(tokens, state, **options)

    context.model.forward = spy  # type: ignore[method-assign]
    found = decode.measure(context)
    rows = text.read_rows(batch_size, depth + 1)
    pair = [(depth - 1, rows[:, -2].tolist()), (depth, rows[:, -1].tolist())]
    assert len(found.metrics["tpot_s"].samples) == 4
    assert seen == pair * (len(seen) // 2)
    assert len(seen) == 2 * (4 + 1)  # the samples and one step to warm up


def test_retnet_starts_from_the_text_it_was_streamed_through(context_of: Make) -> None:
    context = ready(context_of(make_cell("retnet", "decode", 64)))
    found = decode.measure(context)
    assert found.backend == {
        "decode": "recurrent",
        "state_source": "streamed prefill of real text",
        "cuda_graph": False,
        "timed_steps": 4,
    }


def test_a_batch_starts_from_one_sequence_repeated_and_returns_to_it(context_of: Make) -> None:
    context = ready(context_of(make_cell("retnet", "decode", 64, batch_size=3)))
    expected = context.model.init_state(3, 0)
    context.states.load(context.cell, expected, 63)
    seen: list[torch.Tensor] = []
    forward = context.model.forward

    def spy(tokens: torch.Tensor, state: DecoderState | None = None, **options: bool) -> torch.Tensor:
        assert state is not None
        if state.position == 63:
            seen.append(
                torch.stack([tensor for name, tensor in state.tensors().items() if name != "position"])
            )
        return forward(tokens, state, **options)

    context.model.forward = spy  # type: ignore[method-assign]
    found = decode.measure(context)
    assert found.backend["state_source"] == "streamed prefill of real text, one sequence repeated"
    real = torch.stack([tensor for name, tensor in expected.tensors().items() if name != "position"])
    assert len(seen) == 5
    assert real.any()
    assert all(torch.equal(one, real) for one in seen)


def test_a_transformer_says_what_is_in_its_cache_and_how_large_it_is(context_of: Make) -> None:
    found = decode.measure(context_of(make_cell("transformer", "decode", 64)))
    assert found.backend["kv_capacity"] == 65
    assert found.backend["kv_fill"] == "normal, std of a real prefill of 512 tokens in each layer"
    assert len(str(found.backend["kv_fill_key_std"]).split()) == 4  # layers of size 1m
    assert str(found.backend["decode"]).startswith("sdpa:")
    assert "prefill" not in found.backend  # the one that gave the scale was not measured


def test_cuda_graphs_on_a_cpu_are_unsupported(context_of: Make) -> None:
    cell = make_cell("transformer", "decode", 8)
    graphs = cell.model_copy(update={"settings": cell.settings.model_copy(update={"cuda_graph": True})})
    with pytest.raises(UnsupportedError, match="cuda_graph"):
        decode.measure(context_of(graphs))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_captured_steps_compute_what_eager_steps_do(context_of: Make, name: str) -> None:
    cell = make_cell(name, "decode", 64)
    settings = cell.settings.model_copy(update={"device": "cuda:0", "cuda_graph": True})
    context = context_of(cell.model_copy(update={"settings": settings}))
    device = torch.device("cuda:0")
    context = Context(context.cell, context.model.to(device), device, context.ceilings, context.states)
    ready(context)
    found = decode.measure(context)
    assert found.backend["cuda_graph"] is True
    assert len(found.metrics["tpot_s"].samples) == 4
