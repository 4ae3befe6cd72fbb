"""Measured rates of the operators that decode steps consist of: the facts behind a predicted time."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from retbench.errors import UnsupportedError
from retbench.measure.ceilings import footprints_of, measure_matmul_rate
from retbench.measure.clock import check_device, in_turn, time_call
from retbench.measure.compiled import compile_step
from retbench.measure.products import row_products, storing_by_output_is_faster
from retbench.mixers.mixer import StateTensor
from retbench.mixers.state import allocate_state
from retbench.ops import fused, fused_linear
from retbench.ops.layers import RMSNorm, SwigluFeedForward
from retbench.ops.linear import Linear, loop
from retbench.ops.linear_operator import linear_decayed_step_
from retbench.ops.precision import wide_dtype
from retbench.planning.attention_rates import attention_rates, compiled_attention_seconds, shared_key_rates
from retbench.planning.operator_counts import count_call
from retbench.planning.prediction import Curve, OperatorCount, StepRates
from retbench.planning.rate_curves import (
    Call,
    Operator,
    median_of,
    median_seconds,
    positive,
    rate_curve,
)

_ATTEMPTS = 3
"""Most measurements of a call and of whole products, as long as the call comes out longer."""
_WIDTH = 1024
"""Inputs and outputs of the products."""
_STATE_SHAPE = (4, 128, 256)
"""Heads, key and value width of the states: RetNet's at a width of 512."""
_NARROW_WIDTH, _NARROW_BLOCKS, _PRODUCTS_PER_BLOCK = 16, 8, 2
"""Sizes of a stack of feed-forwards so small that only the calls of its operators take time, and the products
between two of them: an eager step of the models at hand has three to four operators per product."""
_NUM_VIEWS = 1000
"""Views that are timed together."""
_COMPILED_WIDTH = 128
"""Width of such feed-forwards in compiled code, which has no parallel loops for smaller ones and so waits for none."""


@torch.inference_mode()
def measure_step_rates(device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> StepRates:
    """Measure the rates of products with one row, of attention to a cache and of updates of a state, by footprint.

    Includes: reading of weights, keys and values, and reading and writing of states, one after another until all of a
    footprint was read; from 4 MiB in steps of two to a footprint far beyond the caches. The time per operator includes
    the call from Python; on CUDA, where a graph replays the operators, it is what the device needs.

    Args:
        device: `cpu` or `cuda:N`; nothing else may run on it.
        dtype: Floating-point type of the weights and caches.
        compiled: Measure what an operator costs in a compiled step instead of an eager one.

    Raises:
        UnsupportedError: the device is neither a CPU nor CUDA, torch cannot compile here, or other processes disturb
            the measurement too much.
    """
    check_device(device, "rates can be measured")
    footprints = footprints_of(device)
    products, call_s = _product_rates(device, dtype, footprints, compiled=compiled)
    attention = attention_rates(device, dtype, footprints, compiled=compiled)
    view_s = 0.0 if compiled else _view_seconds(device)
    attention_s: tuple[Curve, Curve]  # where each query has its own keys, and where several share them
    if compiled:
        operator_s = _compiled_operator_seconds(device, dtype, products[0][1])
        product_s: Curve = ((1, 0.0),)
        alone_s, shared_s = (
            compiled_attention_seconds(device, dtype, share_keys=shared) for shared in (False, True)
        )
        attention_s = ((1, alone_s),), ((1, shared_s),)
    else:
        narrow_s, count = _narrow_seconds(device, dtype), _count_narrow(dtype)
        operator_s = positive(narrow_s - count.views * view_s) / count.total
        longer_s = max(0.0, call_s - operator_s)
        product_s = _product_seconds(device, dtype, footprints, longer_s, narrow_s)
        attention_s = product_s, product_s
    return StepRates(
        products=products,
        attention=attention,
        recurrence=rate_curve(_recurrence(device, dtype, compiled=compiled), footprints, device),
        matmul_flops_per_s=measure_matmul_rate(device, dtype),
        shared_key_flops_per_s=shared_key_rates(device, dtype, footprints[-1]),
        operator_s=operator_s,
        product_s=product_s,
        attention_s=attention_s[0],
        shared_attention_s=attention_s[1],
        view_s=view_s,
    )


def _product_rates(
    device: torch.device, dtype: torch.dtype, footprints: Sequence[int], *, compiled: bool
) -> tuple[Curve, float]:
    """Return the rate of products with one row by footprint, and on a CPU the seconds of a call, which are left out."""
    by_output = storing_by_output_is_faster(device, dtype, compiled=compiled)
    if device.type == "cuda":
        return rate_curve(_products(device, dtype, _WIDTH, by_output=by_output), footprints, device), 0.0
    looped = compiled and by_output
    small, large = (
        _loops(dtype, width) if looped else _products(device, dtype, width, by_output=by_output)
        for width in (_WIDTH // 2, _WIDTH)
    )

    def measure() -> tuple[Curve, float]:
        call_s = _call_seconds(small, large, footprints[-1])
        return rate_curve(large, footprints, device, call_s=call_s), call_s

    for _ in range(_ATTEMPTS - 1):
        with suppress(UnsupportedError):  # what disturbed one of the times is often gone for the next
            return measure()
    return measure()


def _call_seconds(small: Operator, large: Operator, footprint: int) -> float:
    """Return the seconds of a product without those of its bytes, from products with weights of two sizes.

    No cache holds the weights. On two cores of an AMD EPYC it was 14 us, and a product of hardly any width, which
    starts no threads and waits for no memory, took 8.
    """
    series = [[make() for _ in range(max(1, footprint // (2 * size)))] for size, make in (small, large)]

    def measure() -> float:  # both in turn: a shared memory changes within seconds
        smaller_s, larger_s = (time_call(in_turn(calls)) / len(calls) for calls in series)
        return (large[0] * smaller_s - small[0] * larger_s) / (large[0] - small[0])

    return max(0.0, median_of(measure))


def _products(device: torch.device, dtype: torch.dtype, width: int, *, by_output: bool) -> Operator:
    """Return the bytes of a square weight, and a function that makes a product of one row with a new one."""
    row = torch.randn(1, 1, width, device=device, dtype=dtype)
    found = row_products(device, dtype)

    def make() -> Call:
        layer = Linear(width, width).to(device=device, dtype=dtype).requires_grad_(False)
        layer.store(by_output=by_output)
        layer.weight.fill_(1.0)
        layer.row_products = found
        return lambda: layer(row)

    return width * width * dtype.itemsize, make


def _loops(dtype: torch.dtype, width: int) -> Operator:
    """Return the bytes of a square weight, and a function that makes a compiled product of one row with a new one."""
    row, first = torch.randn(1, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    multiply = compile_step(loop, row, first).run
    return first.numel() * dtype.itemsize, lambda: partial(multiply, row, torch.ones_like(first))


def _recurrence(device: torch.device, dtype: torch.dtype, *, compiled: bool) -> Operator:
    """Return twice the bytes of a state, and a function that makes the update of a new one by one token.

    The update is fused if decode steps are, and else compiled if they are.
    """
    heads, key_dim, value_dim = _STATE_SHAPE
    wide = wide_dtype(dtype)
    q, k = torch.randn(2, 1, 1, heads, key_dim, device=device, dtype=dtype)
    v = torch.randn(1, 1, heads, value_dim, device=device, dtype=dtype)
    decay = torch.full((heads,), 0.9, device=device, dtype=wide)
    is_fused = fused.default_operators(device, dtype) == "fused"
    layout = [StateTensor("state", _STATE_SHAPE, wide=True, by_value=not is_fused)]
    update = linear_decayed_step_
    if compiled and not is_fused:
        update = compile_step(update, q, k, v, decay, allocate_state(layout, 1, 0, q, wide)["state"]).run

    def make() -> Call:
        state = allocate_state(layout, 1, 0, q, wide)["state"]
        if is_fused:
            tokens = (x.squeeze(1) for x in (q, k, v))
            return partial(fused_linear.linear_step, *tokens, decay, state)
        return lambda: update(q, k, v, decay, state)

    return 2 * torch.Size(_STATE_SHAPE).numel() * wide.itemsize, make


class _NarrowBlock(nn.Module):
    """A feed-forward of hardly any width with its norm and residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=1e-6)
        self.ffn = SwigluFeedForward(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 1, D) to (1, 1, D)."""
        out: Tensor = x + self.ffn(self.norm(x))
        return out


def _view_seconds(device: torch.device) -> float:
    """Return the seconds of a view. A replayed CUDA graph has none."""
    if device.type == "cuda":
        return 0.0
    x = torch.zeros(1, 2, 2)
    return median_seconds([lambda: x.transpose(1, 2)], device, repeats=_NUM_VIEWS)


def _narrow_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds of narrow feed-forwards."""
    stack, token = _narrow_stack(device, dtype)
    return median_seconds([lambda: stack(token)], device)


def _product_seconds(
    device: torch.device, dtype: torch.dtype, footprints: Sequence[int], longer_s: float, narrow_s: float
) -> Curve:
    """Return by footprint the seconds by which an eager product exceeds another operator, without its bytes.

    They are those of its call, and of what is cold after it. A replayed CUDA graph has neither.
    """
    if device.type == "cuda":
        return ((1, 0.0),)
    cold_s = [max(0.0, _cold_seconds(device, dtype, size, narrow_s)) for size in footprints]
    return tuple((size, longer_s + cold) for size, cold in zip(footprints, cold_s, strict=True))


def _cold_seconds(device: torch.device, dtype: torch.dtype, footprint: int, narrow_s: float) -> float:
    """Return the seconds that a product on a CPU adds to the operators after it.

    The weights that it streams through the caches drive out what the processor needs for the next calls: on an Intel
    Xeon the operators of narrow feed-forwards took 2.4 times as long after two products each.
    """
    stack, token = _narrow_stack(device, dtype)
    num_products = _NARROW_BLOCKS * _PRODUCTS_PER_BLOCK
    width = round((footprint / dtype.itemsize / num_products) ** 0.5)
    by_output = storing_by_output_is_faster(device, dtype, compiled=False)
    _, make = _products(device, dtype, width, by_output=by_output)
    products = [[make() for _ in range(_PRODUCTS_PER_BLOCK)] for _ in range(_NARROW_BLOCKS)]

    def run_all() -> float:
        """Return the seconds of the feed-forwards."""
        spent_s = 0.0
        for block, calls in zip(stack, products, strict=True):
            spent_s += time_call(partial(block, token))
            for call in calls:
                call()
        return spent_s

    return (median_of(run_all) - narrow_s) / num_products


def _compiled_operator_seconds(device: torch.device, dtype: torch.dtype, bytes_per_s: float) -> float:
    """Return the seconds per operator of compiled narrow feed-forwards, without those of the bytes of their weights."""
    stack, token = _narrow_stack(device, dtype, _COMPILED_WIDTH)
    for layer in stack.modules():
        if isinstance(layer, Linear):
            layer.store(by_output=storing_by_output_is_faster(device, dtype, compiled=True))
    run = compile_step(stack.__call__, token).run
    bytes_s = sum(weight.nbytes for weight in stack.parameters()) / bytes_per_s
    return max(0.0, median_seconds([lambda: run(token)], device) - bytes_s) / _count_narrow(dtype).total


def _narrow_stack(
    device: torch.device, dtype: torch.dtype, width: int = _NARROW_WIDTH
) -> tuple[nn.Sequential, Tensor]:
    """Return feed-forwards of hardly any width, and a token for them."""
    stack = nn.Sequential(*(_NarrowBlock(width) for _ in range(_NARROW_BLOCKS)))
    token = torch.randn(1, 1, width, device=device, dtype=dtype)
    return stack.to(device=device, dtype=dtype).requires_grad_(False), token


def _count_narrow(dtype: torch.dtype) -> OperatorCount:
    """Count the operators of such feed-forwards as those of a model are counted."""
    stack, token = _narrow_stack(torch.device("meta"), dtype)
    return count_call(lambda: stack(token))
