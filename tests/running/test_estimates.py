import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from retbench.architectures import costs
from retbench.cli import app
from retbench.errors import UnsupportedError
from retbench.planning.plan import Plan, make_plan
from retbench.records.record import Ceilings
from retbench.running import estimates
from retbench.running.estimates import CellEstimate, estimate, estimate_with
from retbench.running.locks import LOCK_DIR_VARIABLE
from retbench.running.protocol import Failed
from retbench.workloads.metrics import EFFICIENCY
from tests.conftest import TINY_EXPERIMENT

CEILINGS = Ceilings(read_bandwidth_bytes_per_s=10e9, matmul_flops_per_s=100e9)


def make(name: object, **changes: Any) -> Plan:
    return make_plan(str(name), **{"profile": "smoke", "device": "cpu", **changes})


def test_an_estimate_grows_with_what_is_to_be_done(tiny_experiment: Path) -> None:
    lengths = "workloads.decode.context_len=[4096, 32768]"
    found = {
        (one.cell.model_name, one.cell.point.context_len): one
        for one in estimate_with(make(tiny_experiment, overrides=[lengths, "rounds=2"]), CEILINGS)
    }
    assert len(found) == 4
    assert found["transformer", 32768].memory_bytes > found["transformer", 4096].memory_bytes
    assert found["retnet", 32768].memory_bytes == found["retnet", 4096].memory_bytes
    assert found["transformer", 32768].seconds > found["transformer", 4096].seconds
    deepest = found["retnet", 32768].cell
    streamed_s = costs.prefill_flops(deepest.model, 1, 32768, "chunkwise", 128) / CEILINGS.matmul_flops_per_s
    assert found["retnet", 32768].seconds - found["retnet", 4096].seconds > streamed_s
    more = estimate_with(make(tiny_experiment, overrides=[lengths, "rounds=4"]), CEILINGS)
    assert sum(one.seconds for one in more) > sum(one.seconds for one in found.values())


def test_an_estimate_counts_one_streamed_sequence_whatever_the_batch(tiny_experiment: Path) -> None:
    batches = ["workloads.decode.context_len=[32768]", "workloads.decode.batch_size=[1, 2]", "min_steps=1"]
    one, two = [
        item
        for item in estimate_with(make(tiny_experiment, overrides=batches), CEILINGS)
        if item.cell.model_name == "retnet"
    ]
    streamed_s = (
        costs.prefill_flops(one.cell.model, 1, 32768, "chunkwise", 128)
        / CEILINGS.matmul_flops_per_s
        / EFFICIENCY
    )
    assert abs(one.seconds - two.seconds) == pytest.approx(streamed_s, rel=0.05)


def test_an_estimate_of_the_largest_batch_is_of_all_the_memory(tiny_experiment: Path) -> None:
    found = {}
    for limit in (10**8, 10**9):
        search = ["workloads.largest_batch.context_len=[4096]", f"memory_limit_bytes={limit}"]
        for item in estimate_with(make(tiny_experiment, overrides=search), CEILINGS):
            if item.cell.workload == "largest_batch":
                found[item.cell.model_name, limit] = item
    for name in ("retnet", "transformer"):
        less, more = found[name, 10**8], found[name, 10**9]
        assert less.cell.point.batch_size == more.cell.point.batch_size == 1
        assert 0.9 * 10**9 < more.memory_bytes < 1.2 * 10**9
        assert more.seconds > less.seconds


def test_an_estimate_of_training_tells_square_from_linear() -> None:
    lengths = "workloads.training.context_len=[2048, 8192]"

    def grown(*overrides: str) -> dict[str, float]:
        found = estimate_with(make("training_cost", overrides=[lengths, *overrides]), CEILINGS)
        assert all(one.seconds > 0 for one in found)
        by_point = {(one.cell.model_name, one.cell.point.context_len): one.memory_bytes for one in found}
        return {name: by_point[name, 8192] / by_point[name, 2048] for name, _ in by_point}

    ratios = grown()
    assert max(ratios["retnet_chunkwise"], ratios["transformer_fused"]) <= 4
    assert min(ratios["retnet_parallel"], ratios["transformer_plain"]) > 8
    few, many = (
        estimate_with(make("training_cost", overrides=[f"activation_checkpointing={value}"]), CEILINGS)[
            0
        ].memory_bytes
        for value in ("true", "false")
    )
    assert few < many


@dataclass(frozen=True)
class DryRun:
    """A dry run of the small experiment: what the command showed, and the estimate that it shows."""

    shown: Result
    found: list[CellEstimate]

    def rows(self, model: str) -> list[str]:
        return [line for line in self.shown.stdout.splitlines() if line.startswith(f"| {model}")]


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    """With a Transformer that cannot run here, and less memory than the RetNet needs; it measures the machine."""
    folder = tmp_path_factory.mktemp("dry")
    (folder / "tiny.toml").write_text(TINY_EXPERIMENT, encoding="utf-8")
    found: list[CellEstimate] = []

    def keep(plan: Plan) -> list[CellEstimate]:
        found.extend(estimate(plan))
        return found

    words = ["run", str(folder / "tiny.toml"), "--profile", "smoke", "--device", "cpu", "--dry-run"]
    for override in ("models.transformer.backend=flash", "memory_limit_bytes=1024"):
        words += ["--set", override]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOCK_DIR_VARIABLE, str(folder / "lock"))
        patch.setattr(estimates, "estimate", keep)
        return DryRun(CliRunner().invoke(app, words), found)


def test_an_estimate_measures_the_machine_and_says_which_models_cannot_run_on_it(dry_run: DryRun) -> None:
    assert all(one.seconds > 0 and one.memory_bytes > 0 for one in dry_run.found)
    assert len(dry_run.found) == 4
    errors = {one.cell.model_name: one.error for one in dry_run.found}
    assert errors.keys() == {"retnet", "transformer"}
    assert errors["retnet"] is None
    assert "flash-attn runs on CUDA devices only" in str(errors["transformer"])


def test_a_dry_run_says_which_models_cannot_run_here(dry_run: DryRun) -> None:
    assert dry_run.shown.exit_code == UnsupportedError.exit_code
    rows = dry_run.rows("transformer")
    assert rows
    assert all("cannot run" in row for row in rows)
    shown = " ".join(dry_run.shown.stdout.split())
    assert "flash-attn runs on CUDA devices only; use backend 'sdpa'" in shown


def test_a_dry_run_marks_memory_over_the_limit(dry_run: DryRun) -> None:
    rows = dry_run.rows("retnet")
    assert rows
    assert all(", over 1.00 KiB |" in row for row in rows)
    assert not any("cannot run" in row for row in rows)


def test_an_estimate_does_not_disturb_a_run(
    tiny_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path / "lock"))
    hold = (
        "import sys\nfrom retbench.running.locks import timing_lock\n"
        "with timing_lock('retbench run other', 'cpu', wait=print):\n"
        "    print('held', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UnsupportedError, match="would disturb the run of process"):
            estimate(make(tiny_experiment))
        process.communicate()


class Refusing:
    """A worker that cannot measure the ceilings."""

    def __enter__(self) -> "Refusing":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def messages(self, _timeout_s: float) -> list[Failed]:
        return [Failed(kind="UnsupportedError", message="the device is gone. Give --device cpu.")]


def test_an_error_of_the_measurement_is_shown_as_what_it_is(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "start_worker", lambda *_: Refusing())
    with pytest.raises(UnsupportedError, match=r"^the device is gone\. Give --device cpu\.$"):
        estimate(make(tiny_experiment))
