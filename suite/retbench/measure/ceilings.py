"""Ceilings of the roofline: the read bandwidth and the matrix-product rate that a device reaches."""

from collections.abc import Callable

import torch

from retbench.measure.clock import check_device, time_steps
from retbench.measure.limits import free_memory
from retbench.measure.machine import last_level_cache_bytes
from retbench.records.record import Ceilings
from retbench.units import GIB, MIB

_READ_SAMPLES = 5
_WARMUP_S = {"cpu": 0.0, "cuda": 0.1}
"""Wall time of untimed calls before each series: an idle GPU needs longer than one product to raise its clocks."""
_MATMUL_SIZES = (256, 512, 1024, 2048, 4096, 8192)
_LONGEST_PRODUCT_S = 0.08
"""A size is left out if one product is expected to take longer, by the best rate so far. This limits float16 on a CPU
without float16 arithmetic, at 3 GFLOP/s, to the smallest size."""
_SIZE_BUDGET_S = 0.1
"""Time for the samples of one size, of which there are 1 to `_MATMUL_SAMPLES`."""
_MATMUL_SAMPLES = 5


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure read bandwidth and matrix-product rate of `device`, each as the best of several attempts.

    Read bandwidth includes: reading and summing a buffer of float32 ones once, on PyTorch's present threads. The
    buffer has 1 GiB on CUDA; on a CPU four times the last-level caches, between 256 MiB and 1 GiB.
    Excludes: allocation, first touch of a page, writes.
    Product rate includes: square products in `dtype` (a multiply-add is two operations), at the best size from 256 to
    8192 whose product does not take too long; in TensorFloat-32 only if the process allows it.
    Excludes: allocation and filling.

    Args:
        device: `cpu` or `cuda:N`; nothing else may run on it.
        dtype: Floating-point type of the model.

    Raises:
        UnsupportedError: the device is neither a CPU nor CUDA.
    """
    check_device(device, "ceilings can be measured")
    with torch.inference_mode():
        ceilings = Ceilings(
            read_bandwidth_bytes_per_s=_read_bandwidth(device),
            matmul_flops_per_s=_matmul_rate(device, dtype),
        )
    free_memory(device)
    return ceilings


def _fastest(call: Callable[[], object], device: torch.device, num_samples: int) -> float:
    """Return the seconds of the fastest of several calls, after at least one untimed call."""
    warmup_s = _WARMUP_S[device.type]
    return min(time_steps(call, lambda: None, device=device, warmup_s=warmup_s, min_steps=num_samples))


def _read_bandwidth(device: torch.device) -> float:
    """Return the bytes/s of reading a buffer once, by the faster of two reductions."""
    far_beyond_cache = min(max(256 * MIB, 4 * last_level_cache_bytes()), GIB)
    num_bytes = GIB if device.type == "cuda" else far_beyond_cache
    rows = torch.ones(1024, num_bytes // (4 * 1024), dtype=torch.float32, device=device)
    # One sum per row needs no second pass over partial sums; a single sum is split more finely. The faster one
    # depends on the device.
    reductions: tuple[Callable[[], object], ...] = (lambda: rows.sum(dim=1), rows.sum)
    return rows.nbytes / min(_fastest(reduction, device, _READ_SAMPLES) for reduction in reductions)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the best square product within the time limit."""
    generator = torch.Generator(device).manual_seed(0)  # does not change the process's own random numbers
    best = 0.0
    for size in _MATMUL_SIZES:
        num_flops = 2 * size**3
        num_samples = _MATMUL_SAMPLES
        if best:
            expected_s = num_flops / best
            if expected_s > _LONGEST_PRODUCT_S:
                break
            num_samples = max(1, min(num_samples, int(_SIZE_BUDGET_S / expected_s)))
        # Random values: with constant ones a GPU draws less power and clocks higher.
        left, right = torch.rand(2, size, size, dtype=dtype, device=device, generator=generator)
        seconds = _fastest(_product(left, right), device, num_samples)
        best = max(best, num_flops / seconds)
    return best


def _product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    """Return a matrix product into a preallocated buffer."""
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)
