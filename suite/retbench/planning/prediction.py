"""Prediction of decode time and memory, from closed forms and what a device reaches; without torch.

Two models of the time of a step, for every device and every architecture. `roofline` takes a device's two ceilings and
gives the least time that they allow: no program is faster, and most are slower. `expected` takes the rates that the
device reaches and a cost per operator, and gives the time that a step should take; no step of a model is measured. Both
serve measured devices and datasheets, whose rates are their ceilings (`rates_from`).
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.records.record import Ceilings, interpolate
from retbench.units import tokens_per_second

LONGEST_CONTEXT = 2**20
"""Longest context length at which models are compared, in tokens."""

StepTime = Callable[[ModelConfig, int, int], float]
"""Seconds of a decode step of a model at a batch size and a context length."""


def roofline(ceilings: Ceilings, dtype: str) -> StepTime:
    """Return the least time that the ceilings allow: to move a step's bytes or to do its operations."""

    def step_seconds(model: ModelConfig, batch_size: int, context_len: int) -> float:
        num_bytes = costs.decode_bytes(model, dtype, batch_size, context_len)
        flops = costs.decode_flops(model, batch_size, context_len)
        return max(num_bytes / ceilings.read_bytes_per_s(num_bytes), flops / ceilings.matmul_flops_per_s)

    return step_seconds


Curve = tuple[tuple[int, float], ...]
"""Footprints in bytes, or other numbers, with a value at each, the smallest first."""


class OperatorCount(NamedTuple):
    """The operators of a decode step."""

    total: int
    """Those that execute a kernel."""
    products: int
    """Matrix products."""
    attentions: int = 0
    """Attention of all heads, by one operator or by products, where each query has its own keys."""
    shared_attentions: int = 0
    """Attention where several queries share keys."""
    views: int = 0
    """Those that execute no kernel, and take the time of their call in an eager step."""


@dataclass(frozen=True)
class StepRates:
    """Rates that a device reaches at the operators of a decode step, by the footprint of the step.

    Attributes:
        products: Bytes of weights per second, in products with one row.
        attention: Bytes of keys and values per second.
        recurrence: Bytes of a state, read and written, per second.
        matmul_flops_per_s: FLOP/s of matrix products.
        shared_key_flops_per_s: FLOP/s of attention where queries share keys, by the number of queries of each key.
        operator_s: Seconds per operator of a step, or per kernel of a replayed CUDA graph, without those of its bytes.
            It is less in a compiled step, which fuses operators.
        product_s: Further seconds per product, by the footprint of the step.
        attention_s: Further seconds per attention, by the footprint of the step.
        shared_attention_s: The same where queries share keys, which a compiled step attends to by other operators.
        view_s: Seconds per view in an eager step on a CPU.
    """

    products: Curve
    attention: Curve
    recurrence: Curve
    matmul_flops_per_s: float
    shared_key_flops_per_s: Curve
    operator_s: float = 0.0
    product_s: Curve = ((1, 0.0),)
    attention_s: Curve = ((1, 0.0),)
    shared_attention_s: Curve = ((1, 0.0),)
    view_s: float = 0.0


def expected(
    rates: StepRates, dtype: str, count_operators: Callable[[ModelConfig], OperatorCount]
) -> StepTime:
    """Return the time that a step should take: its bytes at the rates of its footprint, and the calls of its operators.

    Args:
        rates: Rates of the device.
        dtype: Dtype of the weights.
        count_operators: Gives the operators of a step of a model.
    """

    def step_seconds(model: ModelConfig, batch_size: int, context_len: int) -> float:
        moved = costs.decode_traffic(model, dtype, batch_size, context_len)
        shared = costs.shared_keys(model, dtype, batch_size, context_len)
        flops = costs.decode_flops(model, batch_size, context_len) - sum(one.flops for one in shared)
        flops_s = flops / rates.matmul_flops_per_s
        weights_s = moved.weights / interpolate(rates.products, moved.footprint)
        cache_rate = interpolate(rates.attention, moved.footprint)
        shared_bytes = sum(one.num_bytes for one in shared)
        flop_rates, count = rates.shared_key_flops_per_s, count_operators(model)
        return (
            max(weights_s, flops_s)
            + (moved.caches + moved.shared - shared_bytes) / cache_rate
            + sum(
                max(one.num_bytes / cache_rate, one.flops / interpolate(flop_rates, one.num_queries))
                for one in shared
            )
            + moved.states / interpolate(rates.recurrence, moved.footprint)
            + count.total * rates.operator_s
            + count.views * rates.view_s
            + count.products * interpolate(rates.product_s, moved.footprint)
            + count.attentions * interpolate(rates.attention_s, moved.footprint)
            + count.shared_attentions * interpolate(rates.shared_attention_s, moved.footprint)
        )

    return step_seconds


def rates_from(ceilings: Ceilings, kernel_s: float) -> StepRates:
    """Return the rates of a device that nothing was measured on but its ceilings.

    Weights, caches and states move at the read bandwidth of the footprint, and every operator is one kernel.

    Args:
        ceilings: Ceilings of the device.
        kernel_s: Seconds per kernel of a replayed CUDA graph, without those of its bytes.
    """
    one_size = ((1, ceilings.read_bandwidth_bytes_per_s),)
    curve = tuple((rate.footprint_bytes, rate.bytes_per_s) for rate in ceilings.read_curve) or one_size
    return StepRates(
        products=curve,
        attention=curve,
        recurrence=curve,
        matmul_flops_per_s=ceilings.matmul_flops_per_s,
        shared_key_flops_per_s=((1, ceilings.matmul_flops_per_s),),
        operator_s=kernel_s,
    )


@dataclass(frozen=True)
class StepTimes:
    """Times of a decode step on one device; at least one of the two is there.

    Attributes:
        at_best: The least time that the ceilings allow; None where no ceilings are known.
        expected: The time with the cost of its operators; None where that cost is not known.
    """

    at_best: StepTime | None
    expected: StepTime | None

    @property
    def by_name(self) -> dict[str, StepTime]:
        """Those that are known, by the name of their field."""
        both = {"at_best": self.at_best, "expected": self.expected}
        return {name: step_time for name, step_time in both.items() if step_time is not None}


@dataclass(frozen=True)
class Prediction:
    """Decoding of one model at one point.

    Attributes:
        at_best_s: Least time of a step, which is that of a token of each sequence; None where it is not known.
        expected_s: Time of a step with the cost of its operators; None where that is not known.
        tokens_per_s: Tokens per second of all sequences, in the expected time, or at best where that is not known.
        moved_bytes: Least number of bytes that a step moves.
        weight_bytes: All parameters, embedding table and head apart from each other.
        state_bytes: Retention state, or key-value cache of the context and the token that follows.
        workspace_bytes: Temporaries of a step.
        largest_batch: Number of sequences that fit in memory with the weights; None where the memory is not known.
    """

    model: str
    batch_size: int
    context_len: int
    at_best_s: float | None
    expected_s: float | None
    tokens_per_s: float
    moved_bytes: int
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
    times: StepTimes,
    memory_bytes: int | None,
) -> list[Prediction]:
    """Predict every model at every (batch size, context length), models outermost."""
    found = []
    for name, model in models.items():
        for batch_size, context_len in points:
            seconds = {
                name: step_time(model, batch_size, context_len) for name, step_time in times.by_name.items()
            }
            prediction = Prediction(
                model=name,
                batch_size=batch_size,
                context_len=context_len,
                at_best_s=seconds.get("at_best"),
                expected_s=seconds.get("expected"),
                tokens_per_s=tokens_per_second(batch_size, [*seconds.values()][-1]),
                moved_bytes=costs.decode_bytes(model, dtype, batch_size, context_len),
                weight_bytes=costs.weight_bytes(model, dtype),
                state_bytes=costs.state_bytes(model, dtype, batch_size, context_len + 1),
                workspace_bytes=costs.decode_workspace_bytes(model, dtype, batch_size),
                largest_batch=memory_bytes and costs.largest_batch(model, dtype, memory_bytes, context_len),
            )
            found.append(prediction)
    return found


@dataclass(frozen=True)
class PredictedCrossover:
    """Context length from which on the first of two models has the shorter step.

    Attributes:
        batch_size: Batch size of both.
        context_len: Tokens; None where the first is not ahead at the last length that was compared.
        looked_from: Shortest context length that was compared.
        looked_to: Longest context length that was compared.
        ahead_to: Context length up to which the first has the shorter step, where its step grows by more; else None.
    """

    batch_size: int
    context_len: int | None
    looked_from: int = 1
    looked_to: int = LONGEST_CONTEXT
    ahead_to: int | None = None


def predict_crossover(
    first: ModelConfig, second: ModelConfig, batch_size: int, step_time: StepTime
) -> PredictedCrossover:
    """Find by bisection where the first model becomes the faster one, or ceases to be where its step grows by more."""

    def is_ahead(context_len: int) -> bool:
        return step_time(first, batch_size, context_len) < step_time(second, batch_size, context_len)

    if not is_ahead(LONGEST_CONTEXT):
        last = bisect_left(range(1, LONGEST_CONTEXT), True, key=lambda length: not is_ahead(length))
        return PredictedCrossover(batch_size, None, ahead_to=last or None)
    return PredictedCrossover(batch_size, 1 + bisect_left(range(1, LONGEST_CONTEXT), True, key=is_ahead))
