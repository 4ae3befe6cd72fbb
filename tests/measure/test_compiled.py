"""A compiled step does what the step does, or says why it cannot be compiled."""

import random

import pytest
import torch

from retbench.errors import UnsupportedError
from retbench.measure.compiled import compile_step

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
    x, seen = torch.randn(4), {"times": 0}

    def step() -> torch.Tensor:
        seen["times"] += 1
        return x * seen["times"]

    compiled = compile_step(step)
    with pytest.raises(RuntimeError, match="recompile"):
        compiled.run()


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
