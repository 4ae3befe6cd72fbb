"""Predicted and measured time of a decode step, alternating within each round."""

import sys
from collections.abc import Callable, Iterator
from statistics import median

import torch

from benchmarks.peers.outcomes import Limit, Outcome, speed_outcome
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import resolve_model
from retbench.architectures.retnet import RetNetSpec
from retbench.architectures.transformer import TransformerSpec
from retbench.measure.clock import time_steps
from retbench.models.build import build_model
from retbench.units import format_tokens
from retbench.workloads.parts import CPU, measure_parts

DEPTHS = (1024, 2048, 4096, 8192, 16384, 32768)
WITHIN = Limit(low=0.75, high=1.25)
DTYPE = "float32"
WARMUP_S = 0.2
NUM_STEPS = 20

SPECS: dict[str, ModelSpec] = {
    "retnet": RetNetSpec(architecture="retnet"),
    "transformer": TransformerSpec(architecture="transformer"),
}


def decode(rounds: int, size: str) -> Iterator[Outcome]:
    """Compare predicted and measured seconds of a step at every depth; parts are timed again in each round."""
    predicted: dict[tuple[str, int], list[float]] = {(name, depth): [] for name in SPECS for depth in DEPTHS}
    measured: dict[tuple[str, int], list[float]] = {place: [] for place in predicted}
    for number in range(1, rounds + 1):
        for name, spec in SPECS.items():
            config = resolve_model(spec, size)
            curve = measure_parts(config, DTYPE, 1, DEPTHS, backend=spec.backend)
            steps = _measure_steps(config, spec.backend)
            for depth in DEPTHS:
                predicted[name, depth].append(curve.seconds(depth))
                measured[name, depth].append(steps[depth])
        print(f"  round {number}/{rounds}", file=sys.stderr, flush=True)
    for name, depth in predicted:
        bar = f"decode-{size}: {name} at {format_tokens(depth)}"
        yield speed_outcome(bar, predicted[name, depth], measured[name, depth], WITHIN, "predicted, measured")


@torch.inference_mode()
def _measure_steps(config: ModelConfig, backend: str) -> dict[int, float]:
    """Return the median seconds of a step at every depth, after a step at the depth before, as in `decode`."""
    model = build_model(config, dtype=getattr(torch, DTYPE), device=CPU, seed=0, backend=backend)
    state = model.init_state(1, DEPTHS[-1] + 1)
    for layer in state.layers:
        for held in layer.tensors.values():
            held.normal_()
    token = torch.zeros(1, 1, dtype=torch.int64)

    def step() -> None:
        model(token, state)

    def advance_to(depth: int) -> Callable[[], None]:
        def advance() -> None:
            state.position = depth - 1
            step()

        return advance

    return {
        depth: median(time_steps(step, advance_to(depth), device=CPU, warmup_s=WARMUP_S, min_steps=NUM_STEPS))
        for depth in DEPTHS
    }
