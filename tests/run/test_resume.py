import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retbench.planning.cells import Cell
from retbench.planning.plan import Plan
from retbench.records.record import Status, append_record, utc_now
from retbench.run.protocol import RunInfo
from retbench.run.recording import Outcome, Surroundings, make_record
from retbench.run.resume import Identity, finished_pairs, recorded_status

HERE = Identity("box", "0.1.0+src.aaa", {"python": "3.11.7", "torch": "2.9.0", "numpy": "2"})
FACTS: dict[str, Any] = {
    "machine": "box",
    "code_revision": "0.1.0+src.aaa",
    "versions": {"python": "3.11.7", "torch": "2.9.0", "numpy": "2", "nvidia-ml-py": "13"},
}


@pytest.fixture
def cell(plan_of: Callable[..., Plan]) -> Cell:
    return plan_of().cells[0]


@pytest.fixture
def pairs(plan_of: Callable[..., Plan]) -> dict[str, str]:
    return plan_of().pair_ids


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
    tmp_path: Path, run_info: RunInfo, cell: Cell, pairs: dict[str, str], status: Status, finished: bool
) -> None:
    put(tmp_path / "a.jsonl", run_info, cell, 2, status)
    assert finished_pairs(tmp_path, HERE, pairs) == ({(cell.cell_id, 2): status} if finished else {})


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
    ],
)
def test_a_record_of_other_code_versions_or_machine_does_not_count(
    tmp_path: Path, run_info: RunInfo, cell: Cell, pairs: dict[str, str], change: dict[str, Any]
) -> None:
    put(tmp_path / "a.jsonl", run_info, cell, 0, "ok", FACTS | change)
    assert finished_pairs(tmp_path, HERE, pairs) == {}


def test_a_record_made_beside_other_models_does_not_count(
    tmp_path: Path, plan_of: Callable[..., Plan], run_info: RunInfo
) -> None:
    """The Transformer is the same beside another RetNet, and no table would show the two records together."""
    other = plan_of("models.retnet.variant=torchscale")
    cell = next(cell for cell in other.cells if cell.model_name == "transformer")
    assert cell in plan_of().cells
    put(tmp_path / "a.jsonl", run_info, cell, 0, "ok")
    assert finished_pairs(tmp_path, HERE, plan_of().pair_ids) == {(cell.cell_id, 0): "ok"}
    assert finished_pairs(tmp_path, HERE, other.pair_ids) == {}


def test_every_run_s_file_counts_and_torn_lines_do_not(
    tmp_path: Path, run_info: RunInfo, cell: Cell, pairs: dict[str, str]
) -> None:
    put(tmp_path / "a.jsonl", run_info, cell, 0, "ok")
    put(tmp_path / "b.jsonl", run_info, cell, 1, "ok")
    with open(tmp_path / "b.jsonl", "ab") as file:
        whole = (tmp_path / "a.jsonl").read_bytes()
        file.write(whole[: len(whole) // 2])
    assert finished_pairs(tmp_path, HERE, pairs) == {(cell.cell_id, 0): "ok", (cell.cell_id, 1): "ok"}
    assert finished_pairs(tmp_path / "not there", HERE, pairs) == {}


def test_the_latest_status_in_a_file_is_found(tmp_path: Path, run_info: RunInfo, cell: Cell) -> None:
    path = tmp_path / "a.jsonl"
    assert recorded_status(path, cell.cell_id, 0) is None
    put(path, run_info, cell, 0, "failed")
    put(path, run_info, cell, 0, "ok")
    assert recorded_status(path, cell.cell_id, 0) == "ok"
    assert recorded_status(path, cell.cell_id, 1) is None
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
