"""The training command, in a separate process if it is killed, otherwise in this one."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from retbench.cli import app
from retbench.files import checksum
from retbench.training.trained import find_trained
from tests.training.conftest import TINY_TRAINING

FINAL = Path("checkpoints/tiny/cpu/retnet-300k-seed0")
LONG = ("--set", "training.num_tokens=5760")
"""60 steps."""
TRANSFORMER = '[models.transformer]\narchitecture = "transformer"\n'


def words(experiment: Path, out: Path, *options: str) -> list[str]:
    return ["train", str(experiment), "--profile", "cpu", "--device", "cpu", "--out", str(out), *options]


def command(experiment: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "retbench", *words(experiment, out, *options)]


def run(experiment: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(experiment, out, *options), capture_output=True, text=True)


def invoke(experiment: Path, out: Path, *options: str) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, words(experiment, out, *options))


def kill_in_training(
    experiment: Path, out: Path, number: signal.Signals, after_snapshots: int, *options: str
) -> tuple[int, str]:
    """Start the command and send it a signal as soon as its first model has so many steps in a snapshot.

    Returns:
        Its exit code, and what it wrote to stderr.
    """
    said = experiment.with_suffix(".stderr")
    with said.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command(experiment, out, *LONG, *options), stderr=stderr, stdout=subprocess.DEVNULL
        )
    steps = out / FINAL / "steps"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        done = [int(path.name) for path in steps.glob("[0-9]*")]
        if max(done, default=0) >= after_snapshots:
            break
        time.sleep(0.01)
    time.sleep(random.random() * 0.1)  # anywhere in a step, a validation or a snapshot
    process.send_signal(number)
    return process.wait(), said.read_text(encoding="utf-8")


def losses(folder: Path) -> list[tuple[str, ...]]:
    """The curve without its times."""
    with (folder / "curve.csv").open() as file:
        return [
            tuple(value for name, value in row.items() if name != "tokens_per_s")
            for row in csv.DictReader(file)
        ]


@pytest.mark.slow
def test_a_run_killed_at_three_random_moments_ends_as_if_it_had_not_been(
    experiment: Path, tmp_path: Path
) -> None:
    """Test one model; `test_loop` tests both, stopped in one process."""
    experiment.write_text(experiment.read_text(encoding="utf-8").replace(TRANSFORMER, ""), encoding="utf-8")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(experiment, whole, *LONG).returncode == 0
    for after in sorted(random.sample(range(3, 30), 3)):
        assert kill_in_training(experiment, killed, signal.SIGKILL, after)[0] == -signal.SIGKILL
    assert not (killed / FINAL / "final").exists()
    done = run(experiment, killed, *LONG)
    assert done.returncode == 0
    assert ", from step " in done.stderr
    ours, theirs = whole / FINAL, killed / FINAL
    assert checksum(ours / "final/model.safetensors") == checksum(theirs / "final/model.safetensors")
    assert losses(ours) == losses(theirs)


def test_a_signal_leaves_a_snapshot_ends_with_130_and_says_how_to_continue(
    experiment: Path, tmp_path: Path
) -> None:
    """By SIGTERM; `test_edges` sends SIGINT, and `test_locks` every signal that is caught.

    A training with the option `--fresh` continues only without it.
    """
    code, said = kill_in_training(experiment, tmp_path, signal.SIGTERM, 3, "--fresh")
    assert code == 130
    assert "interrupted; the same command without --fresh continues from here" in said
    assert list((tmp_path / FINAL / "steps").glob("[0-9]*"))
    assert not (tmp_path / FINAL / "final").exists()


@pytest.fixture(scope="module")
def trained(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder of both trained models and the printed result; read-only."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(TINY_TRAINING.format(corpus=corpus_dir), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETBENCH_CACHE", str(corpus_dir.parent / "cache"))
        first = invoke(folder / "tiny.toml", folder, "--json")
    assert first.exit_code == 0, first.stderr
    return folder, json.loads(first.stdout)


def test_the_command_prints_every_run_and_finds_them_again(
    experiment: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    folder, printed = trained
    assert [(each["model"], each["num_tokens"], each["trained_before"]) for each in printed["runs"]] == [
        ("retnet", 1152, False),
        ("transformer", 1152, False),
    ]
    again = invoke(experiment, folder)
    assert "already" in again.stderr
    assert again.stdout.startswith("| model | size |")
    assert f"{printed['runs'][0]['validation_loss_nats']:.4f}" in again.stdout
    assert [one.model_name for one in find_trained(folder, "tiny", "cpu")] == ["retnet", "transformer"]


def test_a_dry_run_says_what_is_trained_already(
    experiment: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    shown = invoke(experiment, trained[0], "--dry-run").stdout.splitlines()
    assert shown[-1].startswith("2 of 2 runs are on disk")
    assert json.loads(invoke(experiment, trained[0], "--dry-run", "--json").stdout)["num_on_disk"] == 2
    assert "on disk" not in invoke(experiment, trained[0], "--dry-run", "--fresh").stdout


def test_a_dry_run_shows_the_runs_and_trains_nothing(experiment: Path, tmp_path: Path) -> None:
    shown = invoke(experiment, tmp_path, "--dry-run", "--set", "training.learning_rates=[1e-3, 1e-2]")
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.count("tuning") == 4
    assert shown.stdout.count("best of grid") == 2
    assert not (tmp_path / "checkpoints").exists()


def test_other_settings_are_refused_until_fresh_is_given(
    experiment: Path, tmp_path: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    shutil.copytree(trained[0] / "checkpoints", tmp_path / "checkpoints")
    before = checksum(tmp_path / FINAL / "final/model.safetensors")
    refused = invoke(experiment, tmp_path, "--set", "training.learning_rates=[1e-3]")
    assert refused.exit_code == 2
    assert "learning_rate: 0.003 on disk, 0.001 asked for" in refused.stderr
    assert "--fresh" in refused.stderr
    assert checksum(tmp_path / FINAL / "final/model.safetensors") == before
    fresh = invoke(experiment, tmp_path, "--fresh", "--set", "training.learning_rates=[1e-3]")
    assert fresh.exit_code == 0
    assert checksum(tmp_path / FINAL / "final/model.safetensors") != before


def test_a_run_that_diverges_fails_alone(experiment: Path, tmp_path: Path) -> None:
    """A huge epsilon-free step: the rate is so high that the loss is soon not finite or far above guessing."""
    done = invoke(experiment, tmp_path, "--json", "--set", "training.learning_rates=[0.003, 1e6]")
    assert done.exit_code == 1
    runs = json.loads(done.stdout)["runs"]
    assert {(each["role"], each["learning_rate"], each["status"]) for each in runs} == {
        ("tuning", 0.003, "ok"),
        ("tuning", 1e6, "failed"),
        ("final", 0.003, "ok"),
    }
    assert all("learning rate" in each["error"] for each in runs if each["status"] == "failed")


def test_the_disk_holds_what_the_model_is(trained: tuple[Path, dict[str, Any]]) -> None:
    (first, *_) = find_trained(trained[0], "tiny", "cpu")
    assert first.num_tokens == 1152
    assert first.learning_rate == 0.003
    assert first.tokenizer == "bytes"
    assert load_file(first.path / "model.safetensors")["embedding.weight"].shape == (257, 96)


def test_a_profile_without_training_is_refused(tiny_experiment: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(
        app, ["train", str(tiny_experiment), "--profile", "smoke", "--device", "cpu"]
    )
    assert refused.exit_code == 2
    assert "[profiles.smoke.training]" in refused.stderr


def test_a_folder_whose_name_is_no_text_is_refused(experiment: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xfcr"))
    done = invoke(experiment, folder)
    assert done.exit_code == 2
    assert "not UTF-8" in done.stderr
    assert not os.path.lexists(folder)
