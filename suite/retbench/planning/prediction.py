"""Prediction of decode time and memory, from closed forms and what a device reaches; without torch.

Two ways to the time of a step. `roofline` takes a device's two ceilings and gives the least time that they allow: no
program is faster, and most are slower. `StepCurve` holds what the parts of a step took together, each measured at its
own shape, and gives what a step should take; it never sees the time of a step that it predicts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.errors import ConfigError
from retbench.records.record import Ceilings
from retbench.units import tokens_per_second

LONGEST_CONTEXT = 2**20
"""Up to which a crossover is looked for, tokens."""

StepTime = Callable[[ModelConfig, int, int], float]
"""Seconds of a decode step of a model at a batch size and a context length."""


def roofline(ceilings: Ceilings, dtype: str) -> StepTime:
    """The least time that the ceilings allow a step: moving its bytes or doing its operations, whichever is longer."""

    def step_seconds(model: ModelConfig, batch_size: int, context_len: int) -> float:
        num_bytes = costs.decode_bytes(model, dtype, batch_size, context_len)
        flops = costs.decode_flops(model, batch_size, context_len)
        return max(num_bytes / ceilings.read_bandwidth_bytes_per_s, flops / ceilings.matmul_flops_per_s)

    return step_seconds


@dataclass(frozen=True)
class StepCurve:
    """Times of one model's decode step at one batch size, put together from measured parts.

    Attributes:
        step_s: What a step should take, by context length.
    """

    step_s: Mapping[int, float]

    def seconds(self, context_len: int) -> float:
        """Seconds of a step; between two lengths it lies on a line.

        Raises:
            ConfigError: the length lies outside those that parts were measured at.
        """
        if context_len in self.step_s:
            return self.step_s[context_len]
        lengths = sorted(self.step_s)
        if not lengths[0] <= context_len <= lengths[-1]:
            raise ConfigError(
                f"context {context_len} lies outside {lengths[0]} to {lengths[-1]}, where parts were measured. "
                "Give it with --context."
            )
        below, above = next(pair for pair in pairwise(lengths) if pair[0] < context_len < pair[1])
        share = (context_len - below) / (above - below)
        return (1 - share) * self.step_s[below] + share * self.step_s[above]


@dataclass(frozen=True)
class Prediction:
    """Decoding of one model at one point.

    Attributes:
        step_s: Time of a step, which is that of a token of each sequence.
        tokens_per_s: Of all sequences.
        weight_bytes: All parameters, embedding table and head apart from each other.
        state_bytes: Retention state, or key-value cache of the context and the token that follows.
        workspace_bytes: Temporaries of a step.
        largest_batch: Sequences that fit beside the weights; None where the device's memory is not known.
    """

    model: str
    batch_size: int
    context_len: int
    step_s: float
    tokens_per_s: float
    weight_bytes: int
    state_bytes: int
    workspace_bytes: int
    largest_batch: int | None

    @property
    def memory_bytes(self) -> int:
        """Weights, state and workspace."""
        return self.weight_bytes + self.state_bytes + self.workspace_bytes

    @property
    def fits(self) -> bool | None:
        """True if the batch fits into memory; None if the memory is not known."""
        return None if self.largest_batch is None else self.batch_size <= self.largest_batch


def predict(
    models: Mapping[str, ModelConfig],
    points: Sequence[tuple[int, int]],
    *,
    dtype: str,
    step_time: StepTime,
    memory_bytes: int | None,
) -> list[Prediction]:
    """Every model at every (batch size, context length), models outermost."""
    return [
        _predict_one(name, model, point, dtype, step_time(model, *point), memory_bytes)
        for name, model in models.items()
        for point in points
    ]


def _predict_one(
    name: str,
    model: ModelConfig,
    point: tuple[int, int],
    dtype: str,
    step_s: float,
    memory_bytes: int | None,
) -> Prediction:
    """One model at one point."""
    batch_size, context_len = point
    return Prediction(
        model=name,
        batch_size=batch_size,
        context_len=context_len,
        step_s=step_s,
        tokens_per_s=tokens_per_second(batch_size, step_s),
        weight_bytes=costs.weight_bytes(model, dtype),
        state_bytes=costs.state_bytes(model, dtype, batch_size, context_len + 1),
        workspace_bytes=costs.decode_workspace_bytes(model, dtype, batch_size),
        largest_batch=None
        if memory_bytes is None
        else costs.largest_batch(model, dtype, memory_bytes, context_len),
    )


@dataclass(frozen=True)
class Overtaking:
    """From which context length on the first of two models has the shorter step.

    Attributes:
        batch_size: At which.
        context_len: Tokens; None where the first is not ahead at the last length looked at.
        looked_from: The first length looked at.
        looked_to: The last one.
    """

    batch_size: int
    context_len: int | None
    looked_from: int
    looked_to: int


def find_overtaking(
    first: ModelConfig,
    second: ModelConfig,
    batch_size: int,
    step_time: StepTime,
    within: tuple[int, int] = (1, LONGEST_CONTEXT),
) -> Overtaking:
    """Where the first model overtakes, its advantage growing with the context: by halving the lengths.

    Args:
        first: A model whose step grows by less with the context.
        second: The other.
        batch_size: Of both.
        step_time: Of a step.
        within: Lengths to look at.
    """
    low, high = within

    def is_ahead(context_len: int) -> bool:
        return step_time(first, batch_size, context_len) <= step_time(second, batch_size, context_len)

    if not is_ahead(high):
        return Overtaking(batch_size, None, low, high)
    while low < high:
        middle = (low + high) // 2
        if is_ahead(middle):
            high = middle
        else:
            low = middle + 1
    return Overtaking(batch_size, high, *within)
