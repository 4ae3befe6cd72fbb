"""Bars on the linear operators alone: prefill with every kind of decay, compared with retention's."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.outcomes import FP32_LIMIT, Limit, Outcome, error_outcome, prove, speed_outcome
from benchmarks.peers.rounds import interleave, time_median
from retbench.mixers.gated_linear_attention.config import GatedLinearAttention
from retbench.mixers.linear_attention.config import LinearAttention
from retbench.mixers.mamba2.config import HEAD_WIDTH, Mamba2
from retbench.mixers.retention.config import Retention
from retbench.mixers.rwkv.config import RwkvTimeMix
from retbench.ops.decay import decay_schedule, gated_log_decay
from retbench.ops.linear_operator import INCLUSIVE, Readout, linear_chunkwise, linear_recurrent

PROMPT_LEN = 8192
PROVEN_LEN = 300
NUM_HEADS, KEY_DIM, VALUE_DIM = 4, 128, 256
"""State of every operator: 131,072 values, that of RetNet at a width of 512."""


class Inputs(NamedTuple):
    """Inputs of one operator, and the chunk of the mixer that it is part of."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    chunk_size: int | None
    readout: Readout = INCLUSIVE

    def run(self, form: Callable[..., tuple[Tensor, Tensor]], length: int, **options: int | None) -> Tensor:
        """Return the outputs of a form for the first tokens."""
        decay = self.log_decay
        if decay is not None and decay.dim() > 1:
            decay = decay[:, :length]
        parts = (x[:, :length] for x in (self.q, self.k, self.v))
        return form(*parts, decay, None, readout=self.readout, **options)[0]

    def chunkwise(self, length: int) -> Tensor:
        """Return the outputs of the chunkwise form for the first tokens."""
        return self.run(linear_chunkwise, length, chunk_size=self.chunk_size)

    def equality(self, bar: str) -> Outcome:
        """Compare the chunkwise form with the recurrent one over the first tokens."""
        expected = self.run(linear_recurrent, PROVEN_LEN)
        return error_outcome(bar, self.chunkwise(PROVEN_LEN), expected, FP32_LIMIT)


@torch.inference_mode()
def prefill_operators(rounds: int, decay: str, limit: float) -> Iterator[Outcome]:
    """Time the chunkwise operators over 8,192 tokens (ours) and retention's (theirs), at equal state.

    Args:
        rounds: Rounds of the timing.
        decay: `scalar` for those with one decay per head or none, `vector` for those with one per channel.
        limit: Largest ratio of the times.
    """
    retention, others = _inputs(decay)
    bar = f"prefill-{decay}-decay"
    if not (yield from prove(one.equality(f"{bar}: {name}, equality") for name, one in others.items())):
        return
    sides = {"retention": retention, **others}
    times = interleave(
        {name: partial(time_median, partial(inputs.chunkwise, PROMPT_LEN)) for name, inputs in sides.items()},
        rounds,
    )
    for name in others:
        yield speed_outcome(f"{bar}: {name}", times[name], times["retention"], Limit(high=limit))


def _inputs(decay: str) -> tuple[Inputs, dict[str, Inputs]]:
    """Return the inputs of retention, and those of the operators with a kind of decay by name."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, PROMPT_LEN, *shape, generator=generator)

    q, k, v = normal(NUM_HEADS, KEY_DIM), normal(NUM_HEADS, KEY_DIM) / KEY_DIM, normal(NUM_HEADS, VALUE_DIM)
    retention = Inputs(q, k, v, decay_schedule("eq8", NUM_HEADS), Retention.default_chunk_size)
    if decay == "vector":
        per_channel = normal(NUM_HEADS, KEY_DIM)
        readout = Readout(bonus=normal(NUM_HEADS, KEY_DIM)[0, 0])
        gates = gated_log_decay(per_channel, torch.float32)
        rates = -(per_channel - 3).exp()  # around e^-3 per token, as RWKV-6 starts
        return retention, {
            "GLA": Inputs(q, k, v, gates, GatedLinearAttention.default_chunk_size),
            "RWKV-6": Inputs(q, k, v, rates, RwkvTimeMix.default_chunk_size, readout),
        }
    heads = NUM_HEADS * VALUE_DIM // HEAD_WIDTH
    steps = -F.softplus(normal(heads)) / 2
    gates = gated_log_decay(normal(NUM_HEADS), torch.float32)
    shared_q, shared_k, values = normal(1, KEY_DIM), normal(1, KEY_DIM) / KEY_DIM, normal(heads, HEAD_WIDTH)
    return retention, {
        "linear attention": Inputs(q, k, v, None, LinearAttention.default_chunk_size),
        "gated retention": Inputs(q, k, v, gates, Retention.default_chunk_size),
        "Mamba-2": Inputs(shared_q, shared_k, values, steps, Mamba2.default_chunk_size),
    }
