"""Attention from one position by products: of its queries with the keys, and of their weights with the values."""

import torch
from torch import Tensor

from retbench.ops.precision import cast, in_float32, matmul, wide_dtype, widens
from retbench.ops.registration import operator, realise, shapes_of


def compiled_products_are_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether compiled code attends from one query faster by products, with any number of keys.

    On two cores of an AMD EPYC (AVX2) compiled steps at 25M took as long as with torch's kernel or torch's products at
    64 keys, 0.97 of that at 1,024, and 0.88 from 4,096 to 16,384; where four queries share keys 0.93, 0.83 and 0.83.
    With values that lie by value, of which each query has its own, they took 0.84 to 0.95 of that on one with AVX-512.
    """
    return device.type == "cpu" and dtype.itemsize >= torch.float32.itemsize


def join_groups(q: Tensor, k: Tensor) -> Tensor:
    """Return queries of one position, (B, H, 1, K), with those that share keys in a row: (B, Hkv, H / Hkv, K).

    All of them attend to all keys. A kernel that is given them so reads shared keys once; given one query per head,
    torch's kernel on a CPU reads them once for each head.
    """
    return q.view(q.shape[0], k.shape[1], q.shape[1] // k.shape[1], q.shape[3])


def multiply_cache(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from one query: the keys times the queries that share them as columns, and their weights times the values.

    The columns keep the strides of rows, which is what MKL multiplies fast; see `linear.multiply_in_batches`.
    """
    queries = join_groups(q, k).flatten(0, 1)  # (B Hkv, H / Hkv, K)
    scores = score_keys(queries, k.flatten(0, 1))  # (B Hkv, H / Hkv, S)
    scores = cast(scores, wide_dtype(q.dtype)) * k.shape[3] ** -0.5
    out = average(scores, v.flatten(0, 1))  # (B Hkv, H / Hkv, K)
    return out.view(*q.shape[:3], v.shape[3])


def multiply_compiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from one query in compiled code, where loops over keys beat a product."""
    queries = realise(join_groups(q, k).flatten(0, 1) * k.shape[3] ** -0.5)  # (B Hkv, H / Hkv, K)
    out = average(_score_by_loops(queries, k.flatten(0, 1)), v.flatten(0, 1))
    return out.view(*q.shape[:3], v.shape[3])


def average(scores: Tensor, values: Tensor) -> Tensor:
    """Average the values of many keys, (N, S, V), by the softmax of few rows of scores, (N, G, S); (N, G, V).

    Compiled code on a CPU does it by loops for one row over values that lie by value, and over values that are widened
    as they are read. Over others loops would read a few of each key at a time, and of several rows each for itself, so
    that there a product is faster.
    """
    if values.device.type != "cpu" or not torch.compiler.is_compiling() or torch.is_grad_enabled():
        return _average(scores, values)
    if widens(values) or (scores.shape[1] == 1 and values.stride(1) == 1):
        return _average_by_loops(scores, values)
    # As one operator: the sum of its softmax is else other code for more than 4,096 keys. It took four to ten times as
    # long over columns as over rows.
    out: Tensor = average_values(scores.contiguous(), values)
    return out


def _average_by_loops(scores: Tensor, values: Tensor) -> Tensor:
    length = _any_length(values.shape[1])
    scores, values = realise(scores[..., :length]), values[:, :length]
    weights = realise((scores - scores.amax(dim=-1, keepdim=True)).exp())
    rows = weights.unsqueeze(-1).unbind(1)  # (N, S, 1) each
    sums = torch.stack([(row * values).sum(1) for row in rows], dim=1)  # (N, G, V)
    return cast(sums / weights.sum(-1, keepdim=True), values.dtype)


def _any_length(length: int) -> int:
    """Return a length of which compiled code knows no more than that it is none beyond this one.

    Else its sums of more than 4,096 values are other code than those of fewer, and slower: at 16,384 keys a step took
    1.20 times as long with them as with a product, and 0.94 times with sums like those of fewer.
    """
    found = int(torch.scalar_tensor(length, dtype=torch.int64, device="cpu").item())
    torch._check(found >= 1)
    torch._check(found <= length)
    return found


def _average(scores: Tensor, values: Tensor) -> Tensor:
    return sum_values(cast(scores.softmax(dim=-1, dtype=wide_dtype(values.dtype)), values.dtype), values)


@operator()
def average_values(scores: Tensor, values: Tensor) -> Tensor:
    """Average values as one operator; see `average`."""
    return _average(scores, values)


@shapes_of("average_values")
def _(scores: Tensor, values: Tensor) -> Tensor:
    return values.new_empty(*scores.shape[:2], values.shape[2])


def score_keys(queries: Tensor, keys: Tensor) -> Tensor:
    """Multiply few queries (N, G, K) by many keys (N, S, K); returns (N, G, S).

    Compiled code widens keys as it reads them; see `precision`. Else a cache would be written once more, twice as wide.
    On an AMD EPYC without AVX-512, attention to eight caches of 8,192 tokens in bfloat16 took 11 ms by loops and 31 ms
    by widened caches.
    """
    if not torch.compiler.is_compiling() or torch.is_grad_enabled() or not widens(queries):
        return matmul(keys, queries.mT).mT
    return _score_by_loops(realise(queries.float()), keys)


def _score_by_loops(queries: Tensor, keys: Tensor) -> Tensor:
    """Multiply few queries (N, G, K) by many keys (N, S, K) in compiled code, which reads the keys once."""
    return torch.stack([(row.unsqueeze(1) * keys).sum(-1) for row in queries.unbind(1)], dim=1)


_SLICE_KEYS = 512
"""Keys of a slice of `sum_values`. In a trial slices of 256 to 4,096 keys took the same time, and two of 512 keys 0.8
of that of 1,024 keys at once."""


def sum_values(weights: Tensor, values: Tensor) -> Tensor:
    """Sum the values of many keys, (N, S, V), by few rows of weights, (N, G, S); returns (N, G, V).

    A step on a CPU sums slices of the keys if N = 1, since torch divides one such product badly among threads: the sum
    of 32,768 keys, 288 wide, took 2.3 ms in slices and 4.1 ms whole on two cores of an AMD EPYC.
    """
    if values.device.type != "cpu" or torch.is_grad_enabled():
        return matmul(weights, values)
    if widens(values):
        return in_float32(sum_values, weights, values)
    num_slices = values.shape[1] // _SLICE_KEYS
    if num_slices < 2 or values.shape[0] > 1:
        return torch.bmm(weights, values)
    split = num_slices * _SLICE_KEYS
    rows = weights[0, :, :split].unflatten(1, (num_slices, -1)).transpose(0, 1)  # (slices, G, keys)
    slices = values[0, :split].unflatten(0, (num_slices, -1))  # (slices, keys, V)
    sums = torch.bmm(rows, slices).sum(dim=0, keepdim=True)
    if split == values.shape[1]:
        return sums
    return torch.baddbmm(sums, weights[..., split:], values[:, split:])
