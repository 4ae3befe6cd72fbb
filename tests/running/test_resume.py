from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retbench.measure.environment import describe_environment, worker_environment
from retbench.measure.machine import memory_limit_bytes
from retbench.planning.cells import Cell
from retbench.planning.plan import Plan
from retbench.records.record import Status, utc_now
from retbench.records.store import append_record
from retbench.running import resume
from retbench.running.protocol import RunInfo
from retbench.running.recording import Outcome, Surroundings, code_of_cell, make_record
from retbench.running.resume import Identity, finished_pairs, identities_here, products_on_disk

Identities = dict[str, Identity]
VERSIONS = {"python": "3.11.7", "torch": "2.9.0", "numpy": "2"}
FACTS: dict[str, Any] = {
    "machine": "box",
    "node_id": "one",
    "code_revision": "0.1.0+src.aaa",
    "versions": {"python": "3.11.7", "torch": "2.9.0", "numpy": "2", "nvidia-ml-py": "13"},
    "memory_limit_bytes": memory_limit_bytes(),
    "variables": {"OMP_NUM_THREADS": "1", "OMP_PLACES": "{0}"},
}


@pytest.fixture
def cell(plan_of: Callable[..., Plan]) -> Cell:
    return plan_of().cells[0]


def identities_of(plan: Plan) -> Identities:
    return {
        cell.cell_id: {
            "machine": "box",
            "node_id": "one",
            "gpu_uuid": None,
            "cpu_quota": None,
            "variables": {"OMP_NUM_THREADS": "1"},
            "code_revision": "0.1.0+src.aaa",
            "versions": VERSIONS,
            **code_of_cell(cell),
        }
        for cell in plan.cells
    }


@pytest.fixture
def identities(plan_of: Callable[..., Plan]) -> Identities:
    return identities_of(plan_of())


def put(
    path: Path, run_info: RunInfo, cell: Cell, number: int, status: Status, facts: dict[str, Any] = FACTS
) -> None:
    outcome = Outcome(status, utc_now(), None if status == "ok" else "why")
    append_record(path, make_record(run_info, cell, number, outcome, Surroundings(facts)))


@pytest.mark.parametrize(
    ("status", "finished"),
    [
        ("ok", True),
        ("oom", True),
        ("unsupported", False),
        ("failed", False),
        ("timeout", False),
        ("gate_failed", False),
    ],
)
def test_what_another_try_would_only_repeat_is_finished(
    tmp_path: Path, run_info: RunInfo, cell: Cell, identities: Identities, status: Status, finished: bool
) -> None:
    put(tmp_path / "a.jsonl", run_info, cell, 2, status)
    assert finished_pairs(tmp_path, [cell], identities) == ({(cell.cell_id, 2): status} if finished else {})


@pytest.mark.parametrize(
    ("met", "finished"),
    [
        ({"memory_limit_bytes": memory_limit_bytes() + 1}, True),
        ({"memory_limit_bytes": memory_limit_bytes() - 1}, False),
        ({"memory_limit_bytes": None}, False),
        ({"memory_limit_bytes": "4 GB"}, False),
        ({"gpu": {"memory_bytes": 80, "free_bytes": 79}}, True),
        ({"gpu": {"memory_bytes": 80, "free_bytes": 20}}, False),
        ({"gpu": {"memory_bytes": 80, "free_bytes": None}}, True),
        ({"gpu": "none"}, True),
    ],
)
def test_out_of_memory_is_final_only_under_the_same_or_a_smaller_limit(
    tmp_path: Path,
    run_info: RunInfo,
    cell: Cell,
    identities: Identities,
    met: dict[str, Any],
    finished: bool,
) -> None:
    put(tmp_path / "a.jsonl", run_info, cell, 0, "oom", FACTS | met)
    assert bool(finished_pairs(tmp_path, [cell], identities)) == finished


def test_only_the_runs_of_a_fresh_command_count(
    tmp_path: Path, run_info: RunInfo, cell: Cell, identities: Identities
) -> None:
    put(tmp_path / "a.jsonl", run_info, cell, 0, "ok")
    put(tmp_path / "b.jsonl", run_info.model_copy(update={"run_id": "run-2"}), cell, 1, "ok")
    assert set(finished_pairs(tmp_path, [cell], identities, {"run-2"})) == {(cell.cell_id, 1)}


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "other"},
        {"code_revision": "0.1.0+src.bbb"},
        {"versions": {"python": "3.12.0", "torch": "2.9.0", "numpy": "2"}},
        {"versions": {"python": "3.11.7", "torch": "2.10.0", "numpy": "2"}},
        {"versions": {"python": "3.11.7", "torch": "2.9.0", "numpy": "2", "triton": "3.6"}},
        {"versions": {}},
        {"versions": None},
        {"machine": None},
        {"node_id": "two"},
        {"gpu_uuid": "GPU-1"},
    ],
)
def test_a_record_of_other_code_versions_or_machine_does_not_count(
    tmp_path: Path, run_info: RunInfo, cell: Cell, identities: Identities, change: dict[str, Any]
) -> None:
    put(tmp_path / "a.jsonl", run_info, cell, 0, "ok", FACTS | change)
    assert finished_pairs(tmp_path, [cell], identities) == {}


@pytest.mark.parametrize("part", ["model_code", "workload_code"])
def test_a_record_of_other_model_or_workload_code_does_not_count(
    tmp_path: Path, run_info: RunInfo, cell: Cell, identities: Identities, part: str
) -> None:
    put(tmp_path / "a.jsonl", run_info, cell, 0, "ok")
    assert finished_pairs(tmp_path, [cell], identities) == {(cell.cell_id, 0): "ok"}
    identities[cell.cell_id] |= {part: "another"}
    assert finished_pairs(tmp_path, [cell], identities) == {}


def test_a_record_made_beside_other_models_counts(
    tmp_path: Path, plan_of: Callable[..., Plan], run_info: RunInfo
) -> None:
    """The Transformer is the same beside another RetNet."""
    other = plan_of("models.retnet.variant=torchscale")
    cell = next(cell for cell in other.cells if cell.model_name == "transformer")
    assert cell in plan_of().cells
    put(tmp_path / "a.jsonl", run_info, cell, 0, "ok")
    for plan in (plan_of(), other):
        assert finished_pairs(tmp_path, [cell], identities_of(plan)) == {(cell.cell_id, 0): "ok"}


def test_the_identity_here_is_what_a_record_of_now_states(
    tmp_path: Path,
    plan_of: Callable[..., Plan],
    run_info: RunInfo,
    cell: Cell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in worker_environment(cell.settings.threads, "cpu").items():
        monkeypatch.setenv(name, value)
    facts = describe_environment("cpu", 1)
    put(tmp_path / "a.jsonl", run_info, cell, 0, "ok", facts)
    assert finished_pairs(tmp_path, [cell], identities_here(plan_of().cells)) == {(cell.cell_id, 0): "ok"}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert finished_pairs(tmp_path, [cell], identities_here(plan_of().cells)) == {}


BUSY = {"load_average": [9.0, 1.0, 1.0], "physical_cores": 2}
QUIET = {"load_average": [1.0, 9.0, 9.0], "physical_cores": 2}


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({}, True),
        (QUIET, True),
        ({"code_revision": "0.1.0+src.bbb"}, True),
        ({"trials_code": "another"}, False),
        ({"node_id": "another"}, False),
        ({"versions": {**VERSIONS, "torch": "2.10.0"}}, False),
        ({"variables": {"OMP_NUM_THREADS": "2"}}, False),
        ({"cpu_quota": 1.5}, False),
        (BUSY, False),
    ],
)
def test_other_runs_multiply_as_the_latest_on_a_quiet_machine_did(
    tmp_path: Path,
    run_info: RunInfo,
    cell: Cell,
    identities: Identities,
    changed: dict[str, Any],
    holds: bool,
) -> None:
    assert products_on_disk(tmp_path, identities, "trials") == {}
    del identities[cell.cell_id]
    first = FACTS | {"trials_code": "trials", "products": {"batches": 0, "slice_width": 1}}
    put(tmp_path / "a" / "z.jsonl", run_info, cell, 0, "ok", first)
    latest = FACTS | {"trials_code": "trials", "products": {"batches": 1}} | changed
    put(tmp_path / "b" / "a.jsonl", run_info, cell, 0, "ok", latest)
    put(tmp_path / "b" / "b.jsonl", run_info, cell, 1, "failed")  # of a worker that ended: no outcomes
    assert products_on_disk(tmp_path, identities, "trials") == {"batches": int(holds), "slice_width": 1}


def test_outcomes_that_are_dated_in_the_future_are_the_oldest(
    tmp_path: Path, run_info: RunInfo, cell: Cell, identities: Identities
) -> None:
    del identities[cell.cell_id]
    for date, outcome in ((utc_now(), 0), ("2999-01-01T00:00:00Z", 1)):
        facts = FACTS | {"trials_code": "trials", "products": {"batches": outcome}}
        record = make_record(run_info, cell, 0, Outcome("ok", date), Surroundings(facts))
        append_record(tmp_path / "a.jsonl", record)
    assert products_on_disk(tmp_path, identities, "trials") == {"batches": 0}


def test_later_rounds_multiply_as_earlier_ones_of_their_cells_did(
    tmp_path: Path, run_info: RunInfo, plan_of: Callable[..., Plan], identities: Identities
) -> None:
    own, other = plan_of().cells[:2]
    del identities[other.cell_id]
    facts = FACTS | {"trials_code": "trials"}
    put(tmp_path / "a.jsonl", run_info, own, 0, "ok", facts | BUSY | {"products": {"batches": 1}})
    latest = facts | {"products": {"batches": 0, "slice_width": 1}}
    put(tmp_path / "b.jsonl", run_info, other, 0, "ok", latest)
    assert products_on_disk(tmp_path, identities, "trials") == {"batches": 1, "slice_width": 1}
    assert products_on_disk(tmp_path, identities, "another") == {"batches": 1}


def test_every_run_s_file_counts_and_torn_lines_do_not(
    tmp_path: Path, run_info: RunInfo, cell: Cell, identities: Identities
) -> None:
    put(tmp_path / "a.jsonl", run_info, cell, 0, "ok")
    put(tmp_path / "b.jsonl", run_info, cell, 1, "ok")
    with open(tmp_path / "b.jsonl", "ab") as file:
        whole = (tmp_path / "a.jsonl").read_bytes()
        file.write(whole[: len(whole) // 2])
    assert finished_pairs(tmp_path, [cell], identities) == {(cell.cell_id, 0): "ok", (cell.cell_id, 1): "ok"}
    assert finished_pairs(tmp_path / "not there", [cell], identities) == {}


def test_a_round_that_was_interrupted_between_two_models_is_measured_again_of_both(
    tmp_path: Path, run_info: RunInfo, plan_of: Callable[..., Plan]
) -> None:
    plan = plan_of()
    identities, path = identities_of(plan), tmp_path / "a.jsonl"
    first = plan.cells[0]
    (other,) = (
        cell
        for cell in plan.cells
        if cell.model_name != first.model_name
        and (cell.workload, cell.point) == (first.workload, first.point)
    )

    def finished() -> set[tuple[str, int]]:
        return set(finished_pairs(tmp_path, [first, other], identities))

    put(path, run_info, first, 0, "ok")
    assert finished() == set()
    put(path, run_info, other, 0, "ok")
    whole = {(first.cell_id, 0), (other.cell_id, 0)}
    assert finished() == whole
    put(path, run_info, first, 1, "ok")
    assert finished() == whole
    put(path, run_info, other, 1, "failed")  # it is tried again, and the model that has a value is not
    assert finished() == whole | {(first.cell_id, 1)}


def test_the_rounds_of_the_other_models_stay_where_a_model_is_added(
    tmp_path: Path, run_info: RunInfo, plan_of: Callable[..., Plan]
) -> None:
    plan = plan_of()
    first, identities = plan.cells[0], identities_of(plan)
    for number in range(3):
        put(tmp_path / "a.jsonl", run_info, first, number, "ok")
    others = [cell for cell in plan.cells if cell.point == first.point and cell.workload == first.workload]
    assert len(others) > 1
    assert set(finished_pairs(tmp_path, others, identities)) == {(first.cell_id, 0), (first.cell_id, 1)}


def test_quality_does_not_depend_on_the_node(
    tmp_path: Path, run_info: RunInfo, cell: Cell, identities: Identities
) -> None:
    scored = cell.model_copy(update={"workload": "zeroshot"})
    identity = {name: value for name, value in identities[cell.cell_id].items() if "_id" not in name}
    for name in ("gpu_uuid", "cpu_quota", "variables"):
        del identity[name]
    put(tmp_path / "a.jsonl", run_info, scored, 0, "ok", FACTS | {"node_id": "two"})
    known = {scored.cell_id: identity | code_of_cell(scored)}
    assert finished_pairs(tmp_path, [scored], known) == {(scored.cell_id, 0): "ok"}


def test_a_gpu_is_identified_as_its_records_state_it(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = plan_of().cells[0]
    on_gpu = cell.model_copy(update={"settings": cell.settings.model_copy(update={"device": "cuda:1"})})
    monkeypatch.setattr(resume.environment, "machine_name", lambda device: "a-gpu-x2")
    monkeypatch.setattr(resume, "device_uuid", lambda device: f"slice of {device}")
    monkeypatch.setattr(resume.nvml, "board_uuid", lambda uuid: f"GPU of {uuid}")
    assert identities_here([on_gpu])[on_gpu.cell_id]["gpu_uuid"] == "GPU of slice of cuda:1"
