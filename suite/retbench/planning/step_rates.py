"""Measured rates of the operators that decode steps consist of: the facts behind a predicted time."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from retbench.errors import UnsupportedError
from retbench.measure.ceilings import largest_footprint, measure_matmul_rate
from retbench.measure.clock import capture_graph, check_device, time_call, time_steps
from retbench.measure.compiled import compile_step
from retbench.measure.products import row_products, storing_by_output_is_faster
from retbench.mixers.mixer import StateTensor
from retbench.mixers.state import allocate_state
from retbench.ops import fused
from retbench.ops.attention import AttentionBackend, attend, attend_products
from retbench.ops.attention_products import compiled_products_are_faster
from retbench.ops.layers import RMSNorm, SwigluFeedForward
from retbench.ops.linear import Linear, loop
from retbench.ops.linear_operator import linear_decayed_step_
from retbench.ops.precision import wide_dtype
from retbench.planning.operator_counts import count_call
from retbench.planning.prediction import Curve, OperatorCount, StepRates
from retbench.units import MIB

_WARMUP_S = 0.1
_NUM_WARMUPS, _NUM_SAMPLES = 3, 9
_ATTEMPTS = 3
"""Most measurements of a call and of whole products, as long as the call comes out longer."""
_SMALLEST_FOOTPRINT = 4 * MIB
_FOOTPRINT_FACTOR = 2
_SAMPLE_BYTES = {"cpu": 32 * MIB, "cuda": 256 * MIB}
"""Bytes that a timed sample reads at least."""
_SMALLEST_SHARE = 0.01
"""Share of their time that queries but the first of each key take at least: a GPU may hide them all."""
_WIDTH = 1024
"""Inputs and outputs of the products."""
_ATTENTION_HEADS, _ATTENTION_HEAD_DIM, _CACHE_TOKENS, _NUM_CACHES = 8, 64, 1024, 4
"""Sizes of the caches, the fewest tokens of each, and how many of them a footprint consists of."""
_SHARED_QUERIES, _SHARED_HEAD_DIM, _SHARED_TOKENS = 8, 256, 8192
"""Queries that share keys, and keys that are values too, as in absorbed latent attention."""
_STATE_SHAPE = (4, 128, 256)
"""Heads, key and value width of the states: RetNet's at a width of 512."""
_NARROW_WIDTH, _NARROW_BLOCKS, _PRODUCTS_PER_BLOCK = 16, 8, 2
"""Sizes of a stack of feed-forwards so small that only the calls of its operators take time, and the products
between two of them: an eager step of the models at hand has three to four operators per product."""
_NUM_VIEWS = 1000
"""Views that are timed together."""
_COMPILED_WIDTH = 128
"""Width of such feed-forwards in compiled code, which has no parallel loops for smaller ones and so waits for none."""
_FEW_TOKENS = 16
"""Tokens of a cache so small that only the call of its attention takes time."""

Call = Callable[[], object]


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
    footprints = _footprints(device)
    products, call_s = _product_rates(device, dtype, footprints, compiled=compiled)
    attend_once = _single_attention(device, dtype, compiled=compiled)
    make_attention = partial(_attention, device, dtype, attend_once, compiled=compiled)
    attention = tuple(_curve(make_attention(size), [size], device)[0] for size in footprints)
    product_s: Curve = ((1, 0.0),)
    view_s = 0.0 if compiled else _view_seconds(device)
    if compiled:
        operator_s = _compiled_operator_seconds(device, dtype, products[0][1])
        attention_s: Curve = ((1, _compiled_attention_seconds(device, dtype)),)
    else:
        narrow_s, count = _narrow_seconds(device, dtype), _count_narrow(dtype)
        operator_s = _positive(narrow_s - count.views * view_s) / count.total
        longer_s = max(0.0, call_s - operator_s)
        attention_s = product_s = _product_seconds(device, dtype, footprints, longer_s, narrow_s)
    return StepRates(
        products=products,
        attention=attention,
        recurrence=_curve(_recurrence(device, dtype, compiled=compiled), footprints, device),
        matmul_flops_per_s=measure_matmul_rate(device, dtype),
        shared_key_flops_per_s=_shared_key_rate(device, dtype, attention),
        operator_s=operator_s,
        product_s=product_s,
        attention_s=attention_s,
        view_s=view_s,
    )


def _footprints(device: torch.device) -> list[int]:
    largest, found = largest_footprint(device), [_SMALLEST_FOOTPRINT]
    while found[-1] * _FOOTPRINT_FACTOR < largest:
        found.append(found[-1] * _FOOTPRINT_FACTOR)
    return [*found, largest]


def _product_rates(
    device: torch.device, dtype: torch.dtype, footprints: Sequence[int], *, compiled: bool
) -> tuple[Curve, float]:
    """Return the rate of products with one row by footprint, and on a CPU the seconds of a call, which are left out."""
    by_output = storing_by_output_is_faster(device, dtype, compiled=compiled)
    if device.type == "cuda":
        return _curve(_products(device, dtype, _WIDTH, by_output=by_output), footprints, device), 0.0
    looped = compiled and by_output
    small, large = (
        _loops(dtype, width) if looped else _products(device, dtype, width, by_output=by_output)
        for width in (_WIDTH // 2, _WIDTH)
    )

    def measure() -> tuple[Curve, float]:
        call_s = _call_seconds(small, large, footprints[-1])
        return _curve(large, footprints, device, call_s=call_s), call_s

    for _ in range(_ATTEMPTS - 1):
        with suppress(UnsupportedError):  # what disturbed one of the times is often gone for the next
            return measure()
    return measure()


def _call_seconds(
    small: tuple[int, Callable[[], Call]], large: tuple[int, Callable[[], Call]], footprint: int
) -> float:
    """Return the seconds that a product takes beside those of its bytes, from products with weights of two sizes.

    No cache holds the weights. On two cores of an AMD EPYC it was 14 us, and a product of hardly any width, which
    starts no threads and waits for no memory, took 8.
    """
    series = [[make() for _ in range(max(1, footprint // (2 * size)))] for size, make in (small, large)]
    found = []
    for _ in range(_NUM_WARMUPS + _NUM_SAMPLES):  # in turn: a shared memory changes within seconds
        smaller_s, larger_s = (time_call(_repeated(calls, 1)) / len(calls) for calls in series)
        found.append((large[0] * smaller_s - small[0] * larger_s) / (large[0] - small[0]))
    return max(0.0, median(found[_NUM_WARMUPS:]))


def _curve(
    part: tuple[int, Callable[[], Call]],
    footprints: Sequence[int],
    device: torch.device,
    *,
    call_s: float = 0.0,
) -> Curve:
    """Return the rate of an operator by footprint.

    Args:
        part: Bytes that a call moves, and a function that allocates them and returns the call.
        footprints: Bytes, the smallest first.
        device: Where the calls run.
        call_s: Seconds of a call beside those of its bytes, which do not count.
    """
    num_bytes, make = part
    calls: list[Call] = []
    rates = []
    for footprint in footprints:
        calls += [make() for _ in range(max(1, footprint // num_bytes) - len(calls))]
        repeats = max(1, _SAMPLE_BYTES[device.type] // (num_bytes * len(calls)))
        seconds = _median_seconds(_repeated(calls, repeats), device)
        rates.append((footprint, num_bytes / _positive(seconds / (repeats * len(calls)) - call_s)))
    return tuple(rates)


def _positive(seconds: float) -> float:
    """Return the difference of two measured times; UnsupportedError where the part took longer than the whole."""
    if seconds <= 0:
        raise UnsupportedError(
            "rates of operators cannot be measured: other processes disturb them so much that a part took longer than "
            "the whole. Try again while nothing else runs."
        )
    return seconds


def _products(
    device: torch.device, dtype: torch.dtype, width: int, *, by_output: bool
) -> tuple[int, Callable[[], Call]]:
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


def _loops(dtype: torch.dtype, width: int) -> tuple[int, Callable[[], Call]]:
    """Return the bytes of a square weight, and a function that makes a compiled product of one row with a new one."""
    row, first = torch.randn(1, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    multiply = compile_step(loop, row, first).run
    return first.numel() * dtype.itemsize, lambda: partial(multiply, row, torch.ones_like(first))


def _single_attention(device: torch.device, dtype: torch.dtype, *, compiled: bool) -> AttentionBackend:
    """Return the attention of one token that a step executes, compiled where that is other code."""
    products_from = row_products(device, dtype, compiled=compiled).attention_from
    attend_once = partial(attend, "auto", products_from=products_from)
    if not compiled or not compiled_products_are_faster(device, dtype):
        return attend_once
    query, cache = _query(device, dtype), _cache(device, dtype, _FEW_TOKENS, compiled=compiled)
    for tensor in (query, *cache):
        torch._dynamo.mark_static(tensor, [0, 1, 3])
    return compile_step(attend_once, query, *cache).run


def _query(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(1, _ATTENTION_HEADS, 1, _ATTENTION_HEAD_DIM, device=device, dtype=dtype)


def _cache(device: torch.device, dtype: torch.dtype, tokens: int, *, compiled: bool) -> tuple[Tensor, Tensor]:
    """Return keys and values, (1, H, S, K), that lie as those of a step's cache do."""
    keys = StateTensor("keys", (_ATTENTION_HEADS, _ATTENTION_HEAD_DIM), "per_token")
    by_value = compiled and compiled_products_are_faster(device, dtype)
    layout = [keys, replace(keys, name="values", by_value=by_value)]
    state = allocate_state(layout, 1, tokens, torch.empty((), device=device, dtype=dtype), wide_dtype(dtype))
    # Written, for a system may give memory of zeros only once it is.
    return state["keys"].fill_(1.0), state["values"].fill_(1.0)


def _attention(
    device: torch.device, dtype: torch.dtype, attend_once: AttentionBackend, footprint: int, *, compiled: bool
) -> tuple[int, Callable[[], Call]]:
    """Return the bytes of a cache, and a function that makes the attention of one token to a new one.

    A large footprint is that of a few deep caches, which a step may read by another method and faster than short ones.
    """
    token_bytes = 2 * _ATTENTION_HEADS * _ATTENTION_HEAD_DIM * dtype.itemsize
    tokens = max(_CACHE_TOKENS, footprint // (_NUM_CACHES * token_bytes))
    query = _query(device, dtype)

    def make() -> Call:
        return partial(attend_once, query, *_cache(device, dtype, tokens, compiled=compiled))

    return tokens * token_bytes, make


def _shared_key_rate(device: torch.device, dtype: torch.dtype, attention: Curve) -> float:
    """Return the FLOP/s of attention by queries that share keys, beside the time that the rate of single ones gives."""
    footprint, single = attention[-1]
    shape = (1, 1, _SHARED_TOKENS, _SHARED_HEAD_DIM)
    queries = torch.randn(1, _SHARED_QUERIES, 1, _SHARED_HEAD_DIM, device=device, dtype=dtype)
    num_values = torch.Size(shape).numel()

    def make() -> Call:
        return partial(attend_products, queries, *[torch.ones(shape, device=device, dtype=dtype)] * 2)

    num_bytes = num_values * dtype.itemsize
    ((_, shared),) = _curve((num_bytes, make), [footprint], device)
    more_s = max(num_bytes / shared - num_bytes / single, _SMALLEST_SHARE * num_bytes / shared)
    return 4 * (_SHARED_QUERIES - 1) * num_values / more_s  # the scores, and the sums of values


def _recurrence(
    device: torch.device, dtype: torch.dtype, *, compiled: bool
) -> tuple[int, Callable[[], Call]]:
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
            return partial(fused.retention_step, *tokens, decay, state, None, None, None, "half", 1.0)
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
    return _median_seconds(_repeated([lambda: x.transpose(1, 2)], _NUM_VIEWS), device) / _NUM_VIEWS


def _narrow_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds of narrow feed-forwards."""
    stack, token = _narrow_stack(device, dtype)
    return _median_seconds(lambda: stack(token), device)


def _product_seconds(
    device: torch.device, dtype: torch.dtype, footprints: Sequence[int], longer_s: float, narrow_s: float
) -> Curve:
    """Return the seconds that an eager product takes more than another operator, beside its bytes, by footprint.

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

    spent_s = median([run_all() for _ in range(_NUM_WARMUPS + _NUM_SAMPLES)][_NUM_WARMUPS:])
    return (spent_s - narrow_s) / num_products


def _compiled_operator_seconds(device: torch.device, dtype: torch.dtype, bytes_per_s: float) -> float:
    """Return the seconds per operator of compiled narrow feed-forwards, beside those of the bytes of their weights."""
    stack, token = _narrow_stack(device, dtype, _COMPILED_WIDTH)
    for layer in stack.modules():
        if isinstance(layer, Linear):
            layer.store(by_output=storing_by_output_is_faster(device, dtype, compiled=True))
    run = compile_step(stack.__call__, token).run
    bytes_s = sum(weight.nbytes for weight in stack.parameters()) / bytes_per_s
    return max(0.0, _median_seconds(lambda: run(token), device) - bytes_s) / _count_narrow(dtype).total


def _compiled_attention_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds of an attention to a cache of hardly any tokens, in code that is compiled."""
    products_from = row_products(device, dtype, compiled=True).attention_from
    caches = [_cache(device, dtype, _FEW_TOKENS, compiled=True) for _ in range(_NARROW_BLOCKS)]

    def step(query: Tensor, caches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        for keys, values in caches:
            query = attend("auto", query, keys, values, products_from)
        return query

    query = _query(device, dtype)
    run = compile_step(step, query, caches).run
    return _median_seconds(lambda: run(query, caches), device) / _NARROW_BLOCKS


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


def _repeated(calls: Sequence[Call], repeats: int) -> Call:
    def run() -> None:
        for _ in range(repeats):
            for call in calls:
                call()

    return run


def _median_seconds(call: Call, device: torch.device) -> float:
    """Return the median seconds of a call; on CUDA of its graph, which the host does not delay."""
    run = capture_graph(call, device=device) if device.type == "cuda" else call
    return median(time_steps(run, lambda: None, device=device, warmup_s=_WARMUP_S, min_steps=_NUM_SAMPLES))
