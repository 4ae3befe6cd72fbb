"""Predicted and measured time of a decode step, alternating within each round."""

import sys
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.peers.outcomes import Limit, Outcome, speed_outcome
from benchmarks.peers.rounds import ready_step
from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.measure.clock import time_steps
from retbench.models.build import build_model, set_up_steps
from retbench.models.decoder import Decoder
from retbench.planning.operator_counts import count_operators
from retbench.planning.prediction import StepTime, expected
from retbench.planning.step_rates import measure_step_rates
from retbench.units import format_tokens

DEPTHS = (1024, 8192, 32768)
DTYPE = "float32"
CPU = torch.device("cpu")
WARMUP_S = 0.2
NUM_STEPS = 20


def decode(rounds: int, size: str, low: float, high: float, *, compiled: bool = False) -> Iterator[Outcome]:
    """Compare predicted and measured seconds of a step of every architecture at every depth.

    The rates behind the predictions are measured again in each round; they are the same for all models.
    """
    models = {
        name: (resolve_model(spec, size), spec.backend)
        for name, spec in named_specs().items()
        if name == spec.architecture
    }
    predicted: dict[tuple[str, int], list[float]] = {(name, depth): [] for name in models for depth in DEPTHS}
    measured: dict[tuple[str, int], list[float]] = {place: [] for place in predicted}
    counts = {
        config.fingerprint: count_operators(config, getattr(torch, DTYPE), backend=backend)
        for config, backend in models.values()
    }
    for number in range(1, rounds + 1):
        rates = measure_step_rates(CPU, getattr(torch, DTYPE), compiled=compiled)
        step_time: StepTime = expected(rates, DTYPE, lambda model: counts[model.fingerprint])
        for name, (config, backend) in models.items():
            steps = _measure_steps(config, backend, compiled=compiled)
            for depth in DEPTHS:
                predicted[name, depth].append(step_time(config, 1, depth))
                measured[name, depth].append(steps[depth])
        print(f"  round {number}/{rounds}", file=sys.stderr, flush=True)
    for name, depth in predicted:
        bar = f"decode-{size}{'-compiled' if compiled else ''}: {name} at {format_tokens(depth)}"
        yield speed_outcome(
            bar, predicted[name, depth], measured[name, depth], Limit(low, high), "predicted, measured"
        )


@torch.inference_mode()
def _measure_steps(config: ModelConfig, backend: str, *, compiled: bool) -> dict[int, float]:
    """Return the median seconds of a step at every depth, each after a step at the depth before."""
    torch.compiler.set_stance("default")
    model = build_model(config, dtype=getattr(torch, DTYPE), device=CPU, seed=0, backend=backend)
    set_up_steps(model, compiled=compiled)
    return {depth: _seconds_at(depth, model, compiled=compiled) for depth in DEPTHS}


def _seconds_at(depth: int, model: Decoder, *, compiled: bool) -> float:
    """Return the median seconds of a step at a depth, from a state with random values."""
    # A cache that is full after a step is another case of compiled code.
    state = model.init_state(1, depth + 2)
    for layer in state.layers:
        for held in layer.tensors.values():
            held.normal_()  # pages that nothing was written to are all one in memory
    token = torch.zeros(1, 1, dtype=torch.int64)
    state.position = depth - 1
    run = ready_step(model, token, state, compiled=compiled)

    def go_back() -> None:
        state.position = depth - 1
        run(token, state)

    return median(
        time_steps(lambda: run(token, state), go_back, device=CPU, warmup_s=WARMUP_S, min_steps=NUM_STEPS)
    )
