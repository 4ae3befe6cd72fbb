"""Trials of products with few rows or a prompt's, and of attention with single queries: which method is the fastest."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from retbench.errors import UnsupportedError
from retbench.measure import machine
from retbench.measure.clock import time_call, time_in_turn
from retbench.measure.compiled import compile_step
from retbench.measure.limits import free_memory
from retbench.ops import precision
from retbench.ops.attention import AttentionBackend, attend_products, attend_sdpa
from retbench.ops.linear import (
    FEW_ROWS,
    Linear,
    RowProducts,
    multiply_in_batches,
    multiply_onednn,
    stored_weight,
    stream,
)
from retbench.units import MIB

_NUM_SAMPLES = 5
_READ_BYTES = 48 * MIB
"""Bytes of the weights of each kind, which a step of a small model reads too."""
_SHAPES = ((1024, 1024), (512, 8192))
"""Inputs and outputs of a narrow and of a wide product."""
_SLICE_WIDTHS = (1, 4096)
"""Outputs from which `ops.linear.stream` slices, as they are tried: all products, or wide ones only."""
_ELEMENTS_PER_THREAD = 1 << 16
"""Elements of a tensor of which torch gives each thread a part."""
_LOOP_WIDTH = 1024
"""Inputs and outputs of the products by which loops of compiled code are compared."""
_CLEARLY = 0.9
"""Streaming, packing and loops are chosen if they take less than this share of the time: equals give the same
everywhere."""
_PACKED_ROWS = (1, 2, 4, 8)
"""Numbers of rows at which packed weights are tried."""
_ONEDNN_TRIALS = (((2, 4), 2), ((FEW_ROWS,), 12))
"""Rows that oneDNN's product is tried with, and of how many weights it multiplies one. Two rows alone would not do:
while others use the memory, any product of two rows takes as long as the reading of the weights."""
_PROMPT_ROWS, _PROMPT_WIDTH = (128, 512), 1024
"""Rows of prompts that oneDNN's product is tried with, and inputs and outputs of the weights."""

_HEADS, _HEAD_DIM = 8, 64
"""Heads of the queries by which attention is compared, and their width."""
SHARED_KEY_HEADS = 2
"""Heads of keys for so many queries where queries share keys: each for four, as in Llama 3."""
_KEYS = (16384, 4096, 1024)
"""Numbers of keys that attention by products is tried with, falling."""
_CACHE_BYTES = 64 * MIB
"""Bytes of all keys and values that attention is tried with."""

_LAYOUT_SHAPES = ((2048, 6144), (2048, 2048), (5504, 2048), (4096, 11008))
"""Inputs and outputs of the products by which layouts are compared: some of the Transformers of 1.3B and 6.7B."""
_CACHES = 4
"""Copies of a weight take at least so many times the bytes of the last cache."""
_FASTER = 0.97
"""Weights are stored by output, oneDNN multiplies prompts, and queries attend by products, if that takes less than this
share of the time."""
_LAYOUT_WARMUP_S = 0.1
_LAYOUT_STEPS = 10

_Product = Callable[[Tensor, Tensor], Tensor]
"""A product of rows, or of one row, with a weight or a table."""


def measure_layouts(device: torch.device, dtype: torch.dtype) -> bool:
    """Measure what `storing_by_output_is_faster` returns."""
    by_output, by_input = (
        sum(
            product_seconds(
                shape, 1, by_output=by_output, device=device, dtype=dtype, num_steps=_LAYOUT_STEPS
            )
            for shape in _LAYOUT_SHAPES
        )
        for by_output in (True, False)
    )
    free_memory(device)
    return by_output < _FASTER * by_input


@torch.inference_mode()
def product_seconds(
    shape: tuple[int, int],
    rows: int,
    *,
    by_output: bool,
    device: torch.device,
    dtype: torch.dtype,
    num_steps: int,
) -> float:
    """Return the median seconds of a product of some rows with a weight that no cache holds.

    As many copies of the weight as exceed the last cache are multiplied in turn, on CUDA from a graph.

    Args:
        shape: Inputs and outputs.
        rows: Rows that are multiplied.
        by_output: Whether the weight is stored (out, in) or (in, out).
        device: `cpu` or `cuda:N`; nothing else may run on it.
        dtype: Dtype of the weight and the rows.
        num_steps: Timed steps, each with all copies.
    """
    inputs, outputs = shape
    copies = max(2, math.ceil(_CACHES * _cache_bytes(device) / (inputs * outputs * dtype.itemsize)))
    values = torch.randn(outputs, inputs, device=device).to(dtype)
    weights = [stored_weight(values.clone(), by_output=by_output) for _ in range(copies)]
    x = torch.randn(rows, inputs, device=device).to(dtype)  # a graph does not keep its inputs alive
    multiply = partial(multiply_all, x, weights)
    samples = time_in_turn([multiply], device=device, warmup_s=_LAYOUT_WARMUP_S, min_steps=num_steps)
    return median(samples) / copies


def multiply_all(x: Tensor, weights: Sequence[Tensor], product: _Product = F.linear) -> None:
    """Multiply x (rows, in) by each of several weights (out, in)."""
    for weight in weights:
        product(x, weight)


def _cache_bytes(device: torch.device) -> int:
    """Return the bytes of the device's last cache."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return machine.last_level_cache_bytes()


@torch.inference_mode()
def measure_rows() -> dict[str, int]:
    """Measure how few rows are multiplied fastest by float32 weights.

    Returns:
        slice_width: Outputs from which `ops.linear.stream` slices; 0 unless it clearly beats torch's product.
        batches: Whether batches over weights stored by output beat the better of these two.
        onednn_rows: Up to how many rows oneDNN's product clearly beats torch's; 0 where it does not.
    """
    by_input, by_output = (_trial_weights(by_output=by_output) for by_output in (False, True))
    methods: list[_Product] = [F.linear, *(partial(_stream_row, width) for width in _SLICE_WIDTHS)]
    usual_s, *streamed_s, batched_s = _least_seconds(
        *(partial(_multiply_rows, method, 1, by_input) for method in methods),
        partial(_multiply_rows, multiply_in_batches, 1, by_output),
    )
    fastest_s, width = min(zip(streamed_s, _SLICE_WIDTHS, strict=True))
    streams_faster = fastest_s < _CLEARLY * usual_s
    return {
        "slice_width": width if streams_faster else 0,
        "batches": batched_s < _FASTER * (fastest_s if streams_faster else usual_s),
        "onednn_rows": _most_onednn_rows(by_input),
    }


def _stream_row(slice_width: int, row: Tensor, weight: Tensor) -> Tensor:
    """Multiply (1, in) by a weight (out, in) that is stored by input."""
    return stream(row[0], weight.t(), slice_width)


def _most_onednn_rows(weights: Sequence[Tensor]) -> int:
    """Return up to how many rows oneDNN's product clearly beats the one that torch takes; 0 where it does not."""
    most = 0
    for numbers, step in _ONEDNN_TRIALS:
        if not _onednn_is_faster(numbers, weights[::step], _CLEARLY):
            break
        most = max(numbers)
    return most


@torch.inference_mode()
def measure_prompts() -> bool:
    """Measure whether oneDNN's product beats torch's, MKL's, of a prompt's rows with float32 weights of both layouts.

    Two cores of an AMD EPYC of the fifth generation reached 430 GFLOP/s by oneDNN and 190 by MKL. Those of one of the
    fourth took 0.66 to 0.94 of the time, so that prompts of 1,024 tokens took 0.86 to 0.94 in most models of 25M.
    """
    values = torch.ones(_PROMPT_WIDTH, _PROMPT_WIDTH, device="cpu")
    weights = [stored_weight(values, by_output=by_output) for by_output in (False, True)]
    return _onednn_is_faster(_PROMPT_ROWS, weights, _FASTER)


def _onednn_is_faster(numbers: Sequence[int], weights: Sequence[Tensor], share: float) -> bool:
    """Return whether oneDNN's products of some numbers of rows together take less than a share of torch's time."""
    if not torch.backends.mkldnn.is_available():
        return False
    methods = [
        partial(_multiply_rows, method, rows, weights)
        for rows in numbers
        for method in (multiply_onednn, F.linear)
    ]
    seconds = _least_seconds(*methods)
    return sum(seconds[::2]) < share * sum(seconds[1::2])


@torch.inference_mode()
def measure_attention(dtype: torch.dtype, *, key_heads: int = _HEADS) -> int:
    """Measure from how many keys on single queries attend faster by products than by torch's kernel; 0: they do not.

    All lengths decide together: one that a disturbance made slow does not settle the others.

    Args:
        dtype: Of queries, keys and values.
        key_heads: Heads of keys that eight heads of queries attend to.
    """
    query = torch.ones(1, _HEADS, 1, _HEAD_DIM, dtype=dtype, device="cpu")
    # 64 MiB in float32 where each head of queries has its own keys, and more in float64.
    longest = 2 * key_heads * max(_KEYS) * _HEAD_DIM
    held = torch.ones(max(longest, _CACHE_BYTES // dtype.itemsize), dtype=dtype, device="cpu")
    fewest, gain, best_gain = 0, 0.0, 0.0
    for length in _KEYS:
        caches = held.view(-1, 2, 1, key_heads, length, _HEAD_DIM)
        products_s, fused_s = _least_seconds(
            *(partial(_attend_all, method, query, caches) for method in (attend_products, attend_sdpa))
        )
        gain += math.log(_FASTER * fused_s / products_s)  # of products from this length on
        if gain > best_gain:
            fewest, best_gain = length, gain
    return fewest


def _attend_all(attend: AttentionBackend, query: Tensor, caches: Tensor) -> None:
    """Attend from a query to each of several caches, (number, 2, B, H, S, K)."""
    for keys, values in caches:
        attend(query, keys, values)


def _multiply_rows(multiply: _Product, rows: int, weights: Sequence[Tensor]) -> None:
    """Multiply so many rows by each of several weights (out, in)."""
    # Threads that have summed rows multiply more slowly until they do something elementwise: no method may leave that
    # to the next one.
    torch.ones(torch.get_num_threads() * _ELEMENTS_PER_THREAD, device="cpu")
    for weight in weights:
        multiply(torch.ones(rows, weight.shape[1], device="cpu"), weight)


@torch.inference_mode()
def measure_loops(dtype: torch.dtype, rows: int, products: RowProducts) -> bool:
    """Measure whether loops over weights stored by output clearly beat the products that compiled steps have else.

    They do not where torch cannot compile, which each step that is to be compiled reports.

    Args:
        dtype: Dtype of the weights.
        rows: Rows of the products.
        products: How compiled steps multiply else.
    """
    try:
        looped = _compiled_products(dtype, rows, products, by_output=True)
        usual = _compiled_products(dtype, rows, products, by_output=False)
    except UnsupportedError:
        return False
    looped_s, usual_s = _least_seconds(looped, usual)
    return looped_s < _CLEARLY * usual_s


def _compiled_products(
    dtype: torch.dtype, rows: int, products: RowProducts, *, by_output: bool
) -> Callable[[], object]:
    """Return compiled products of few rows with many weights, each of which multiplies the scaled result before it."""
    layers = [
        Linear(_LOOP_WIDTH, _LOOP_WIDTH) for _ in range(_READ_BYTES // (_LOOP_WIDTH**2 * dtype.itemsize))
    ]
    for layer in layers:
        layer.to(device="cpu", dtype=dtype).requires_grad_(False).store(by_output=by_output)
        layer.weight.fill_(1.0)
        layer.row_products = products
    x = torch.ones(rows, _LOOP_WIDTH, dtype=dtype, device="cpu")
    torch._dynamo.mark_static(x)

    def multiply(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x) / _LOOP_WIDTH
        return x

    packs_weights = not by_output and products.packed_from is not None and rows >= products.packed_from
    return partial(compile_step(multiply, x, packs_weights=packs_weights).run, x)


@torch.inference_mode()
def measure_packing(dtype: torch.dtype, onednn_rows: int) -> int:
    """Measure the fewest rows from which `packing_is_faster` is true; 0 where it never is.

    Args:
        dtype: Dtype of the weights.
        onednn_rows: Most rows that compiled code multiplies by oneDNN where it packs no weights.
    """
    fewest = 0
    for rows in sorted(_PACKED_ROWS, reverse=True):
        usual = multiply_onednn if 1 < rows <= onednn_rows else F.linear
        seconds = [found for shape in _SHAPES if (found := _seconds_of_packed(rows, dtype, shape, usual))]
        if not sum(packed for packed, _ in seconds) < _CLEARLY * sum(usual for _, usual in seconds):
            break
        fewest = rows
    return fewest


def _seconds_of_packed(
    rows: int, dtype: torch.dtype, shape: tuple[int, int], usual: _Product
) -> list[float] | None:
    """Return the least seconds of products with packed weights and of usual ones; None where none are packed."""
    weights = _weights(*shape, dtype)
    products = [product for weight in weights if (product := _packed_product(weight, rows))]
    if not products:
        return None
    x = torch.ones(rows, shape[0], dtype=dtype, device="cpu")

    def multiply_packed() -> None:
        for product in products:
            product(x)

    return _least_seconds(multiply_packed, partial(multiply_all, x, weights, usual))


def _packed_product(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor] | None:
    """Return the product of some rows with a weight (out, in) that is packed as in compiled code; None if it is not.

    Source: torch/_inductor/fx_passes/mkldnn_fusion.py, `_is_packable_linear` and `CpuMkldnnDeviceOp`.
    """
    onednn, mkl, is_wide = torch.ops.mkldnn, torch.ops.mkl, weight.dtype == torch.float32
    if not torch.backends.mkldnn.is_available():
        return None
    if is_wide and not onednn._is_mkldnn_acl_supported():
        if not torch.backends.mkl.is_available():
            return None
        of_mkl = mkl._mkl_reorder_linear_weight(weight, rows)
        return lambda x: mkl._mkl_linear(x, of_mkl, weight, None, rows)
    if not is_wide and weight.dtype not in precision.NARROW_PRODUCTS:
        return None
    packed = onednn._reorder_linear_weight(weight, rows)
    return lambda x: multiply_onednn(x, packed)


def _trial_weights(*, by_output: bool) -> list[Tensor]:
    """Return many float32 weights (out, in), narrow and then wide ones, in one layout."""
    return [weight for shape in _SHAPES for weight in _weights(*shape, torch.float32, by_output=by_output)]


def _weights(
    in_features: int, out_features: int, dtype: torch.dtype, *, by_output: bool = False
) -> list[Tensor]:
    """Return many weights (out, in) of one shape in one layout.

    They are one block, too large for the C library to keep it when it is freed: a limit on memory is set later.
    """
    count = _READ_BYTES // (in_features * out_features * dtype.itemsize)
    if by_output:
        return list(torch.ones(count, out_features, in_features, dtype=dtype, device="cpu").unbind())
    tables = torch.ones(count, in_features, out_features, dtype=dtype, device="cpu")
    return [table.t() for table in tables.unbind()]


def _least_seconds(*calls: Callable[[], object]) -> list[float]:
    """Return the least seconds of each call; they take turns."""
    rounds = [[time_call(call) for call in calls] for _ in range(1 + _NUM_SAMPLES)]
    return [min(samples) for samples in zip(*rounds[1:], strict=True)]  # the first of each also warms up
