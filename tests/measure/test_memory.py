from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from retbench.errors import UnsupportedError
from retbench.measure import memory
from tests.measure.forked import run_forked

CPU = torch.device("cpu")
KB = 1000


def kilobyte() -> Tensor:
    """1,000 bytes of storage."""
    return torch.zeros(250, dtype=torch.float32)


def workspace(call: Callable[[], object]) -> int:
    return memory.measure_memory(call, CPU).workspace_bytes


def test_what_is_live_at_once_adds_up() -> None:
    given = kilobyte()

    def call() -> None:
        first = given + 1
        second = first * 2
        del first
        third = second - 1
        del second, third

    assert workspace(call) == 2 * KB


def test_what_was_there_before_counts_nothing() -> None:
    given = kilobyte()
    assert workspace(lambda: given.add_(1).mul_(2)) == 0


def test_views_and_in_place_operators_count_once() -> None:
    def call() -> None:
        fresh = kilobyte()
        views = [fresh.view(10, 25).t(), fresh[5:], fresh.expand(3, 250)]
        fresh.mul_(2)
        del views

    assert workspace(call) == KB


def test_a_view_keeps_its_storage() -> None:
    def call() -> None:
        view = kilobyte()[:1]
        other = kilobyte()
        del view, other

    assert workspace(call) == 2 * KB


def test_frees_are_seen() -> None:
    def one_at_a_time() -> None:
        for _ in range(5):
            fresh = kilobyte()
            del fresh

    def rebound() -> None:
        for _ in range(5):
            fresh = kilobyte()  # the new one is made while the name still holds the old one
        del fresh

    assert workspace(one_at_a_time) == KB
    assert workspace(rebound) == 2 * KB


def test_what_the_call_keeps_counts() -> None:
    kept: list[Tensor] = []
    assert workspace(lambda: kept.append(kilobyte())) == KB


def test_a_freed_older_tensor_makes_room() -> None:
    holder = [kilobyte()]

    def grow_in_turn() -> None:
        holder[0] = holder[0] + 1  # two live, one of them from before: one kilobyte more
        fresh = kilobyte()  # the older one is gone: one kilobyte more than before still
        del fresh

    assert workspace(grow_in_turn) == KB


def test_a_larger_result_grows_its_storage() -> None:
    given = kilobyte()

    def call() -> None:
        out = torch.empty(0)
        torch.cat([given, given], out=out)
        del out

    assert workspace(call) == 2 * KB


def test_a_tensor_from_a_list_counts() -> None:
    assert workspace(lambda: torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)) == 24


def test_parts_of_a_composite_operator_count_in_inference_mode_too() -> None:
    left, right = torch.rand(2, 5, 8), torch.rand(2, 7, 8)

    def call() -> None:
        F.softmax(torch.einsum("bik,bjk->bij", left, right), dim=-1)

    with torch.no_grad():
        expected = workspace(call)
    with torch.inference_mode():
        found = workspace(call)
    # (2, 5, 7) float32 scores and their softmax.
    assert found == expected == 2 * 2 * 5 * 7 * 4


def test_what_autograd_saves_is_live() -> None:
    weight = torch.zeros(250, requires_grad=True)

    def call() -> None:
        result = weight.exp().exp().sum()  # both exponentials are kept for the backward pass
        del result

    assert workspace(call) >= 2 * KB


@given(st.lists(st.tuples(st.booleans(), st.integers(min_value=1, max_value=500)), max_size=30))
def test_any_sequence_of_making_and_freeing(steps: list[tuple[bool, int]]) -> None:
    live: list[int] = []
    expected = 0
    for makes, size in steps:
        if makes:
            live.append(size)
            expected = max(expected, sum(live))
        elif live:
            live.pop(size % len(live))

    tensors: list[Tensor] = []
    with memory.StorageTracker() as tracker:
        for makes, size in steps:
            if makes:
                tensors.append(torch.empty(size, dtype=torch.uint8))
            elif tensors:
                tensors.pop(size % len(tensors))
    assert tracker.peak_bytes == expected
    assert tracker.live_bytes == sum(live)


def test_an_error_of_the_call_comes_through_and_counting_stops() -> None:
    def fail() -> None:
        raise KeyError("of the call")

    with pytest.raises(KeyError, match="of the call"):
        workspace(fail)
    with memory.StorageTracker() as tracker:
        pass
    kilobyte()
    assert tracker.peak_bytes == 0


def test_process_peak_holds_what_the_call_touched() -> None:
    # In a process of its own: what other tests have freed is still there, and touching it adds nothing.
    code = """
import torch
from retbench.measure.memory import measure_memory

for num_bytes in (1, 64 * 2**20):
    use = measure_memory(lambda: torch.ones(num_bytes, dtype=torch.uint8), torch.device("cpu"))
    print(use.process_peak_bytes, use.process_peak_since, sep=";")
"""
    (small, since), (large, _) = (line.split(";") for line in run_forked(code).splitlines())
    assert int(large) > 64 * 2**20
    if since == "during the call":
        assert int(small) < int(large) - 60 * 2**20
    else:
        assert int(small) >= int(large)


def test_where_the_peak_cannot_be_reset_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, text: str, encoding: str) -> int:
        raise PermissionError(f"{self} is read-only")

    monkeypatch.setattr(Path, "write_text", refuse)
    use = memory.measure_memory(kilobyte, CPU)
    assert use.process_peak_since == "since the process began"
    assert use.process_peak_bytes > 2**20


def test_a_cpu_has_no_device_peaks() -> None:
    use = memory.measure_memory(kilobyte, CPU)
    assert (use.device_peak_bytes, use.reserved_peak_bytes) == (None, None)


def test_a_device_without_memory_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="device 'meta'"):
        memory.measure_memory(kilobyte, torch.device("meta"))


def test_cuda_numbers_are_differences_of_the_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    pretend = SimpleNamespace(
        synchronize=lambda device: log.append("wait"),
        memory_allocated=lambda device: 100,
        reset_peak_memory_stats=lambda device: log.append("reset"),
        max_memory_allocated=lambda device: 130,
        max_memory_reserved=lambda device: 200,
    )
    monkeypatch.setattr(torch, "cuda", pretend)
    use = memory.measure_memory(lambda: log.append("call"), torch.device("cuda"))
    assert (use.workspace_bytes, use.device_peak_bytes, use.reserved_peak_bytes) == (30, 130, 200)
    assert log == ["wait", "reset", "call", "wait"]


@pytest.mark.gpu
def test_cuda_workspace_is_the_allocators_peak() -> None:
    device = torch.device("cuda")
    given = torch.zeros(2**20, device=device)  # 4 MiB, a multiple of the allocator's blocks

    def call() -> None:
        first = given + 1
        second = first * 2
        del first, second

    use = memory.measure_memory(call, device)
    assert use.workspace_bytes == 8 * 2**20
    assert use.device_peak_bytes is not None
    assert use.reserved_peak_bytes is not None
    assert use.reserved_peak_bytes >= use.device_peak_bytes >= 12 * 2**20
