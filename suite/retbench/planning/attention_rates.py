"""Measured rates of the attention of a decode step: of reading a cache, of keys that are shared, and of a call."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from retbench.measure.compiled import compile_step
from retbench.measure.products import row_products
from retbench.mixers.mixer import StateTensor
from retbench.mixers.state import allocate_state
from retbench.ops.attention import AttentionBackend, attend, attend_products
from retbench.ops.attention_products import compiled_products_are_faster
from retbench.ops.precision import wide_dtype
from retbench.planning.prediction import Curve
from retbench.planning.rate_curves import Call, Operator, median_seconds, rate_curve

_NUM_HEADS, _HEAD_DIM, _CACHE_TOKENS, _NUM_CACHES = 8, 64, 1024, 4
"""Sizes of the caches, the fewest tokens of each, and how many of them a footprint consists of."""
_SHARED_QUERIES = (2, 4, 8, 12, 16, 32)
"""Numbers of queries that share keys."""
_SHARED_HEAD_DIM, _SHARED_TOKENS = 256, 8192
"""Sizes of keys that are values too, as in absorbed latent attention."""
_FEW_TOKENS, _NUM_CALLS = 16, 8
"""Tokens of a cache so small that only the call of its attention takes time, and calls that are timed together."""


def attention_rates(
    device: torch.device, dtype: torch.dtype, footprints: Sequence[int], *, compiled: bool
) -> Curve:
    """Return the rate of the attention of one token to its cache by footprint."""
    attend_once = _single_attention(device, dtype, compiled=compiled)
    operators = (_attention(device, dtype, attend_once, size, compiled=compiled) for size in footprints)
    return tuple(
        rate_curve(operator, [size], device)[0] for size, operator in zip(footprints, operators, strict=True)
    )


def shared_key_rates(device: torch.device, dtype: torch.dtype, footprint: int) -> Curve:
    """Return the FLOP/s of attention where queries share keys, by the number of queries of each key.

    Products of few rows are slow on a CPU: an AMD EPYC took 0.5 to 0.6 of the time of eight queries for two, and as
    long for twelve as for sixteen.
    """
    shape = (1, 1, _SHARED_TOKENS, _SHARED_HEAD_DIM)
    num_values = torch.Size(shape).numel()
    num_bytes = num_values * dtype.itemsize
    caches = [torch.ones(shape, device=device, dtype=dtype) for _ in range(max(1, footprint // num_bytes))]

    def flops_per_s(num_queries: int) -> float:
        queries = torch.randn(1, num_queries, 1, _SHARED_HEAD_DIM, device=device, dtype=dtype)
        calls = [partial(attend_products, queries, cache, cache) for cache in caches]
        flops = 4 * num_queries * num_values  # of the scores, and of the sums of values
        return flops / median_seconds(calls, device)

    return tuple((num_queries, flops_per_s(num_queries)) for num_queries in _SHARED_QUERIES)


def compiled_attention_seconds(device: torch.device, dtype: torch.dtype, *, share_keys: bool) -> float:
    """Return the seconds of an attention to a cache of hardly any tokens, in code that is compiled.

    With `share_keys` all queries attend to the same keys.
    """
    products_from = row_products(device, dtype, compiled=True).attention_from
    num_heads = 1 if share_keys else _NUM_HEADS
    caches = [_cache(device, dtype, _FEW_TOKENS, num_heads, compiled=True) for _ in range(_NUM_CALLS)]

    def step(query: Tensor, caches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        for keys, values in caches:
            query = attend("auto", query, keys, values, products_from)
        return query

    query = _query(device, dtype)
    run = compile_step(step, query, caches).run
    return median_seconds([lambda: run(query, caches)], device) / _NUM_CALLS


def _single_attention(device: torch.device, dtype: torch.dtype, *, compiled: bool) -> AttentionBackend:
    """Return the attention of one token that a step executes, compiled where that is other code."""
    products_from = row_products(device, dtype, compiled=compiled).attention_from
    attend_once = partial(attend, "auto", products_from=products_from)
    if not compiled or not compiled_products_are_faster(device, dtype):
        return attend_once
    query, cache = _query(device, dtype), _cache(device, dtype, _FEW_TOKENS, _NUM_HEADS, compiled=compiled)
    for tensor in (query, *cache):
        torch._dynamo.mark_static(tensor, [0, 1, 3])
    return compile_step(attend_once, query, *cache).run


def _query(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(1, _NUM_HEADS, 1, _HEAD_DIM, device=device, dtype=dtype)


def _cache(
    device: torch.device, dtype: torch.dtype, tokens: int, num_heads: int, *, compiled: bool
) -> tuple[Tensor, Tensor]:
    """Return keys and values, (1, H, S, K), that lie as those of a step's cache do."""
    keys = StateTensor("keys", (num_heads, _HEAD_DIM), "per_token")
    is_shared = num_heads < _NUM_HEADS
    by_value = compiled and not is_shared and compiled_products_are_faster(device, dtype)
    layout = [keys, replace(keys, name="values", by_value=by_value)]
    state = allocate_state(layout, 1, tokens, torch.empty((), device=device, dtype=dtype), wide_dtype(dtype))
    # Written, for a system may give memory of zeros only once it is.
    return state["keys"].fill_(1.0), state["values"].fill_(1.0)


def _attention(
    device: torch.device, dtype: torch.dtype, attend_once: AttentionBackend, footprint: int, *, compiled: bool
) -> Operator:
    """Return the bytes of a cache, and a function that makes the attention of one token to a new one.

    A large footprint is that of a few deep caches, which a step may read by another method and faster than short ones.
    """
    token_bytes = 2 * _NUM_HEADS * _HEAD_DIM * dtype.itemsize
    tokens = max(_CACHE_TOKENS, footprint // (_NUM_CACHES * token_bytes))
    query = _query(device, dtype)

    def make() -> Call:
        return partial(attend_once, query, *_cache(device, dtype, tokens, _NUM_HEADS, compiled=compiled))

    return tokens * token_bytes, make
