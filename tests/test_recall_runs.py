"""A small public checkpoint recalls: SmolLM2-135M through three workloads, by the commands that a user types."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retbench.evaluation.ruler import missing_packages
from retbench.records.record import Record
from retbench.records.store import read_records

FOLDER = os.environ.get("RETBENCH_SMOLLM2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.peers,
    pytest.mark.skipif(
        not FOLDER,
        reason="RETBENCH_SMOLLM2 is not set: a folder with SmolLM2-135M as save_pretrained writes it",
    ),
]


def measure(folder: Path, experiment: str, *options: str) -> tuple[dict[str, float], Record]:
    """Run the smoke profile with the checkpoint in place of the experiment's models; return its only record."""
    words = ["run", experiment, "--profile", "smoke", "--device", "cpu", "--model", str(FOLDER), *options]
    done = subprocess.run(
        [sys.executable, "-m", "retbench", *words],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    records, problems = read_records(folder / "results")
    assert not problems
    (record,) = [record for record in records if record.experiment == experiment]
    assert record.status == "ok", record.error
    assert Path(str(FOLDER)).name in done.stdout
    return {name: metric.value for name, metric in record.metrics.items()}, record


def test_a_pair_that_came_before_costs_less(tmp_path: Path) -> None:
    found, _ = measure(tmp_path, "recall_slices", "--limit", "2")
    assert found["hit_gain_nats"] > 0.5
    assert found["hit_nats"] < found["first_nats"]
    assert found["second_copy_bits_per_byte"] < 0.5 * found["first_copy_bits_per_byte"]


def test_a_number_is_found_at_every_depth(tmp_path: Path) -> None:
    wanted = 'haystacks=["noise"]', "context_len=[512]", "num_depths=3", "limit=2"
    options = [word for item in wanted for word in ("--set", f"workloads.needle.{item}")]
    found, record = measure(tmp_path, "needle", *options)
    assert found["contains"] >= 0.8
    assert record.series["contains_by_depth"].x == (0, 50, 100)


@pytest.mark.skipif(bool(missing_packages()), reason="the extra recall is not installed")
def test_lm_evals_needle_is_found(tmp_path: Path) -> None:
    found, record = measure(tmp_path, "recall_tasks", "--set", "workloads.zeroshot.context_len=512")
    assert found["contains"] == 1
    assert (found["num_documents"], found["num_truncated"]) == (2, 0)
    assert record.backend["data_source"] == "generated"
