"""Alternating measurement: a round measures every side once, in random order, so that disturbances affect all."""

import random
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor

from retbench.measure.clock import time_call
from retbench.models.build import set_up_steps
from retbench.models.compiled import StepCompiler
from retbench.models.language_model import LanguageModel
from retbench.models.state import DecoderState

WARM_STEPS = 3
"""Untimed steps before the timed ones of a round, on both sides."""
TIMED_STEPS = 24
TIMED_CALLS = 3
"""Calls of a round, each on a whole prompt."""

Step = Callable[[Tensor, DecoderState], Tensor]
"""Tokens (B, 1) and the state that they advance, to logits (B, 1, N)."""


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return one value per side and round, measured in random order; progress goes to stderr.

    Every side is called once before: what only the first call of a process pays would fall to one side.
    """
    order = random.Random(0)
    values: dict[str, list[float]] = {name: [] for name in sides}
    for warm_up in sides.values():
        warm_up()
    for number in range(1, rounds + 1):
        for name in order.sample(list(sides), len(sides)):
            values[name].append(sides[name]())
        shown = ", ".join(f"{name} {found[-1]:.4g}" for name, found in values.items())
        print(f"  round {number}/{rounds}: {shown}", file=sys.stderr, flush=True)
    return values


def time_greedy(step: Callable[[Tensor], Tensor], token: Tensor) -> float:
    """Return the median seconds of a step of greedy decoding: logits of one token, then the likeliest next.

    Args:
        step: Token (1, 1) to logits (1, 1, N).
        token: The first token, (1, 1).
    """
    samples = []
    for _ in range(WARM_STEPS + TIMED_STEPS):
        start = time.perf_counter()
        token = step(token).argmax(dim=-1)
        samples.append(time.perf_counter() - start)
    return median(samples[WARM_STEPS:])


def time_median(call: Callable[[], object]) -> float:
    """Return the median seconds of several calls: one alone may be disturbed."""
    return median(time_call(call) for _ in range(TIMED_CALLS))


def ready_step(model: LanguageModel, token: Tensor, state: DecoderState, *, compiled: bool) -> Step:
    """Return the decode step of a model, which is compiled for the shapes of a token and a state if `compiled`.

    A compiled step is ready after one eager step and one of its own, so that the state is then at the next position.
    """
    if not compiled:
        return model
    start = state.mark()
    model(token, state)
    state.rewind(start)
    return StepCompiler(model).prepare(token, state).run


class OurDecoding:
    """Repeated greedy decoding of one of our models from one depth.

    Args:
        model: The model; its weights are stored anew as its steps read them fastest.
        prompt: (1, depth) int64, prefilled once by the constructor.
        compiled: Decode by a compiled step.
    """

    def __init__(self, model: LanguageModel, prompt: Tensor, *, compiled: bool = False) -> None:
        set_up_steps(model, compiled=compiled)
        capacity = prompt.shape[1] + WARM_STEPS + TIMED_STEPS + 1
        self.state: DecoderState = model.init_state(1, capacity)
        self.token = model.prefill(prompt, self.state).argmax(dim=-1)
        self.start = self.state.mark()
        self._run = ready_step(model, self.token, self.state, compiled=compiled)

    def __call__(self) -> float:
        """Return the median seconds of a step; every call starts at the same depth."""
        self.state.rewind(self.start)
        return time_greedy(lambda token: self._run(token, self.state), self.token)

    def logits_of(self, tokens: Tensor) -> Tensor:
        """Return the logits of decoding tokens (1, n) from the depth, (1, n, N)."""
        self.state.rewind(self.start)
        # Tensors of their own: the strides of a slice are not those that a step was compiled for.
        each = (torch.tensor([[token]]) for token in tokens.flatten().tolist())
        return torch.cat([self._run(token, self.state) for token in each], dim=1)
