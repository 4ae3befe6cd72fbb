import time
from collections.abc import Callable
from pathlib import Path

import pytest

from retbench.planning.plan import Plan
from retbench.records.record import Status
from retbench.records.store import read_records
from retbench.running import events
from retbench.running.ledger import CellTimes, Ledger, Pair
from retbench.running.protocol import RunInfo
from tests.running.observer import Observer

Planner = Callable[..., Plan]


def make(plan: Plan, run_info: RunInfo, path: Path, done: dict[Pair, Status] | None = None) -> Ledger:
    return Ledger(plan, run_info, path, done or {}, Observer())


def test_what_is_on_disk_is_skipped(plan_of: Planner, run_info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of("rounds=3")
    cell = plan.cells[0]
    book = make(plan, run_info, tmp_path / "a.jsonl", {(cell.cell_id, 1): "ok", ("of another plan", 0): "ok"})
    assert (book.total, book.skipped) == (12, {"ok": 1})
    assert book.progress == events.RunProgress(1, 12, None)
    assert cell not in book.cell_order("retnet", 1)
    assert cell in book.cell_order("retnet", 0)


def test_cells_that_compile_come_after_those_that_do_not(
    plan_of: Planner, run_info: RunInfo, tmp_path: Path
) -> None:
    prompts = "workloads.prefill.context_len=[16, 32]"
    book = make(plan_of("rounds=4", prompts, "compile=true"), run_info, tmp_path / "a.jsonl")
    for number in range(4):
        found = [cell.workload for cell in book.cell_order("retnet", number)]
        assert found == ["prefill", "prefill", "decode", "decode"]
    eager = make(plan_of("rounds=20", prompts), run_info, tmp_path / "b.jsonl")
    assert {eager.cell_order("retnet", number)[0].workload for number in range(20)} == {"prefill", "decode"}


def test_orders_are_shuffled_by_seed_round_and_model(
    plan_of: Planner, run_info: RunInfo, tmp_path: Path
) -> None:
    lengths = "workloads.decode.context_len=[1,2,3,4,5,6,7,8]"
    plan = plan_of("rounds=4", lengths)
    book = make(plan, run_info, tmp_path / "a.jsonl")
    orders = [
        [cell.point.context_len for cell in book.cell_order(name, number)]
        for name in ("retnet", "transformer")
        for number in range(4)
    ]
    assert all(sorted(order) == list(range(1, 9)) for order in orders)
    assert len({tuple(order) for order in orders}) == 8
    again = make(plan, run_info, tmp_path / "a.jsonl")
    assert [cell.point.context_len for cell in again.cell_order("retnet", 0)] == orders[0]
    other = make(plan_of("rounds=4", lengths, "seed=1"), run_info, tmp_path / "a.jsonl")
    assert [cell.point.context_len for cell in other.cell_order("retnet", 0)] != orders[0]
    assert {tuple(book.model_order(number)) for number in range(4)} == {
        ("retnet", "transformer"),
        ("transformer", "retnet"),
    }


def test_cells_that_fill_the_memory_come_last_each_on_its_own_and_in_one_round(
    plan_of: Planner, run_info: RunInfo, tmp_path: Path
) -> None:
    plan = plan_of("rounds=2", "workloads.largest_batch.context_len=[8, 16]")
    assert plan.num_measurements == 2 * (2 * 2 + 2)
    book = make(plan, run_info, tmp_path / "a.jsonl")
    assert book.total == plan.num_measurements
    orders = []
    for number in range(2):
        while todo := book.cell_order("retnet", number):
            orders.append(sorted(cell.workload for cell in todo))
            for cell in todo:
                book.mark_done(cell, number, "ok", None)
    assert orders == [["decode"] * 2, ["largest_batch"], ["largest_batch"], ["decode"] * 2]


def test_the_pending_cells_keep_their_order(plan_of: Planner, run_info: RunInfo, tmp_path: Path) -> None:
    book = make(plan_of("workloads.decode.context_len=[1,2,3,4,5,6]"), run_info, tmp_path / "a.jsonl")
    before = book.cell_order("retnet", 0)
    book.mark_done(before[0], 0, "ok", None)
    book.mark_done(before[3], 0, "ok", None)
    assert book.cell_order("retnet", 0) == [*before[1:3], *before[4:]]


def test_a_refusal_is_recorded_for_every_round_left(
    plan_of: Planner, run_info: RunInfo, tmp_path: Path
) -> None:
    plan = plan_of("rounds=3")
    book = make(plan, run_info, tmp_path / "a.jsonl", {(plan.cells[0].cell_id, 1): "ok"})
    book.environment = {"machine": "box"}
    book.write_all_rounds(plan.cells[:2], "oom", "too large")
    records, problems = read_records(tmp_path)
    assert not problems
    assert sorted((record.point.context_len, record.round) for record in records) == [
        (64, 0),
        (64, 2),
        (128, 0),
        (128, 1),
        (128, 2),
    ]
    assert {(record.status, record.error, record.environment["machine"]) for record in records} == {
        ("oom", "too large", "box")
    }
    assert book.counts == {"oom": 5}
    assert book.pending("retnet") == []
    assert book.result(interrupted=False).path == tmp_path / "a.jsonl"


def test_a_worker_exit_does_not_replace_a_record_on_disk(
    plan_of: Planner, run_info: RunInfo, tmp_path: Path
) -> None:
    plan = plan_of("rounds=2")
    book = make(plan, run_info, tmp_path / "a.jsonl")
    book.write_failure(plan.cells[0], 0, "oom", "its own worker's record")
    late = make(plan, run_info, tmp_path / "a.jsonl")  # the worker ended before it could report
    late.write_worker_exit(plan.cells[0], 0, "failed", "the worker ended")
    late.write_worker_exit(plan.cells[0], 1, "failed", "the worker ended")
    records, _ = read_records(tmp_path)
    assert [(record.round, record.status) for record in records] == [(0, "oom"), (1, "failed")]
    assert late.counts == {"oom": 1, "failed": 1}


def test_a_record_that_was_written_before_an_interruption_counts(
    plan_of: Planner, run_info: RunInfo, tmp_path: Path
) -> None:
    plan = plan_of("rounds=2")
    make(plan, run_info, tmp_path / "a.jsonl").write_failure(plan.cells[0], 0, "oom", "of a worker")
    late = make(plan, run_info, tmp_path / "a.jsonl")  # interrupted before the worker could report
    late.note_written()
    late.note_written()
    assert late.result(interrupted=True).counts == {"oom": 1}
    assert late.progress.done == 1


def test_without_a_record_there_is_no_file(plan_of: Planner, run_info: RunInfo, tmp_path: Path) -> None:
    result = make(plan_of(), run_info, tmp_path / "a.jsonl").result(interrupted=True)
    assert result == events.RunSummary({}, {}, None, interrupted=True)


def test_time_left_follows_from_the_time_of_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = CellTimes()
    assert pace.seconds_for([("a", 0)]) is None
    for cell_id, took in (("a", 1.0), ("b", 5.0), ("a", 3.0)):
        now[0] += took
        pace.note(cell_id)
    assert pace.seconds_for([("a", 1), ("b", 1)]) == pytest.approx(2.0 + 5.0)
    assert pace.seconds_for([("new", 1)]) == pytest.approx(3.5)
    now[0] += 1000.0  # between two workers
    pace.restart()
    now[0] += 1.0
    pace.note("c")
    assert pace.seconds_for([("c", 0)]) == pytest.approx(1.0)
    assert pace.seconds_for([]) == 0


def test_the_exit_code_follows_from_the_outcome_of_a_run() -> None:
    from retbench.cli.run import exit_code

    assert exit_code(events.RunSummary({"ok": 2})) == 0
    assert exit_code(events.RunSummary({"ok": 2, "unsupported": 1})) == 3
    assert exit_code(events.RunSummary({"ok": 2, "unsupported": 1, "failed": 1})) == 1
    assert exit_code(events.RunSummary({"oom": 1})) == 0
    assert exit_code(events.RunSummary({}, {"ok": 2, "oom": 1})) == 0
