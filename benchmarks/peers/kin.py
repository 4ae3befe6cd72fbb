"""Bars on the eager decoding of every model of the experiment `kin`: over depth, and with the read bandwidth."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.peers import pairs
from benchmarks.peers.decode import MEDIAN_DEPTH, SHALLOW, read_bytes_per_s
from benchmarks.peers.outcomes import Limit, Outcome, speed_outcome
from benchmarks.peers.rounds import OurDecoding, interleave
from retbench.architectures import costs
from retbench.data.text import read_tokens

DEEP = 32768


@torch.inference_mode()
def depth(rounds: int, low: float, high: float) -> Iterator[Outcome]:
    """Compare the time per token and the state of each model whose state is fixed at 32K (ours) and at 1K (theirs)."""
    prompt = read_tokens(DEEP)[None]
    for name, config in pairs.kin_configs().items():
        if config.grows:
            continue
        model = pairs.plain(config)
        deep, shallow = OurDecoding(model, prompt), OurDecoding(model, prompt[:, :SHALLOW])
        sizes = deep.state.num_bytes, shallow.state.num_bytes
        ratio = sizes[0] / sizes[1]
        yield Outcome(f"depth: {name}, state bytes", *sizes, ratio, ratio, ratio, Limit(1.0, 1.0))
        # The sides do equal work: only many rounds separate noise from a difference, and a round is short.
        times = interleave({"32K": deep, "1K": shallow}, 5 * rounds)
        yield speed_outcome(f"depth: {name}", times["32K"], times["1K"], Limit(low, high))


@torch.inference_mode()
def bandwidth(rounds: int, size: str, limit: float) -> Iterator[Outcome]:
    """Measure bytes per second of an eager step (ours) over the read bandwidth at its footprint (theirs)."""
    prompt = read_tokens(SHALLOW)[None]
    for name, config in pairs.kin_configs(size).items():
        step_bytes = costs.decode_bytes(config, "float32", 1, MEDIAN_DEPTH)
        sides: dict[str, Callable[[], float]] = {
            "step": OurDecoding(pairs.plain(config), prompt),
            "read": partial(read_bytes_per_s, step_bytes),
        }
        values = interleave(sides, rounds)
        rates = [step_bytes / seconds for seconds in values["step"]]
        bar = f"bandwidth-eager-{size}: {name}"
        yield speed_outcome(bar, rates, values["read"], Limit(low=limit, high=1.0))
