"""A model of transformers through a whole run: checked, measured, and recorded with what is not defined for it."""

import os
from importlib import metadata
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from retbench.architectures.recorded import read_config
from retbench.measure.environment import code_revision, describe_environment
from retbench.planning.plan import Plan, make_plan
from retbench.records.record import Record
from retbench.report.results import load_results
from retbench.running import tasks
from retbench.running.protocol import Checked, Job, MeasureCell, Message, RunInfo, Streamed
from retbench.running.recording import Surroundings
from retbench.running.runner import run_plan
from retbench.workloads.workload import code_of_parts
from tests.conftest import KNOWN_CEILINGS
from tests.models.hf_models import save_hf_model
from tests.running.observer import Observer

pytestmark = pytest.mark.peers
pytest.importorskip("transformers")


EXPERIMENT = """title = "Tiny"
source = "none"
expect = "It runs."
[models.retnet]
architecture = "retnet"
[profiles.smoke]
size = "1m"
rounds = 1
warmup_s = 0.0
min_steps = 2
threads = 1
[profiles.smoke.workloads]
"""
TIMED = """decode = {context_len = [64], batch_size = [2]}
prefill = {context_len = [64]}
memory = {context_len = [64]}
"""
UNMATCHED = "the model is not matched, and its costs are measured only"
LARGEST_BATCH = "largest_batch = {context_len = [64]}\n"


def plan_of(folder: Path, model: Path, name: str, workloads: str, *overrides: str) -> Plan:
    experiment = folder / f"{name}.toml"
    experiment.write_text(EXPERIMENT + workloads, encoding="utf-8")
    return make_plan(
        str(experiment), profile="smoke", device="cpu", overrides=overrides, checkpoints=[str(model)]
    )


def work_on(plan: Plan, folder: Path) -> bool:
    """Do the work of both workers of a plan of one model in this process, which has loaded transformers.

    Returns:
        Whether a state was streamed.
    """
    device = torch.device("cpu")
    run = RunInfo(run_id="r", experiment="own", profile="smoke", command="", code_revision=code_revision())
    job = Job(
        task="prepare",
        run=run,
        cells=plan.cells,
        records_path=folder / "out" / "records.jsonl",
        states_dir=folder / "states",
        ceilings=KNOWN_CEILINGS,
        parent_pid=os.getpid(),
    )
    (folder / "out").mkdir(exist_ok=True)
    sent: list[Message] = []
    tasks._prepare(job, device, tasks._store(job), sent.append)
    gate = next(message.gate for message in sent if isinstance(message, Checked))
    measuring = job.model_copy(update={"task": "measure", "gate": gate})
    requests = (MeasureCell(index=index, round=0) for index in range(len(plan.cells)))
    surroundings = Surroundings(describe_environment(device, 1))
    tasks._measure(measuring, device, surroundings, sent.append, requests)
    return any(isinstance(message, Streamed) for message in sent)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a model with a cache of windows and of one with a fixed state, by name."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save_hf_model(name, folder / name) for name in ("mistral", "mamba")}


def records_in(folder: Path) -> dict[tuple[str, str], Record]:
    """Return records by model and workload."""
    return {(one.model.name, one.workload): one for one in load_results(folder / "out").records}


@pytest.fixture(scope="module")
def records(
    given_products: None, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Record]:
    """Records of both models. Each process takes seconds to load transformers, so this one measures them."""
    folder = tmp_path_factory.mktemp("own")
    streamed = {name: work_on(plan_of(folder, model, name, TIMED), folder) for name, model in models.items()}
    assert streamed == {"mistral": False, "mamba": True}
    return records_in(folder)


def test_every_cell_has_a_value(records: dict[tuple[str, str], Record]) -> None:
    assert len(records) == 6
    assert {record.status: record.error for record in records.values()} == {"ok": None}
    assert all(record.gate is not None and record.gate.passed for record in records.values())


@pytest.mark.slow
@pytest.mark.usefixtures("given_products", "given_ceilings")
def test_a_run_measures_the_same_and_finds_the_largest_batch(models: dict[str, Path], tmp_path: Path) -> None:
    """`tests/models/test_hf_model.py` takes the step of a trial with every model."""
    workloads = TIMED + LARGEST_BATCH
    plan = plan_of(tmp_path, models["mistral"], "run", workloads, "memory_limit_bytes=50_000_000")
    assert run_plan(plan, tmp_path / "out", fresh=False, notify=Observer()).counts == {"ok": 4}
    records = records_in(tmp_path)
    assert all(record.gate is not None and record.gate.passed for record in records.values())
    batch = records["mistral", "largest_batch"]
    found = {key: one.value for key, one in batch.metrics.items()}
    state_bytes = records["mistral", "memory"].metrics["state_bytes"].value
    assert 1 <= found["largest_batch"] <= found["memory_limit_bytes"] / state_bytes
    assert batch.absent["expected_largest_batch"] == UNMATCHED


def test_analytical_costs_are_absent_with_the_reason(records: dict[tuple[str, str], Record]) -> None:
    missing = {
        "decode": {"bytes_per_step", "flops_per_step", "roofline_ratio", "bandwidth_ratio"},
        "prefill": {"bytes_per_call", "flops_per_call", "roofline_ratio"},
        "memory": {"expected_weight_bytes", "expected_state_bytes"},
    }
    for (_, workload), record in records.items():
        reasons = {record.absent[name] for name in missing[workload]}
        assert reasons == {UNMATCHED}
        assert not missing[workload] & record.metrics.keys()


def test_the_record_states_what_ran(records: dict[tuple[str, str], Record]) -> None:
    decode = records["mistral", "decode"]
    assert decode.backend["decode"] == "transformers:sdpa"
    assert decode.backend["state_source"] == "filled"
    assert records["mamba", "decode"].backend["state_source"] == (
        "streamed prefill of real text, one sequence repeated"
    )
    assert decode.model.weights is not None
    assert decode.model.weights.format == "hf"


def test_the_version_of_transformers_is_part_of_the_model_s_code(
    records: dict[tuple[str, str], Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run continues, and rounds are pooled, with one version only."""
    record = records["mistral", "decode"]
    assert record.environment["model_code"].endswith(f", transformers {version('transformers')}")
    config = read_config(record.model)
    assert config is not None
    assert code_of_parts(config, "decode")["model_code"] == record.environment["model_code"]
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    assert code_of_parts(config, "decode")["model_code"].endswith(", transformers 1.0")


def test_bytes_are_measured(records: dict[tuple[str, str], Record]) -> None:
    for name in ("mistral", "mamba"):
        record = records[name, "memory"]
        assert record.metrics["weight_bytes"].value == 4 * record.model.num_params
        assert record.metrics["state_bytes"].value > 0
