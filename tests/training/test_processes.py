"""Training by several processes, as torchrun starts them, compared with one process and with each other."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from retbench.cli import app
from retbench.files import checksum
from retbench.records.record import Record
from retbench.records.store import read_records
from retbench.training.ranks import ALONE
from retbench.training.snapshots import find_snapshot
from retbench.training.trained import find_trained
from tests.training import two_processes
from tests.training.conftest import TINY_TRAINING, read_curve

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
STEPS_50 = ("--set", "training.num_tokens=4800", "--set", "training.validate_every=25")
FEW_SNAPSHOTS = ("--set", "training.checkpoint_every=25")
NARROW = ("--set", 'training.sizes=["25k"]')
GENTLE = ("--set", "training.learning_rates=[1e-4]")
"""A rounding error in RetNet's head norms grows with the rate; one process in micro-batches drifts as far."""


def words(folder: Path, out: str, *options: str) -> list[str]:
    """The words of the command."""
    words = ["train", str(folder / "tiny.toml"), "--profile", "cpu", "--device", "cpu"]
    return [*words, "--out", str(folder / out), *options]


def launch(folder: Path, out: str, *options: str) -> "subprocess.Popen[str]":
    """The command by two processes."""
    command = [sys.executable, *TORCHRUN, "retbench", *words(folder, out, *options)]
    environment = {**os.environ, "RETBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Wait for a process to succeed; return its stdout and stderr."""
    printed, progress = process.communicate(timeout=300)
    assert process.returncode == 0, progress
    return printed, progress


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus_dir: Path) -> Path:
    """A folder with the small experiment."""
    folder = tmp_path_factory.mktemp("processes")
    text = TINY_TRAINING.format(corpus=corpus_dir)
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def together(folder: Path) -> tuple[str, str]:
    """50 steps of each model by one process and by two; what the latter printed on stdout and on stderr."""
    options = (*STEPS_50, *GENTLE, *FEW_SNAPSHOTS, *NARROW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETBENCH_CACHE", str(folder / "cache"))
        done = CliRunner().invoke(app, words(folder, "one", *options))
    assert done.exit_code == 0, done.output
    return finish(launch(folder, "two", *options))


def finals(folder: Path, out: str) -> dict[str, Path]:
    return {trained.model_name: trained.path for trained in find_trained(folder / out, "tiny", "cpu")}


def all_weights(path: Path) -> Tensor:
    weights = load_file(path / "model.safetensors")
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("model", ["retnet", "transformer"])
def test_two_processes_are_within_1e_4_of_one_after_50_steps(folder: Path, model: str) -> None:
    paths = [finals(folder, out)[model] for out in ("one", "two")]
    one, two = map(all_weights, paths)
    assert 0 < (one - two).norm() / one.norm() < 1e-4
    curves = [read_curve(path.parent / "curve.csv") for path in paths]
    assert [point.step for point in curves[1]] == [25, 50]
    for point, other in zip(*curves, strict=True):
        assert other.train_loss_nats == pytest.approx(point.train_loss_nats, rel=1e-4)
        assert other.validation_loss_nats == pytest.approx(point.validation_loss_nats, rel=1e-4)


def test_the_first_process_alone_prints_and_records(folder: Path, together: tuple[str, str]) -> None:
    printed, progress = together
    # torch 2.10 says so too, in both processes at once.
    ours = [line for line in printed.splitlines() if "connected peer ranks" not in line]
    assert len(ours) == 4  # the two lines of a heading and two runs
    assert progress.count("retnet-25k-seed0: done") == 1
    records = training_records(folder / "two")
    assert [record.model.name for record in records] == ["retnet", "transformer"]
    assert {record.backend["world_size"] for record in records} == {2}
    assert "torchrun --nnodes 1 --nproc-per-node 2 -m retbench train" in str(records[0].command)
    one = training_records(folder / "one")
    assert {record.cell_id for record in one}.isdisjoint(record.cell_id for record in records)


def training_records(out: Path) -> list[Record]:
    records, problems = read_records(out)
    assert not problems
    return [record for record in records if record.workload == "training_run"]


@pytest.mark.slow
def test_two_processes_killed_at_random_moments_end_as_if_they_had_not_been(folder: Path) -> None:
    finish(launch(folder, "whole", *STEPS_50))
    for after in sorted(random.sample(range(3, 30), 3)):
        kill(folder, after)
    assert ", from step " in finish(launch(folder, "killed", *STEPS_50))[1]
    whole, killed = finals(folder, "whole"), finals(folder, "killed")
    assert whole.keys() == killed.keys() == {"retnet", "transformer"}
    for model, path in whole.items():
        assert checksum(path / "model.safetensors") == checksum(killed[model] / "model.safetensors")


def kill(folder: Path, after: int) -> None:
    """Kill torchrun and all that it started once the first model has so many steps on disk."""
    steps = folder / "killed/checkpoints/tiny/cpu/retnet-300k-seed0/steps"
    with launch(folder, "killed", *STEPS_50) as launcher:
        deadline = time.monotonic() + 120
        while max((int(path.name) for path in steps.glob("[0-9]*")), default=0) < after:
            assert launcher.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(random.random() * 0.1)  # anywhere in a step, a validation or a snapshot
        workers = psutil.Process(launcher.pid).children(recursive=True)
        for process in (launcher, *workers):
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(workers, timeout=30)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Return the folder of `two_processes` and the result of each process."""
    folder = tmp_path_factory.mktemp("seen")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    both = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "tests.training.two_processes",
                str(folder),
            ],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in both:
        finish(process)
    return folder, [json.loads((folder / f"result-{rank}.json").read_text("utf-8")) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("leads", (True, False)),
        ("lead", ("returned of 0", "returned of 0")),
        ("lead waits", ("returned after waiting", "returned after waiting")),
        ("lead fails", ("ValueError: in the lead", "the other failed")),
        ("together", ("returned of 0", "returned of 1")),
        ("second fails", ("the other failed", "ValueError: second")),
        ("both fail", ("ValueError: of 0", "the other failed")),
        ("any", ([True, False], [True, False])),
        ("mean", ([0.5, 2.0], [0.5, 2.0])),
        ("gather", (["of 0", "of 1"], ["of 0", "of 1"])),
        ("restored", ({"step": 1}, {"step": 1})),
        ("same step", (True, True)),
    ],
)
def test_what_two_processes_agree_on(
    seen: tuple[Path, list[dict[str, Any]]], what: str, expected: tuple[object, object]
) -> None:
    assert tuple(result[what] for result in seen[1]) == expected


@pytest.mark.slow
def test_the_part_of_either_process_is_checked_and_both_go_to_the_snapshot_before(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    for result in seen[1]:
        (note,) = result["notes"]
        assert "000002 is damaged (tensors-00001.safetensors has another checksum" in note


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_process_ends_both_and_leaves_the_rest(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    first, second = (result["full disk"] for result in seen[1])
    assert first == "the other failed"
    assert second.startswith("StorageError: ")
    assert "000003: cannot be written: " in second
    assert "File too large" in second
    assert [name for name in seen[1][0]["left"] if name[0] in ".0"] == ["000001", "000002"]


@pytest.mark.slow
def test_what_two_processes_wrote_one_process_takes_up(seen: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, results = seen
    notes: list[str] = []
    found = find_snapshot(folder, notes.append)
    assert found is not None
    assert found.state == {"step": 1}
    model, optimizer = two_processes.make_run(1, ALONE)
    found.restore(model, optimizer)
    norm = two_processes.step(model, optimizer, 2, ALONE)
    assert norm == pytest.approx(results[0]["norms"][1], rel=1e-5)
    for rank in range(2):
        expected = torch.load(folder / f"weights-{rank}.pt", weights_only=True)
        assert expected.keys() == dict(model.named_parameters()).keys()
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-4, atol=1e-5)
