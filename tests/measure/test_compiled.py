"""A compiled step does what the step does, or says why it cannot be compiled."""

import random

import pytest
import torch

from retbench.errors import UnsupportedError
from retbench.measure.compiled import compile_step, is_recompile

# What inductor loads still uses torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@torch.inference_mode()
def test_a_compiled_step_gives_what_the_step_gives_and_moves_what_it_moves() -> None:
    weight, x, state = torch.randn(8, 4), torch.randn(2, 8), torch.zeros(2, 4)

    def step() -> torch.Tensor:
        state.mul_(0.5).add_(x @ weight)
        return state.tanh()

    expected = step().clone()
    state.zero_()
    compiled = compile_step(step)
    assert torch.allclose(compiled.first, expected, atol=1e-6)
    assert compiled.seconds > 0
    second = compiled.run()
    state.zero_()
    step()
    assert torch.allclose(second, step(), atol=1e-6)


@torch.inference_mode()
def test_a_step_that_depends_on_what_has_changed_is_not_compiled_anew_in_silence() -> None:
    x, seen = torch.randn(4), {"name": "sin"}

    def step() -> torch.Tensor:
        return getattr(x, seen["name"])()

    compiled = compile_step(step)
    seen["name"] = "cos"
    with pytest.raises(RuntimeError, match="recompile") as caught:
        compiled.run()
    assert is_recompile(caught.value)


@torch.inference_mode()
def test_integers_and_sizes_that_change_need_no_other_code() -> None:
    def step(x: torch.Tensor, start: int) -> torch.Tensor:
        return x[:start].sum() * start

    compiled = compile_step(step, torch.ones(7), 5)
    assert float(compiled.first) == 25
    assert float(compiled.run(torch.ones(90), 80)) == 6400


@torch.inference_mode()
def test_without_a_compiler_it_says_what_to_install() -> None:
    import torch._inductor.config as inductor

    x, never_cached = torch.randn(3, 5), random.random()
    nowhere = inductor.patch({"cpp.cxx": ("/nowhere/g++",)})
    with nowhere, pytest.raises(UnsupportedError, match=r"needs a C\+\+ compiler"):
        compile_step(lambda: (x * never_cached + 1).sin())


@torch.inference_mode()
def test_a_step_that_is_not_one_graph_is_refused() -> None:
    x = torch.randn(3)

    def step() -> float:
        return x.sum().item() if bool(x.sum() > 0) else 0.0

    with pytest.raises(UnsupportedError, match=r"cannot compile the step"):
        compile_step(step)


@torch.inference_mode()
def test_out_of_memory_while_compiling_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.compile_fx

    def starve(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", starve)
    x = torch.randn(3)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        compile_step(lambda: x + 1)
