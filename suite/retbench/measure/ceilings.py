"""What a device reaches when only memory, or only arithmetic, holds it up: the roof of the roofline."""

from collections.abc import Callable

import torch

from retbench.errors import UnsupportedError
from retbench.measure.clock import time_steps
from retbench.measure.machine import last_level_cache_bytes
from retbench.records.record import Ceilings
from retbench.units import GIB, MIB

_READ_SAMPLES = 5
_WARMUP_S = {"cpu": 0.0, "cuda": 0.1}
"""Wall time of untimed calls ahead of each series: an idle GPU takes longer to raise its clocks than a product does."""
_MATMUL_SIZES = (256, 512, 1024, 2048, 4096, 8192)
_LONGEST_PRODUCT_S = 0.08
"""A size is left out when one product is expected to take longer, by the best rate so far. It is what keeps
float16 on a CPU without float16 arithmetic, at 3 GFLOP/s, to the smallest size."""
_SIZE_BUDGET_S = 0.1
"""Time for the samples of one size; from one to `_MATMUL_SAMPLES` of them."""
_MATMUL_SAMPLES = 5


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Read bandwidth and matrix-product rate of `device`, each the best of several tries.

    Read bandwidth includes: streaming a buffer of float32 ones once and adding it up, on the threads that
    PyTorch has now. The buffer is 1 GiB on CUDA; on a CPU four times the last-level caches, but within 256
    MiB and 1 GiB.
    Excludes: allocating, the first touch of a page, writing.
    Product rate includes: square products in `dtype` (a multiply and an add are two operations), at the best
    of the sizes 256 to 8192 of which one product does not take too long; in TensorFloat-32 only where the
    process allows it.
    Excludes: allocating and filling.

    Args:
        device: `cpu` or `cuda:N`; nothing else may run on it meanwhile.
        dtype: Floating-point type of the model.

    Raises:
        UnsupportedError: the device is neither a CPU nor CUDA.
    """
    if device.type not in {"cpu", "cuda"}:
        raise UnsupportedError(
            f"device '{device}': ceilings can be measured on 'cpu' and 'cuda'. Give one of them."
        )
    with torch.inference_mode():
        ceilings = Ceilings(
            read_bandwidth_bytes_per_s=_read_bandwidth(device),
            matmul_flops_per_s=_matmul_rate(device, dtype),
        )
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what is measured next finds none of these buffers in the allocator
    return ceilings


def _fastest(call: Callable[[], object], device: torch.device, num_samples: int) -> float:
    """Seconds of the fastest of several calls, after at least one that is not timed."""
    warmup_s = _WARMUP_S[device.type]
    return min(time_steps(call, _nothing, device=device, warmup_s=warmup_s, min_steps=num_samples))


def _nothing() -> None:
    """Between two calls of a ceiling there is nothing to restore."""


def _read_bandwidth(device: torch.device) -> float:
    """Bytes/s of reading a buffer once, by the better of two reductions."""
    far_beyond_cache = min(max(256 * MIB, 4 * last_level_cache_bytes()), GIB)
    num_bytes = GIB if device.type == "cuda" else far_beyond_cache
    rows = torch.ones(1024, num_bytes // (4 * 1024), dtype=torch.float32, device=device)
    # One sum a row needs no second pass over partial sums; one sum in all is split more finely. Which one
    # streams better depends on the device.
    ways: tuple[Callable[[], object], ...] = (lambda: rows.sum(dim=1), rows.sum)
    return rows.nbytes / min(_fastest(way, device, _READ_SAMPLES) for way in ways)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations/s of the best square product that stays within the time for one."""
    generator = torch.Generator(device).manual_seed(0)  # leaves the process's own random numbers as they are
    best = 0.0
    for size in _MATMUL_SIZES:
        num_flops = 2 * size**3
        num_samples = _MATMUL_SAMPLES
        if best:
            expected_s = num_flops / best
            if expected_s > _LONGEST_PRODUCT_S:
                break
            num_samples = max(1, min(num_samples, int(_SIZE_BUDGET_S / expected_s)))
        # Random values: a GPU draws less power, and so clocks higher, on constant ones.
        left, right = torch.rand(2, size, size, dtype=dtype, device=device, generator=generator)
        seconds = _fastest(_product(left, right), device, num_samples)
        best = max(best, num_flops / seconds)
    return best


def _product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    """A matrix product into a buffer of its own."""
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)
