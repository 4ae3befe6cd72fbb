"""Bar on a batch: the compiled bfloat16 step over the eager float32 step of every model of `kin`."""

from collections.abc import Iterator
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.peers import pairs
from benchmarks.peers.outcomes import Limit, Outcome, speed_outcome
from benchmarks.peers.rounds import TIMED_STEPS, WARM_STEPS, interleave, ready_step
from retbench.architectures.configs import ModelConfig, default_backend
from retbench.data.text import read_rows
from retbench.measure.clock import time_call
from retbench.models.build import build_model, set_up_steps
from retbench.models.equivalence import LIMITS, step_error

BATCH_SIZE = 8
DEPTH = 1024


class _Decoding:
    """Repeated decode steps of eight sequences from one depth."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, backend: str, *, compiled: bool) -> None:
        model = build_model(config, dtype=dtype, device="cpu", seed=0, backend=backend)
        set_up_steps(model, compiled=compiled, rows=BATCH_SIZE)
        rows = read_rows(BATCH_SIZE, DEPTH + 1)
        token = rows[:, -1:].clone()
        self.state = model.init_state(BATCH_SIZE, DEPTH + 2)
        model.prefill(rows[:, :-1], self.state)
        self.depth = self.state.mark()
        self.run = partial(ready_step(model, token, self.state, compiled=compiled), token, self.state)

    def logits(self) -> Tensor:
        """Return the logits of the step, (8, 1, N)."""
        self.state.rewind(self.depth)
        return self.run()

    def __call__(self) -> float:
        """Return the median seconds of a step; every step starts at the same depth."""
        samples = []
        for _ in range(WARM_STEPS + TIMED_STEPS):
            self.state.rewind(self.depth)
            samples.append(time_call(self.run))
        return median(samples[WARM_STEPS:])


@torch.inference_mode()
def batch(rounds: int, size: str, limit: float) -> Iterator[Outcome]:
    """Time a step of eight sequences at depth 1K: compiled in bfloat16 (ours) over eager in float32 (theirs).

    Eager float32 is the default of experiments. Both have the same weights, except for rounding, and have read the same
    text. The compiled step is compared with the eager step of the same rounded weights. Which attention is the faster
    one in bfloat16 depends on the processor: the step of an attention model is that of the faster.
    """
    for name, config in pairs.kin_configs(size).items():
        bar = f"batch-8-{size}: {name}"
        multiplies = any("products" in mixer.forms for mixer in config.mixers)
        backends = [default_backend(config), *(["products"] if multiplies else [])]
        eager = _Decoding(config, torch.float32, backends[0], compiled=False)
        narrow = _Decoding(config, torch.bfloat16, backends[0], compiled=False)
        compiled = {one: _Decoding(config, torch.bfloat16, one, compiled=True) for one in backends}
        for backend, step in compiled.items():
            proof = f"{bar}: equality of {backend}, eager bfloat16"
            error, largest = step_error(step.logits(), narrow.logits()), LIMITS[torch.bfloat16]
            yield Outcome(proof, error, 1.0, error, error, error, Limit(high=largest))
        times = interleave({**compiled, "theirs": eager}, rounds)
        ours = min(backends, key=lambda one: median(times[one]))
        yield speed_outcome(f"{bar}, {ours}", times[ours], times["theirs"], Limit(high=limit))
