"""Steps compiled by torch.compile, in which operators are fused."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from retbench.errors import UnsupportedError
from retbench.measure.limits import is_out_of_memory

T = TypeVar("T")

_MOST_STEPS = 64
"""Compiled steps of one function that may be alive in a process, such as those of several models: torch allows 8."""


@dataclass(frozen=True)
class Compiled(Generic[T]):
    """A compiled step.

    Attributes:
        run: Runs the step on inputs that differ from the first ones in nothing but what is symbolic.
        first: Result of the first run.
        seconds: Wall time of the compilation and the first run. Compiled code is cached on disk, so a second process
            needs less.
    """

    run: Callable[..., T]
    first: T
    seconds: float


def compile_step(step: Callable[..., T], *inputs: Any, packs_weights: bool = False) -> Compiled[T]:
    """Compile `step` as one graph and run it once.

    Integers on the host, and dimensions of the inputs that are not marked static, are symbolic: code for one value
    serves every other. If a later run depends on anything else that has changed, it fails instead of recompiling
    silently. Sizes of weights are always static.

    Args:
        step: Run once, without gradients. Host-side work of the first run, such as logging the executed backend, must
            be done before.
        inputs: Arguments of the step.
        packs_weights: Make every weight a constant of the code (`freezing`), which products on a CPU pack in their own
            layout; the model keeps its own weights in addition. Such code is cached on disk in part only.

    Raises:
        UnsupportedError: torch cannot compile the step on this machine.
        RuntimeError: memory ran out; see `limits.is_out_of_memory`.
    """
    import torch._inductor.config as inductor  # slow to import: only when something is compiled

    _prepare_compiler()
    start = time.perf_counter()
    # Inputs are still checked at every run. A module that is compiled does not change, and checking each of its weights
    # took 0.1 ms of a step of 3 ms.
    filtered: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    run = torch.compile(_with_own_code(step), fullgraph=True, dynamic=True, options=filtered)
    is_on_cpu = all(value.device.type == "cpu" for value in inputs if isinstance(value, Tensor))
    with (
        inductor.patch(freezing=packs_weights),
        # Numbers such as the epsilon of a norm do not change: as symbols they make torch trace the step twice. A length
        # may be a value of a tensor; see `ops.attention_products`.
        torch._dynamo.config.patch(
            recompile_limit=_MOST_STEPS, specialize_float=True, capture_scalar_outputs=True
        ),
        _explained("--no-compile", is_on_cpu=is_on_cpu),
    ):
        first = run(*inputs)
    seconds = time.perf_counter() - start
    torch.compiler.set_stance("fail_on_recompile")
    return Compiled(run, first, seconds)


def compile_training(model: nn.Module) -> Callable[..., Tensor]:
    """Return a model's forward pass, compiled as one graph with its backward pass for each shape of the inputs.

    The model itself stays as it is and shares its weights. It must have run eagerly before, because work on the host,
    such as noting the executed kernel, is not compiled. The first call of a shape compiles, and raises an
    UnsupportedError where torch cannot on this machine.
    """
    _prepare_compiler()
    compiled = torch.compile(_with_own_code(model.__call__), fullgraph=True, dynamic=False)
    is_on_cpu = next(model.parameters()).device.type == "cpu"

    def forward(*inputs: Any) -> Tensor:
        with _explained("--set training.compile=false", is_on_cpu=is_on_cpu):
            logits: Tensor = compiled(*inputs)
            return logits

    return forward


def _prepare_compiler() -> None:
    """Allow compilation, and silence torch's warning that a machine without a GPU has no CUDA: a CPU needs none."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    torch.compiler.set_stance("default")


@contextmanager
def _explained(without: str, *, is_on_cpu: bool) -> Iterator[None]:
    """Raise what fails in torch.compile as out of memory, or as an UnsupportedError that names the way `without` it."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)  # the compiler's own error
        if is_out_of_memory(cause):
            raise cause from error
        needs = (
            " It needs a C++ compiler (g++, or the one that CXX names) and Python's headers."
            if is_on_cpu
            else ""
        )
        raise UnsupportedError(
            f"torch.compile cannot compile the step: {_first_line(cause)}.{needs} Give {without} to run it eagerly."
        ) from error


def _with_own_code(step: Callable[..., T]) -> Callable[..., T]:
    """Return a new function that runs `step` and shares its code object with no other.

    torch keeps compiled code by code object. Without checks of modules, the step of one model would else run the code
    of another whose inputs look the same.
    """

    def run(*inputs: Any) -> T:
        return step(*inputs)

    return FunctionType(run.__code__.replace(), globals(), closure=run.__closure__)


def is_recompile(error: RuntimeError) -> bool:
    """Return whether a run of a compiled step failed, before it began, because its code does not fit the inputs."""
    return "fail_on_recompile" in str(error)


def _first_line(error: Exception) -> str:
    """Return the first non-empty line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
