"""A step compiled by torch.compile: its operators fused, its weights packed for the products that use them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from retbench.errors import UnsupportedError
from retbench.measure.limits import is_out_of_memory

T = TypeVar("T")


@dataclass(frozen=True)
class Compiled(Generic[T]):
    """A compiled step.

    Attributes:
        run: Runs it.
        first: What its first run returned.
        seconds: Wall time of the compilation and that run. Compiled code is cached on disk, so a second process
            takes less.
    """

    run: Callable[[], T]
    first: T
    seconds: float


def compile_step(step: Callable[[], T]) -> Compiled[T]:
    """`step` compiled whole for the shapes, and for the numbers on the host, that it has now.

    Every weight becomes a constant of the code (`freezing`), which lets the products on a CPU pack it in the layout
    they read fastest; the weights of the model stay beside it. What was compiled before is let go. Were a later run to
    find anything changed that the code depends on, it would fail and not be compiled anew in silence.

    Args:
        step: Run once here, without gradients. What it does on the host at its first run only, such as to note what
            ran, is to be done before.

    Raises:
        UnsupportedError: torch cannot compile it here.
        RuntimeError: the memory does not suffice for it, as torch says so; see `limits.is_out_of_memory`.
    """
    import torch._inductor.config as inductor  # loads sympy and more: only where something is compiled

    torch.compiler.reset()
    torch.compiler.set_stance("default")
    start = time.perf_counter()
    run = torch.compile(step, fullgraph=True, dynamic=False)
    try:
        with inductor.patch(freezing=True):
            first = run()
    except torch._dynamo.exc.TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)  # what the compiler behind torch.compile met
        if is_out_of_memory(cause):
            raise cause from error
        raise UnsupportedError(
            f"torch.compile cannot compile the step: {_first_line(cause)}. On a CPU it needs a C++ compiler (g++ or "
            "clang++, or the one that CXX names). Leave --compile out, or install one."
        ) from error
    seconds = time.perf_counter() - start
    torch.compiler.set_stance("fail_on_recompile")
    return Compiled(run, first, seconds)


def _first_line(error: Exception) -> str:
    """The first line of an error that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
