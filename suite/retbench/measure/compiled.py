"""Steps compiled by torch.compile: operators are fused, and weights are packed for their products."""

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
        run: Runs the step.
        first: Result of the first run.
        seconds: Wall time of the compilation and the first run. Compiled code is cached on disk, so a second process
            needs less.
    """

    run: Callable[[], T]
    first: T
    seconds: float


def compile_step(step: Callable[[], T]) -> Compiled[T]:
    """Compile `step` as one graph for its present shapes and host-side numbers.

    Every weight becomes a constant of the code (`freezing`), so that products on a CPU can pack it in their fastest
    layout; the model keeps its own weights in addition. Code compiled earlier is discarded. If a later run depends on
    anything that has changed, it fails instead of recompiling silently.

    Args:
        step: Run once, without gradients. Host-side work of the first run, such as logging the executed backend, must
            be done before.

    Raises:
        UnsupportedError: torch cannot compile the step on this machine.
        RuntimeError: memory ran out; see `limits.is_out_of_memory`.
    """
    import torch._inductor.config as inductor  # slow to import: only when something is compiled

    torch.compiler.reset()
    torch.compiler.set_stance("default")
    start = time.perf_counter()
    run = torch.compile(step, fullgraph=True, dynamic=False)
    try:
        with inductor.patch(freezing=True):
            first = run()
    except torch._dynamo.exc.TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)  # the compiler's own error
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
    """Return the first non-empty line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
