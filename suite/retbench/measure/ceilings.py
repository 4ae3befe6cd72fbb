"""Ceilings of the roofline: the read bandwidth and the matrix-product rate that a device reaches."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from retbench.measure.clock import check_device, time_in_turn, time_steps
from retbench.measure.limits import free_memory, try_in_memory
from retbench.measure.machine import last_level_cache_bytes
from retbench.measure.products import row_products
from retbench.ops.linear import multiply_onednn
from retbench.ops.precision import cpu_multiplies
from retbench.records.record import Ceilings, ReadRate, utc_now
from retbench.units import GIB, MIB

_SMALLEST_FOOTPRINT = 4 * MIB
_ROW_VALUES = 1024
"""Values in a row of the matrix of a matrix-vector product."""
_READ_SAMPLES = 3
_SAMPLE_BYTES = {"cpu": 16 * MIB, "cuda": 256 * MIB}
"""Bytes that a timed sample reads at least, in several calls of a kernel: what it takes to call one is not the
device's. On CUDA they are captured in one graph."""
_WARMUP_S = {"cpu": 0.0, "cuda": 0.1}
"""Wall time of untimed calls before each series: an idle GPU needs longer than one product to raise its clocks."""
_MATMUL_SIZES = (256, 512, 1024, 2048, 4096, 8192)
_LONGEST_PRODUCT_S = 0.08
"""A size is left out if one product is expected to take longer, by the best rate so far. This limits float16 on a CPU
without float16 arithmetic, at 3 GFLOP/s, to the smallest size."""
_SIZE_BUDGET_S = 0.1
"""Time for the samples of one size, of which there are 1 to `_MATMUL_SAMPLES`."""
_MATMUL_SAMPLES = 5
_Call = Callable[[], object]


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, read_curve: tuple[ReadRate, ...] = ()
) -> Ceilings:
    """Measure read bandwidth and matrix-product rate of `device`, each as the best of several attempts.

    Read bandwidth: that of buffers of 4 MiB, 8 MiB and so on, to 1 GiB on CUDA; on a CPU to four times the last-level
    caches, but at least 256 MiB and at most 512 MiB. See `measure_read_rate`.
    Product rate includes: square products in `dtype` (a multiply-add is two operations), at the best size from 256 to
    8192 whose product does not take too long; in TensorFloat-32 only if the process allows it. In float32 on a CPU also
    oneDNN's product, where prompts are multiplied by it.
    Excludes: allocation and filling.

    Args:
        device: `cpu` or `cuda:N`; nothing else may run on it.
        dtype: Floating-point type of the model.
        read_curve: Read bandwidth by size as another process has measured it, taken over unless it is empty.

    Raises:
        UnsupportedError: the device is neither a CPU nor CUDA.
    """
    check_device(device, "ceilings can be measured")
    with torch.inference_mode():
        curve = read_curve or _read_curve(device)
        ceilings = Ceilings(
            read_bandwidth_bytes_per_s=curve[-1].bytes_per_s,
            matmul_flops_per_s=_best_product_rate(device, dtype),
            read_curve=curve,
        )
    free_memory(device)
    return ceilings


def with_product_rate(ceilings: Ceilings, device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure the product rate again, and return the ceilings with the better of both rates.

    A shared machine changes within minutes: one process measured 108 GFLOP/s at its start and reached 156 later. The
    ceilings stay as they are where the memory does not suffice.

    Args:
        ceilings: Measured some time before.
        device: `cpu` or `cuda:N`; nothing else may run on it.
        dtype: Floating-point type of the model.
    """
    again = try_in_memory(partial(_best_product_rate, device, dtype), device)
    free_memory(device)
    rate = max(ceilings.matmul_flops_per_s, again or 0.0)
    return ceilings.model_copy(update={"matmul_flops_per_s": rate})


@torch.inference_mode()
def measure_read_rate(device: torch.device, footprint_bytes: int) -> ReadRate:
    """Measure the read bandwidth of a buffer of one size, which caches of that size may hold.

    Includes: reading float32 ones from end to end by the fastest of four kernels: dot product, matrix-vector product,
    sum, and copy of one half to the other, whose write counts like a read. On a CPU with PyTorch's present threads.
    Excludes: allocation, first touch of a page.

    Args:
        device: `cpu` or `cuda:N`; nothing else may run on it.
        footprint_bytes: Size; the buffer has the next lower multiple of two rows.
    """
    check_device(device, "ceilings can be measured")
    return _fastest_read(_ones(device, footprint_bytes), footprint_bytes)


def largest_footprint(device: torch.device) -> int:
    """Return the bytes beyond which the read bandwidth no longer depends on the size."""
    far_beyond_cache = min(max(256 * MIB, 4 * last_level_cache_bytes()), 512 * MIB)
    return GIB if device.type == "cuda" else far_beyond_cache


def footprints_of(device: torch.device) -> list[int]:
    """Return the sizes at which rates are measured: from 4 MiB in steps of two to `largest_footprint`."""
    largest, sizes = largest_footprint(device), [_SMALLEST_FOOTPRINT]
    while 2 * sizes[-1] < largest:
        sizes.append(2 * sizes[-1])
    return [*sizes, largest]


def _read_curve(device: torch.device) -> tuple[ReadRate, ...]:
    """Return the read bandwidth by size."""
    sizes = footprints_of(device)
    values = _ones(device, sizes[-1])
    return tuple(_fastest_read(values[: size // values.itemsize], size) for size in sizes)


def _ones(device: torch.device, footprint_bytes: int) -> Tensor:
    """Return a buffer of float32 ones of whole pairs of rows."""
    pair_bytes = 2 * _ROW_VALUES * torch.float32.itemsize
    num_pairs = max(1, footprint_bytes // pair_bytes)
    return torch.ones(num_pairs * 2 * _ROW_VALUES, dtype=torch.float32, device=device)


def _fastest_read(values: Tensor, footprint_bytes: int) -> ReadRate:
    """Return the read bandwidth of a buffer by the fastest of the kernels that read it."""
    device = values.device
    repeats = max(1, _SAMPLE_BYTES[device.type] // values.nbytes)
    samples_of = partial(
        time_in_turn,
        device=device,
        warmup_s=_WARMUP_S[device.type],
        min_steps=_READ_SAMPLES,
        repeats=repeats,
    )
    rates = {
        name: values.nbytes / min(samples_of([kernel])) for name, kernel in _read_kernels(values).items()
    }
    best = max(rates, key=rates.__getitem__)
    return ReadRate(
        footprint_bytes=footprint_bytes, bytes_per_s=rates[best], kernel=best, measured_at=utc_now()
    )


def _read_kernels(values: Tensor) -> dict[str, Callable[[], object]]:
    """Return calls that each read every value once; the fastest depends on device and size."""
    first, second = values.chunk(2)
    rows = values.view(-1, _ROW_VALUES)
    vector, product = values.new_ones(_ROW_VALUES), values.new_empty(len(rows))
    total = values.new_empty(())
    return {
        "dot": lambda: torch.dot(first, second, out=total),
        "matrix-vector product": lambda: torch.mv(rows, vector, out=product),
        # One sum for each row needs no second pass over partial sums.
        "sum": lambda: torch.sum(rows, dim=1, out=product),
        "copy": lambda: first.copy_(second),
    }


def _torch_product(left: Tensor, right: Tensor) -> _Call:
    """Return torch's matrix product into a preallocated buffer."""
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def _onednn_product(left: Tensor, right: Tensor) -> _Call:
    """Return oneDNN's matrix product, as prompts are multiplied where it is the faster one."""
    return partial(multiply_onednn, left, right.t())


def _best_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the product rate of the ceilings: by torch's product, and by oneDNN's where prompts take that one."""
    rates = [measure_matmul_rate(device, dtype)]
    is_wide = dtype == torch.float32 or (device.type == "cpu" and not cpu_multiplies(dtype))
    if is_wide and row_products(device, torch.float32).onednn_prompts:
        rates.append(measure_matmul_rate(device, dtype, _onednn_product))
    return max(rates)


@torch.inference_mode()
def measure_matmul_rate(
    device: torch.device, dtype: torch.dtype, product: Callable[[Tensor, Tensor], _Call] = _torch_product
) -> float:
    """Measure the FLOP/s of the best square product within the time limit; see `measure_ceilings`.

    It is torch's product, or that of the function that `product` returns for two factors.

    Of a dtype that a CPU has no products of, those are measured that models compute in its place: in float32.
    """
    if device.type == "cpu" and not cpu_multiplies(dtype):
        dtype = torch.float32
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
        samples = time_steps(
            product(left, right),
            lambda: None,
            device=device,
            warmup_s=_WARMUP_S[device.type],
            min_steps=num_samples,
        )
        best = max(best, num_flops / min(samples))
    return best
