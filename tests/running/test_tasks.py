"""A worker's tasks: the depth and memory of the equivalence check, when a worker stops, errors, progress."""

import os
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from retbench.errors import CapacityError, CheckpointError, ConfigError, RetbenchError, UnsupportedError
from retbench.measure import ceilings
from retbench.models.equivalence import LENGTHS
from retbench.ops import attention
from retbench.planning.plan import Plan
from retbench.records.record import Ceilings, Gate, Status, utc_now
from retbench.records.store import read_records
from retbench.running import job_model, tasks
from retbench.running.protocol import (
    Advanced,
    Checked,
    Done,
    Job,
    MeasureCell,
    Measured,
    Message,
    Refused,
    RunInfo,
    Started,
)
from retbench.running.recording import Outcome, Surroundings
from retbench.running.tasks import CellProgress, classify
from retbench.user_packages import WORKLOADS
from retbench.workloads.metrics import prefill_bytes
from retbench.workloads.states import StateStore

Prepare = Callable[..., list[Message]]
SHORT = (1, 17, 127)


@pytest.fixture(autouse=True)
def _short_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the equivalence check compare prompts of up to 127 tokens: one form runs them token by token."""
    monkeypatch.setattr(job_model, "LENGTHS", SHORT)


@pytest.fixture
def prepare(plan_of: Callable[..., Plan], run_info: RunInfo, tmp_path: Path) -> Prepare:
    """Prepares the small experiment's Transformer for cells of a depth, in this process; returns the messages."""

    def run(depth: int) -> list[Message]:
        plan = plan_of("size=300k", f"workloads.decode.context_len=[{depth}]")
        job = Job(
            task="prepare",
            run=run_info,
            cells=tuple(cell for cell in plan.cells if cell.model_name == "transformer"),
            records_path=tmp_path / "a.jsonl",
            states_dir=tmp_path / "states",
            parent_pid=os.getpid(),
        )
        sent: list[Message] = []
        store = StateStore(tmp_path / "states", "0.1.0+src.test")
        tasks._prepare(job, torch.device("cpu"), store, sent.append)
        return sent

    return run


def leave_room_for(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a gate that is deeper than this run out of memory."""
    check_equivalence = job_model.check_equivalence

    def starve(model: Any, tokens: torch.Tensor, *, depth: int, lengths: tuple[int, ...]) -> Gate:
        if depth > num_tokens:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return check_equivalence(model, tokens, depth=depth, lengths=lengths)

    monkeypatch.setattr(job_model, "check_equivalence", starve)


def streamed_depth(sent: list[Message]) -> int:
    """The tokens over which a passed equivalence check streamed the state."""
    (message,) = sent
    assert isinstance(message, Checked)
    assert message.gate.passed
    return next(check.length for check in message.gate.checks if check.name == "streamed state = whole")


def test_a_gate_without_the_memory_goes_half_as_deep(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_room_for(400, monkeypatch)
    assert streamed_depth(prepare(512)) == 256


def test_a_gate_that_fits_at_no_depth_is_no_outcome_of_the_cells(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_model, "LENGTHS", LENGTHS)
    leave_room_for(0, monkeypatch)
    (message,) = prepare(4096)
    assert isinstance(message, Refused)
    assert message.status == "unsupported"  # so that it is tried again
    assert (
        "equivalence check of 'transformer' runs out of memory on cpu even at 2,047 tokens" in message.error
    )


@pytest.mark.parametrize(("kernel", "depth"), [("flash", 240), ("math", 220)])
def test_a_gate_goes_as_deep_as_the_kernel_that_runs_can(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, kernel: str, depth: int
) -> None:
    monkeypatch.setattr(attention, "sdpa_kernel", lambda *_: kernel)
    monkeypatch.setitem(job_model.GATE_DEPTH, "cpu", 240)
    monkeypatch.setattr(job_model, "QUADRATIC_GATE_DEPTH", 220)
    assert streamed_depth(prepare(512)) == depth


MeasureJob = Callable[..., Job]
PASSED = Gate(passed=True, dtype="float32", checks=())


@pytest.fixture
def measure_job(plan_of: Callable[..., Plan], run_info: RunInfo, tmp_path: Path) -> MeasureJob:
    """Makes the job that measures the cells of the small experiment's Transformer, with overrides."""

    def make(*overrides: str, **fields: Any) -> Job:
        return Job(
            task="measure",
            run=run_info,
            cells=tuple(cell for cell in plan_of(*overrides).cells if cell.model_name == "transformer"),
            records_path=tmp_path / "a.jsonl",
            states_dir=tmp_path / "states",
            parent_pid=os.getpid(),
            **fields,
        )

    return make


def measured(job: Job) -> list[Message]:
    """Measure every cell of a job in this process; return the messages."""
    sent: list[Message] = []
    requests = (MeasureCell(index=index, round=0) for index in range(len(job.cells)))
    tasks._measure(job, torch.device("cpu"), Surroundings({}), sent.append, requests)
    return sent


@pytest.mark.parametrize(
    ("status", "device", "capture_failed", "count"),
    [
        ("ok", "cpu", False, 2),
        ("unsupported", "cpu", False, 2),
        ("failed", "cpu", False, 1),
        ("oom", "cpu", False, 1),
        ("oom", "cuda:0", False, 2),
        ("oom", "cuda:0", True, 1),
        ("unsupported", "cuda:0", True, 1),
        ("ok", "cuda:0", True, 1),
    ],
)
def test_a_worker_ends_after_an_outcome_that_spoils_its_memory(
    measure_job: MeasureJob,
    monkeypatch: pytest.MonkeyPatch,
    status: Status,
    device: str,
    capture_failed: bool,
    count: int,
) -> None:
    job = measure_job("workloads.decode.context_len=[8,16]", gate=PASSED)
    settings = job.cells[0].settings.model_copy(update={"device": device})
    cells = tuple(cell.model_copy(update={"settings": settings}) for cell in job.cells)
    assert len(cells) == 2
    monkeypatch.setattr(
        tasks, "measure_ceilings", lambda *_: Ceilings(read_bandwidth_bytes_per_s=1, matmul_flops_per_s=1)
    )
    monkeypatch.setattr(tasks, "_measure_cell", lambda *_: Outcome(status, utc_now(), "why"))
    monkeypatch.setattr(tasks, "has_failed_capture", lambda: capture_failed)
    sent = measured(job.model_copy(update={"cells": cells}))
    assert [message.status for message in sent if isinstance(message, Done)] == [status] * count


PROMPT = "workloads={prefill={context_len=[8]}}"


def test_the_first_worker_of_a_run_measures_the_read_curve_and_later_ones_take_it_over(
    measure_job: MeasureJob,
) -> None:
    first = measure_job(PROMPT, gate=PASSED)
    (found,) = [message.ceilings for message in measured(first) if isinstance(message, Measured)]
    curve, best = found.read_curve, found.model_copy(update={"matmul_flops_per_s": 1e15})
    later = measured(first.model_copy(update={"ceilings": best, "round": 1}))
    assert not any(isinstance(message, Measured) for message in later)
    records, _ = read_records(first.records_path)
    assert [record.round for record in records] == [0, 0]
    for record in records:
        assert record.ceilings is not None
        others = set(record.ceilings.read_curve) - set(curve)
        assert [rate.footprint_bytes for rate in others] == [prefill_bytes(first.cells[0])]
        assert all(rate.measured_at for rate in record.ceilings.read_curve)


def test_a_product_rate_that_was_disturbed_is_that_of_the_best_worker(
    measure_job: MeasureJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate of a hundredth made the shares of a step a hundredfold."""
    rates = iter([2e9, 9e9, 1e9, 5e10])
    monkeypatch.setattr(ceilings, "_best_product_rate", lambda device, dtype: next(rates))
    job, known, sent = measure_job(PROMPT, gate=PASSED), None, []
    for number in range(3):
        messages = measured(job.model_copy(update={"ceilings": known, "round": number}))
        found = [message.ceilings for message in messages if isinstance(message, Measured)]
        sent.append(len(found))
        known = found[0] if found else known
    records, _ = read_records(job.records_path)
    counted = [record.ceilings.matmul_flops_per_s for record in records if record.ceilings]
    assert counted == [9e9, 9e9, 5e10]  # the first worker measures twice
    assert sent == [1, 0, 1]


def test_only_shares_of_a_ceiling_have_it_measured(
    measure_job: MeasureJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "measure_ceilings", lambda *_: pytest.fail("measured"))
    job = measure_job("workloads={memory={context_len=[8]}}", gate=PASSED)
    assert [message.status for message in measured(job) if isinstance(message, Done)] == ["ok"]
    (record,), _ = read_records(job.records_path)
    assert record.ceilings is None


def test_a_worker_without_a_gate_checks_its_model_first(
    measure_job: MeasureJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = measure_job(PROMPT)
    sent = measured(job)
    (checked,) = [message for message in sent if isinstance(message, Checked)]
    assert sent.index(checked) < min(sent.index(one) for one in sent if isinstance(one, Started))
    records, _ = read_records(job.records_path)
    assert [record.gate for record in records] == [checked.gate]
    monkeypatch.setattr(
        job_model, "check_equivalence", lambda *_, **__: PASSED.model_copy(update={"passed": False})
    )
    assert not any(isinstance(message, Started | Done) for message in measured(job))


@pytest.mark.parametrize("gate", [PASSED, None])
def test_the_first_cell_begins_without_what_the_build_left(
    measure_job: MeasureJob, monkeypatch: pytest.MonkeyPatch, gate: Gate | None
) -> None:
    done: list[str] = []
    build, check, outcome = job_model.build, job_model.check_gate, Outcome("ok", utc_now(), "")
    monkeypatch.setattr(job_model, "build", lambda *args: done.append("build") or build(*args))
    monkeypatch.setattr(job_model, "check_gate", lambda *args: done.append("check") or check(*args))
    monkeypatch.setattr(tasks, "free_memory", lambda device: done.append("free"))
    monkeypatch.setattr(tasks, "_measure_cell", lambda *_: done.append("cell") or outcome)
    measured(measure_job("workloads={memory={context_len=[8]}}", gate=gate))
    assert done == ["build", *["check"] * (gate is None), "free", "cell", "free"]


def test_progress_counts_every_token_and_is_sent_at_most_once_per_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = iter([100.0, 100.1, 101.0, 101.1, 101.9, 102.0])
    monkeypatch.setattr(tasks, "time", SimpleNamespace(monotonic=lambda: next(now_s)))
    sent: list[Message] = []
    progress = CellProgress(sent.append)
    for num_tokens in (5, 6, 7, 8, 9):
        progress(num_tokens)
    assert sent == [Advanced(num_tokens=11), Advanced(num_tokens=35)]


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
    assert message.startswith(f"{type(error).__name__} at test_tasks.py:")
    assert "\n" not in message


def test_a_value_that_is_no_number_is_reported_with_the_line_of_the_users_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = 'from retbench.records.record import Metric\n\n\nMetric(unit="s", value=float("nan"))\n'
    (tmp_path / "someones_chat.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entry = metadata.EntryPoint("chat", "someones_chat:WORKLOAD", WORKLOADS)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] if group == WORKLOADS else [])
    with pytest.raises(ValidationError) as caught:
        import_module("someones_chat")
    status, message = classify(caught.value)
    assert status == "failed"
    assert message.startswith("ValidationError at someones_chat.py:4: Metric: 'value' is nan")
