"""The limit of a worker's memory, in processes of their own: a limit cannot be taken back."""

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from retbench.errors import UnsupportedError
from retbench.measure import limits
from retbench.measure.limits import headroom_bytes, is_out_of_memory, limit_memory
from tests.measure.forked import run_forked

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the limit")

PRELUDE = """
import torch
from retbench.measure.allocator import return_freed_memory
from retbench.measure.limits import (
    headroom_bytes, is_out_of_memory, lift_limit, limit_memory, make_blas_handles
)
cpu = torch.device("cpu")
torch.rand(500, 500) @ torch.rand(500, 500)

def can_take(num_bytes):
    try:
        torch.zeros(num_bytes, dtype=torch.int8)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
"""


def run(code: str) -> str:
    return run_forked(PRELUDE + code)


@LINUX
def test_what_is_within_the_limit_can_be_taken_again_and_again_and_no_more() -> None:
    code = "limit_memory(200_000_000, cpu)\nprint([can_take(n * 10**6) for n in (190, 210, 190, 1000, 190)])"
    assert run(code) == "[True, False, True, False, True]"


@LINUX
def test_what_was_taken_before_does_not_count() -> None:
    code = """
held = torch.zeros(300_000_000, dtype=torch.int8)
limit_memory(100_000_000, cpu)
print(can_take(90_000_000))
"""
    assert run(code) == "True"


@LINUX
def test_a_block_takes_more_and_leaves_as_much_as_it_found() -> None:
    code = """
limit_memory(100_000_000, cpu)
with lift_limit():
    kept = torch.zeros(300_000_000, dtype=torch.int8)
print([can_take(n * 10**6) for n in (90, 110)])
kept = None
with lift_limit():
    kept = torch.zeros(10, dtype=torch.int8)
print(can_take(390_000_000), can_take(410_000_000))
"""
    assert run(code).splitlines() == ["[True, False]", "True False"]


@LINUX
def test_headroom_is_what_is_left_of_the_limit() -> None:
    code = """
assert headroom_bytes(cpu, None) is None
limit_memory(200_000_000, cpu)
held = torch.zeros(150_000_000, dtype=torch.int8)
print(headroom_bytes(cpu, 200_000_000))
"""
    assert int(run(code)) == pytest.approx(50_000_000, abs=2_000_000)


@LINUX
def test_freed_blocks_do_not_stay_in_the_process() -> None:
    code = """
limit_memory(400_000_000, cpu)
return_freed_memory()
for size in (4, 8, 16, 30):
    blocks = [torch.empty(size * 10**6, dtype=torch.int8) for _ in range(360 // size)]
    kept = torch.zeros(1000)
    del blocks
print(headroom_bytes(cpu, 400_000_000))
"""
    assert int(run(code)) > 390_000_000


@LINUX
@pytest.mark.parametrize(
    "needs_memory",
    [
        "import _lsprof",
        "import threading; threading.Thread(target=print).start()",
        "import mmap; mmap.mmap(-1, 2**33)",
        "torch.empty(2**33, dtype=torch.int8)",
        "bytearray(2**33)",
        "multiply_onednn(torch.ones(8, 640), torch.ones(480, 640))",
    ],
)
def test_whatever_finds_no_address_space_is_out_of_memory(needs_memory: str) -> None:
    code = f"""
import resource, psutil
from retbench.ops.linear import multiply_onednn
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used, used))
try:
    {needs_memory}
except Exception as error:
    print(is_out_of_memory(error) or repr(error))
"""
    assert run(code) == "True"


@LINUX
def test_a_worker_that_times_no_products_itself_sums_rows_where_no_address_space_is_left() -> None:
    code = """
import resource, psutil
from retbench.measure import products
from retbench.ops.linear import stream
products.agree({"slice_width": 1024})
row, table = torch.ones(64), torch.ones(64, 32)
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used, used))
print(stream(row, table, 1024).sum())
"""
    assert run(code) == "tensor(2048.)"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        RuntimeError("could not create a primitive"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
)
def test_threads_and_libraries_may_fail_without_a_limit_on_memory_for_another_reason(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert not is_out_of_memory(error)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**9, 10**9))
    assert is_out_of_memory(error)


@LINUX
def test_a_limit_beyond_what_there_is_is_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"memory_limit_bytes is 1,000,000,000,000,000 \(931,323 GiB\), and "
    ):
        limit_memory(10**15, CPU)


def test_a_system_that_keeps_no_limit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.sys, "platform", "darwin")
    with pytest.raises(UnsupportedError, match="memory_limit_bytes is 1,000, and only Linux"):
        limit_memory(1000, CPU)


def test_what_the_allocator_held_on_a_gpu_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    total, workspaces, limit_bytes = 80 * 10**9, 64 * 2**20, 200_000_000
    reserved, fractions = [workspaces], []
    pretended = {
        "get_device_properties": lambda device: SimpleNamespace(total_memory=total),
        "mem_get_info": lambda device: (total - reserved[0], total),
        "memory_reserved": lambda device: reserved[0],
        "empty_cache": lambda: None,
        "set_per_process_memory_fraction": lambda fraction, device: fractions.append(fraction),
    }
    for name, function in pretended.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(limits, "_reserved_before", {})
    cuda = torch.device("cuda:0")
    limit_memory(limit_bytes, cuda)
    assert fractions == [pytest.approx((workspaces + limit_bytes) / total)]
    assert headroom_bytes(cuda, limit_bytes) == limit_bytes
    reserved[0] += 150_000_000
    assert headroom_bytes(cuda, limit_bytes) == 50_000_000


@pytest.mark.gpu
def test_a_limit_on_cuda() -> None:
    code = """
cuda = torch.device("cuda:0")
limit_memory(2 * 10**9, cuda)
left = headroom_bytes(cuda, 2 * 10**9)
held = torch.zeros(10**9, dtype=torch.int8, device=cuda)
try:
    torch.zeros(15 * 10**8, dtype=torch.int8, device=cuda)
except torch.OutOfMemoryError:
    print(left, headroom_bytes(cuda, 2 * 10**9))
"""
    before, after = map(int, run(code).split())
    assert before - after >= 10**9


@pytest.mark.gpu
def test_gradients_on_a_full_device_are_computed_or_say_that_it_is_full() -> None:
    code = """
cuda = torch.device("cuda:0")
make_blas_handles(cuda, gradients=True)
square = torch.ones(64, 64, device=cuda, requires_grad=True)
held, size = [], 2**36
while size >= 2**20:
    try:
        held.append(torch.empty(size, dtype=torch.int8, device=cuda))
    except torch.OutOfMemoryError:
        size //= 2
try:
    (square @ square).sum().backward()
except RuntimeError as error:
    print(is_out_of_memory(error), error)
else:
    print(True)
"""
    assert run(code).startswith("True")
