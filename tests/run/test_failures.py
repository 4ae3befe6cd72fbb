import pytest
import torch

from retbench.errors import CapacityError, CheckpointError, ConfigError, RetbenchError, UnsupportedError
from retbench.run.failures import classify


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_running_out_of_memory_has_many_names(error: Exception) -> None:
    status, message = classify(raised(error))
    assert status == "oom"
    assert message.startswith("out of memory: ")


def test_torchs_own_allocator_runs_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.int8)
    assert classify(caught.value)[0] == "oom"


def test_what_is_unsupported_keeps_its_message() -> None:
    assert classify(raised(UnsupportedError("no flash here"))) == ("unsupported", "no flash here")


@pytest.mark.parametrize("kind", [ConfigError, CheckpointError, CapacityError, RetbenchError])
def test_what_was_written_for_the_user_keeps_its_words(kind: type[RetbenchError]) -> None:
    assert classify(raised(kind("a.json: no such split."))) == ("failed", "a.json: no such split.")


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes\nof two lines"), ValueError("full"), ZeroDivisionError()]
)
def test_anything_else_has_failed_and_says_where(error: Exception) -> None:
    status, message = classify(raised(error))
    assert status == "failed"
    assert message.startswith(f"{type(error).__name__} at test_failures.py:")
    assert "\n" not in message
