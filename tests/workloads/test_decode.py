from collections.abc import Callable
from typing import Any

import pytest
import torch

from retbench.data import text
from retbench.errors import GateError, UnsupportedError
from retbench.measure import ceilings, clock
from retbench.measure.compiled import Compiled
from retbench.models.equivalence import relative_error
from retbench.models.state import DecoderState
from retbench.planning.cells import Cell
from retbench.records.record import ReadRate
from retbench.workloads import context as context_module
from retbench.workloads import decode, metrics, prefill
from retbench.workloads.context import Context
from retbench.workloads.states import stream_states
from retbench.workloads.workload import Measurement

from .conftest import CEILINGS, make_cell

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
        "compile": False,
        "weight_product": context.model.weight_product,
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
    assert str(found.backend["decode"]).startswith(("sdpa:", "products"))
    assert "prefill" not in found.backend  # the one that gave the scale was not measured


def test_a_concatenated_cache_has_no_capacity_and_moves_more(context_of: Make) -> None:
    found = {
        name: decode.measure(context_of(make_cell(name, "decode", 64))) for name in ("transformer", "concat")
    }
    assert "kv_capacity" not in found["concat"].backend
    moved = {name: one.metrics["bytes_per_step"].value for name, one in found.items()}
    assert (
        moved["concat"] - moved["transformer"] == 2 * 64 * 4 * 2 * 128 * 4
    )  # tokens, layers, key and value, bytes


def test_cuda_graphs_on_a_cpu_are_unsupported(context_of: Make) -> None:
    cell = make_cell("transformer", "decode", 8)
    graphs = cell.model_copy(update={"settings": cell.settings.model_copy(update={"cuda_graph": True})})
    with pytest.raises(UnsupportedError, match="cuda_graph"):
        decode.measure(context_of(graphs))


def test_clocks_are_read_during_the_steps_only_and_no_buffer_of_a_read_rate_stays_reserved(
    context_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    time_steps = clock.time_steps

    def watch(*args: Any, sampled: bool = False, **options: Any) -> list[float]:
        done.append("sampled steps" if sampled else "steps")
        return time_steps(*args, **options)

    measured = ReadRate(footprint_bytes=1, bytes_per_s=1e10, kernel="dot", measured_at="now")
    monkeypatch.setattr(clock, "time_steps", watch)
    monkeypatch.setattr(context_module, "time_steps", watch)
    monkeypatch.setattr(context_module, "measure_read_rate", lambda *_: done.append("read rate") or measured)
    monkeypatch.setattr(context_module, "more_calls", lambda samples, min_steps: 1)
    monkeypatch.setattr(context_module, "free_memory", lambda device: done.append("free"))
    decode.measure(context_of(make_cell("transformer", "decode", 64)))
    read = ["read rate", "free"]
    assert done == [*read, "sampled steps", *read]
    done.clear()
    prefill.measure(context_of(make_cell("transformer", "prefill", 64)))
    assert done == [*read, "sampled steps", "sampled steps", *read]


def test_on_cuda_an_estimate_includes_the_warm_up_of_the_read_rates() -> None:
    warmup_s = 2 * len(ceilings._read_kernels(torch.ones(2048))) * ceilings._WARMUP_S["cuda"]
    cell = make_cell("transformer", "decode", 64)
    settings = cell.settings.model_copy(update={"device": "cuda:0"})
    on_cuda = cell.model_copy(update={"settings": settings})
    for workload in (decode, prefill):
        fast, slow = (workload.estimate(one, CEILINGS) for one in (cell, on_cuda))
        energy_s = metrics.estimated_energy_seconds(on_cuda, 0.0)
        assert slow - fast == pytest.approx(energy_s + warmup_s)


def compiling(name: str, depth: int) -> Cell:
    cell = make_cell(name, "decode", depth, size="25k")  # of two layers
    return cell.model_copy(update={"settings": cell.settings.model_copy(update={"compile": True})})


@pytest.mark.parametrize("name", ["retnet", pytest.param("transformer", marks=pytest.mark.slow)])
def test_a_compiled_step_is_held_against_the_eager_one(context_of: Make, name: str) -> None:
    found = decode.measure(ready(context_of(compiling(name, 64))))
    assert found.backend["compile"] is True
    assert 0 <= float(found.backend["compile_error"]) < 1e-4
    assert len(found.metrics["tpot_s"].samples) == 4


def test_a_compiled_step_that_computes_something_else_is_not_timed(
    context_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def miscompile(
        step: Callable[..., torch.Tensor], *inputs: object, packs_weights: bool
    ) -> Compiled[torch.Tensor]:
        def run(*given: object) -> torch.Tensor:
            return 1.1 * step(*given)

        return Compiled(run, run(*inputs), 0.0)

    monkeypatch.setattr("retbench.models.compiled.compile_step", miscompile)
    with pytest.raises(GateError, match=r"compiled decode step differs .* limit 0\.001"):
        decode.measure(ready(context_of(compiling("retnet", 64))))


@pytest.mark.parametrize("name", ["retnet", "transformer"])
@pytest.mark.parametrize("stale", [False, True])
def test_a_replayed_graph_is_held_against_the_eager_step(
    context_of: Make, monkeypatch: pytest.MonkeyPatch, name: str, stale: bool
) -> None:
    def capture(
        step: Callable[[], object], *, device: torch.device, before: Callable[[], object]
    ) -> Callable[[], object]:
        before()
        step()
        return (lambda: None) if stale else step

    monkeypatch.setattr("retbench.measure.clock.capture_graph", capture)
    cell = make_cell(name, "decode", 64)
    settings = cell.settings.model_copy(update={"cuda_graph": True})
    context = ready(context_of(cell.model_copy(update={"settings": settings})))
    if stale:
        with torch.no_grad():  # the logits that stay are those of the capture
            monkeypatch.setattr(
                "retbench.models.equivalence.relative_error",
                lambda found, eager: 0.25 * float(found is not eager),
            )
        with pytest.raises(GateError, match=r"replayed decode step differs .* by 0\.25"):
            decode.measure(context)
    else:
        assert decode.measure(context).backend["cuda_graph_error"] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_captured_steps_leave_the_state_that_eager_steps_do(
    context_of: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Measuring the energy would move the state on.
    monkeypatch.setattr(Context, "measure_energy", lambda *_, **__: Measurement({}))
    device = torch.device("cuda:0")
    left: list[dict[str, torch.Tensor]] = []
    for cuda_graph in (False, True):
        cell = make_cell(name, "decode", 64)
        settings = cell.settings.model_copy(update={"device": "cuda:0", "cuda_graph": cuda_graph})
        made = context_of(cell.model_copy(update={"settings": settings}))
        context = ready(
            Context(made.cell, made.model.to(device), device, made.ceilings, made.states, made.compiler)
        )
        states = keep_states(context, monkeypatch)
        found = decode.measure(context)
        assert found.backend["cuda_graph"] is cuda_graph
        assert len(found.metrics["tpot_s"].samples) == 4
        layers = states[-1].layers  # the last is the one that is decoded from
        left.append({f"{i}.{key}": x for i, one in enumerate(layers) for key, x in one.used(65).items()})
    for key, eager in left[0].items():
        assert eager.any(), key
        assert relative_error(left[1][key], eager) < 1e-5


def keep_states(context: Context, monkeypatch: pytest.MonkeyPatch) -> list[DecoderState]:
    """Every state that the model makes from now on."""
    made: list[DecoderState] = []
    init_state = context.model.init_state

    def keep(batch_size: int, capacity: int) -> DecoderState:
        made.append(init_state(batch_size, capacity))
        return made[-1]

    monkeypatch.setattr(context.model, "init_state", keep)
    return made
