"""The smoke profile of every shipped experiment, by the commands that a user types, into one folder of results."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from retbench.config.evaluation import ZeroshotSpec
from retbench.config.experiment_files import list_experiments, load_experiment
from retbench.evaluation.ruler import missing_packages
from retbench.evaluation.task_entries import TASKS
from retbench.planning.plan import Plan, make_plan
from retbench.records.record import Record
from retbench.records.store import read_records
from tests.checkpoints.stored import (
    FLA,
    GLA,
    LLAMA,
    write_fla_gla,
    write_fla_retnet,
    write_fla_transformer,
)

pytestmark = pytest.mark.slow

DATA = os.environ.get("RETBENCH_DATA")
FROM_HUB = [
    name
    for name in list_experiments()
    if any(spec.checkpoint for spec in load_experiment(name).models.values())
]
HERE = [name for name in list_experiments() if name not in FROM_HUB]


def missing_for(name: str) -> str:
    """Return what a smoke profile's tasks lack here: files, which are part of no package, or the extra `recall`."""
    spec = load_experiment(name).profile("smoke").workloads.specs.get("zeroshot")
    if not isinstance(spec, ZeroshotSpec):
        return ""
    if any(TASKS[task].is_generated for task in spec.tasks):
        return missing_packages()
    return "" if DATA else "RETBENCH_DATA is not set: the folder of task files"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder in which all commands run; nothing is fetched from the hub."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("smoke")
        patch.setenv("RETBENCH_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


def retbench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One command."""
    command = [sys.executable, "-m", "retbench", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def succeed(folder: Path, *words: str) -> str:
    """Run a command, which must succeed, and return what it printed."""
    done = retbench(folder, *words)
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def run_smoke(folder: Path, name: str, *overrides: str) -> None:
    """Train what an experiment measures, measure it, and find every cell of its plan in the records."""
    profile = load_experiment(name).profile("smoke")
    origin = profile.trained_by or (f"{name}/smoke" if profile.training else None)
    if origin:
        trained_in, _, trained_as = origin.partition("/")
        succeed(folder, "train", trained_in, "--profile", trained_as, "--device", "cpu")
    options = [f"--set={item}" for item in overrides]
    printed = succeed(folder, "run", name, "--profile", "smoke", "--device", "cpu", *options)
    assert "\n| retnet" in printed or "\n| corpus |" in printed or "\n| task |" in printed
    assert "not compared" not in printed
    check_records(plan_of(folder, name, overrides), folder / "results")
    assert all(model in succeed(folder, "table", name) for model in load_experiment(name).models)


def plan_of(folder: Path, name: str, overrides: tuple[str, ...]) -> Plan:
    """The plan that the command made."""
    return make_plan(name, profile="smoke", device="cpu", overrides=overrides, results=folder / "results")


def check_records(plan: Plan, results: Path) -> None:
    """Every cell has its record in every round: a result, or the end of a memory that the plan limits."""
    records, problems = read_records(results)
    assert not problems
    found: dict[tuple[str, int], Record] = {(one.cell_id, one.round): one for one in records}
    for cell in plan.cells:
        allowed = {"ok"} if cell.settings.memory_limit_bytes is None else {"ok", "oom"}
        for number in range(plan.rounds_of(cell)):
            record = found[cell.cell_id, number]
            assert record.status in allowed, record.error
            assert record.metrics or record.status == "oom"


@pytest.mark.parametrize("name", HERE)
def test_the_smoke_profile_of_an_experiment_runs(folder: Path, name: str) -> None:
    if reason := missing_for(name):
        pytest.skip(reason)
    run_smoke(folder, name)


def test_recall_against_distance_is_drawn_of_what_ran(folder: Path) -> None:
    run_smoke(folder, "mqar")
    (results,) = [path for path in (folder / "results").glob("*/mqar") if path.parent.name != "checkpoints"]
    succeed(folder, "report", "--results", str(results), "--out", "recall")
    data = pd.read_csv(folder / "recall/figures/mqar_mqar_mqar_32_4_distance.csv")
    assert set(data["model"]) == set(load_experiment("mqar").models)
    assert set(data["distance_tokens"]) == {4, 8, 16, 32}
    assert data["value"].between(0, 1).all()
    assert (data["low"] <= data["value"]).all(), "of a single seed the interval over examples"


@pytest.mark.parametrize("name", FROM_HUB)
def test_weights_of_the_hub_are_refused_where_it_cannot_be_reached(folder: Path, name: str) -> None:
    done = retbench(folder, "run", name, "--profile", "smoke", "--device", "cpu", "--out", "nothing")
    assert done.returncode == 3
    said = " ".join(done.stderr.split())
    assert "the hub cannot be reached" in said
    assert "hf download fla-hub/" in said  # what to do about it
    assert not (folder / "nothing").exists()


@pytest.mark.parametrize("name", FROM_HUB)
@pytest.mark.skipif(not DATA, reason="RETBENCH_DATA is not set: the folder of task files")
def test_the_same_experiment_runs_on_weights_of_the_same_formats(folder: Path, name: str) -> None:
    of_bytes = {"vocab_size": 257}
    write_fla_retnet(folder / "retnet", FLA.model_copy(update=of_bytes))
    write_fla_transformer(folder / "transformer", LLAMA.model_copy(update=of_bytes))
    write_fla_gla(folder / "gla", GLA.model_copy(update=of_bytes))
    local = [f"models.{model}.checkpoint={folder / model}" for model in ("retnet", "transformer", "gla")]
    run_smoke(folder, name, *local, "workloads.zeroshot.tokenizer=bytes")


def test_report_and_claims_are_made_of_all_that_ran(folder: Path) -> None:
    run_smoke(folder, "memory")  # so that there is something, whichever tests were chosen
    succeed(folder, "report")
    assert (folder / "reports/index.html").is_file()
    assert "memory" in (folder / "reports/report.md").read_text(encoding="utf-8")
    claims = json.loads(succeed(folder, "claims", "--format", "json"))["claims"]
    decided = {claim["name"]: claim["verdict"] for claim in claims if claim["verdict"] != "not_testable"}
    # Small models on a CPU decide nothing but what holds at any size.
    assert decided == {"equal_forms": "reproduced"}
