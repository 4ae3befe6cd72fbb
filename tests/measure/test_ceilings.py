from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from retbench.errors import UnsupportedError
from retbench.measure import ceilings, clock
from retbench.ops import precision
from retbench.ops.linear import RowProducts
from retbench.records.record import Ceilings, ReadRate

CPU = torch.device("cpu")


def test_a_cpu_has_plausible_ceilings_and_keeps_its_random_numbers() -> None:
    before = torch.get_rng_state()
    found = ceilings.measure_ceilings(CPU, torch.float32)
    assert 1e8 < found.read_bandwidth_bytes_per_s < 1e13
    assert 1e8 < found.matmul_flops_per_s < 1e15
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_has_a_product_rate(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_MATMUL_SIZES", (64, 128))
    rate = ReadRate(footprint_bytes=1, bytes_per_s=1.0, kernel="dot")
    monkeypatch.setattr(ceilings, "_read_curve", lambda device: (rate,))
    assert ceilings.measure_ceilings(CPU, dtype).matmul_flops_per_s > 1e6


def pretend_clock(
    seconds_of_call: Callable[[int], list[float]], counts: list[int]
) -> Callable[..., list[float]]:
    """A time_steps that runs nothing and answers made-up times for the first, second ... call of it."""

    def time_steps(
        step: Callable[[], object],
        before: Callable[[], object],
        *,
        device: torch.device,
        warmup_s: float,
        min_steps: int,
    ) -> list[float]:
        counts.append(min_steps)
        return seconds_of_call(len(counts) - 1)

    return time_steps


def test_the_curve_has_every_size_up_to_one_far_beyond_the_caches() -> None:
    curve = ceilings.measure_ceilings(CPU, torch.float32).read_curve
    sizes = [rate.footprint_bytes for rate in curve]
    assert sizes[0] == 4 * 2**20
    assert sizes[-1] == ceilings.largest_footprint(CPU)
    assert all(above == min(2 * below, sizes[-1]) for below, above in pairwise(sizes))
    assert all(1e8 < rate.bytes_per_s < 1e13 for rate in curve)


def test_bandwidth_is_bytes_over_the_time_of_the_fastest_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [[0.5, 0.25, 0.4], [0.3, 0.125], [0.2], [0.126]]
    monkeypatch.setattr(clock, "time_steps", pretend_clock(lambda number: times[number], []))
    found = ceilings.measure_read_rate(CPU, 64 * 2**20)
    assert (found.bytes_per_s, found.kernel) == (64 * 2**20 / 0.125, "matrix-vector product")


def test_a_small_buffer_is_read_several_times_in_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "time_steps", pretend_clock(lambda number: [1.0], []))
    assert ceilings.measure_read_rate(CPU, 2**20).bytes_per_s == 16 * 2**20


@pytest.mark.parametrize("footprint", [1, 8191, 8192, 100_003, 3 * 2**20 + 1])
def test_every_kernel_reads_every_value(footprint: int) -> None:
    values = ceilings._ones(CPU, footprint)
    assert 0.5 * footprint < values.nbytes <= max(footprint, 8192)
    values.random_(1, 5)
    first, second = values.double().chunk(2)
    kernels = ceilings._read_kernels(values)
    assert kernels["dot"]() == pytest.approx(float(first @ second))
    assert float(kernels["matrix-vector product"]().sum()) == pytest.approx(float(values.double().sum()))
    assert float(kernels["sum"]().sum()) == pytest.approx(float(values.double().sum()))
    assert torch.equal(kernels["copy"]().double(), second)


def test_the_curve_ends_beyond_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    for cache_mib, largest_mib in ((0, 256), (100, 400), (1000, 512)):
        monkeypatch.setattr(ceilings, "last_level_cache_bytes", lambda mib=cache_mib: mib * 2**20)
        assert ceilings.largest_footprint(CPU) == largest_mib * 2**20


def test_product_rate_is_two_operations_a_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "time_steps", pretend_clock(lambda number: [0.05, 0.025], []))
    # At this rate a product of size 512 would take 0.2 s: the first size is the only one.
    assert ceilings.measure_matmul_rate(CPU, torch.float32) == 2 * 256**3 / 0.025


@pytest.mark.parametrize("products", [(), (torch.bfloat16,)], ids=str)
def test_products_that_the_processor_lacks_are_those_in_float32(
    products: tuple[torch.dtype, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models compute them so. With the rate of torch's own products an estimate said a day for minutes."""
    seen: set[torch.dtype] = set()
    monkeypatch.setattr(precision, "NARROW_PRODUCTS", frozenset(products))
    monkeypatch.setattr(ceilings, "time_steps", pretend_clock(lambda number: [0.05], []))
    ceilings.measure_matmul_rate(CPU, torch.bfloat16, lambda left, right: seen.add(left.dtype))
    assert seen == {torch.bfloat16 if products else torch.float32}


def test_products_grow_until_one_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = 1e11
    sizes = (256, 512, 1024, 2048)
    counts: list[int] = []
    times = pretend_clock(lambda number: [2 * sizes[number] ** 3 / rate], counts)
    monkeypatch.setattr(ceilings, "time_steps", times)
    assert ceilings.measure_matmul_rate(CPU, torch.float32) == pytest.approx(rate)
    assert counts == [5, 5, 4]  # 1024 takes 21 ms a product, 2048 would take 172 ms


@pytest.mark.usefixtures("narrow_products")
@pytest.mark.parametrize(
    ("dtype", "onednn", "is_tried", "rate"),
    [
        (torch.float32, 3e11, True, 3e11),
        (torch.float32, 1e11, True, 2e11),
        (torch.float32, 3e11, False, 2e11),
        (torch.bfloat16, 3e11, True, 2e11),  # torch's product is oneDNN's
        (torch.float64, 3e11, True, 2e11),  # oneDNN has none
    ],
)
def test_the_product_rate_is_that_of_the_faster_product(
    dtype: torch.dtype, onednn: float, is_tried: bool, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = (ReadRate(footprint_bytes=1, bytes_per_s=1.0, kernel="dot"),)

    def measure(*asked: object) -> float:
        return onednn if ceilings._onednn_product in asked else 2e11

    found = RowProducts(onednn_prompts=is_tried)
    monkeypatch.setattr(ceilings, "row_products", lambda device, dtype: found)
    monkeypatch.setattr(ceilings, "measure_matmul_rate", measure)
    assert ceilings.measure_ceilings(CPU, dtype, curve).matmul_flops_per_s == rate


@pytest.mark.parametrize(("again", "better"), [(156e9, 156e9), (90e9, 108e9), (None, 108e9)])
def test_the_better_of_two_product_rates_counts(
    again: float | None, better: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(device: torch.device, dtype: torch.dtype) -> float:
        if again is None:
            raise MemoryError
        return again

    monkeypatch.setattr(ceilings, "_best_product_rate", measure)
    before = Ceilings(read_bandwidth_bytes_per_s=1e9, matmul_flops_per_s=108e9)
    found = ceilings.with_product_rate(before, CPU, torch.float32)
    assert found == before.model_copy(update={"matmul_flops_per_s": better})


def test_a_device_without_ceilings_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="device 'meta'"):
        ceilings.measure_ceilings(torch.device("meta"), torch.float32)


@pytest.mark.gpu
def test_a_gpu_has_plausible_ceilings_and_its_memory_back() -> None:
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated(device)
    found = ceilings.measure_ceilings(device, torch.bfloat16)
    assert 1e10 < found.read_bandwidth_bytes_per_s < 1e14
    assert 1e11 < found.matmul_flops_per_s < 1e17
    # The workspaces that cuBLAS keeps for each stream are torch's too: 32 MiB each on an H100. The buffer is 1 GiB.
    assert torch.cuda.memory_allocated(device) - before < 256 * 2**20
