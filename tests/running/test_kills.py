"""Sixty processes of `retbench train` and `retbench run` are killed at random; the same command then goes on."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from retbench.records.record import Point, Record
from retbench.records.store import read_records

pytestmark = pytest.mark.slow

KILLS_PER_FOLDER = 3
EXPERIMENT = """\
title = "Tiny quality"
source = "none; made for tests"
expect = "It survives."

[models.retnet]
architecture = "retnet"

[profiles.smoke]
size = "300k"
threads = 1
rounds = 2
warmup_s = 0.0
min_steps = 2
[profiles.smoke.training]
corpus = "CORPUS"
sizes = ["300k"]
seq_len = 64
batch_size = 2
num_tokens = 2560
learning_rates = [4e-3]
validation_tokens = 128
checkpoint_every = 2
seeds = [0, 1]
[profiles.smoke.workloads.perplexity]
corpora = ["CORPUS"]
split = "all"
limit = 3
protocols = { whole = [64, 32], strided = [64] }
[profiles.smoke.workloads.decode]
context_len = [8, 64, 512]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and an experiment."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "texts").mkdir()
    for number in range(5):
        text = f"Text {number} says what texts say. " * 12
        (folder / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    path = folder / "tiny.toml"
    path.write_text(EXPERIMENT.replace("CORPUS", str(folder / "texts")), encoding="utf-8")
    return folder


def begin(folder: Path, word: str, out: Path) -> subprocess.Popen[bytes]:
    """Start a command."""
    command = [sys.executable, "-m", "retbench", word, "tiny.toml", "--profile", "smoke", "--device", "cpu"]
    log = (out.parent / f"{out.name}.log").open("ab")
    with log:
        return subprocess.Popen([*command, "--out", str(out)], cwd=folder, stdout=log, stderr=log)


def finish(folder: Path, word: str, out: Path) -> float:
    """Run a command that must succeed; return how long it took."""
    since = time.monotonic()
    assert begin(folder, word, out).wait() == 0, (out.parent / f"{out.name}.log").read_text(encoding="utf-8")
    return time.monotonic() - since


def kill_one(chance: random.Random, process: subprocess.Popen[bytes], longest_s: float) -> None:
    """Kill a command or one of its workers at some time, and wait until the command has ended."""
    end = time.monotonic() + chance.uniform(0, longest_s)
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        workers = [child.pid for child in psutil.Process(process.pid).children()]
        os.kill(chance.choice([process.pid, *workers]), signal.SIGKILL)
    process.wait()


def records_of(out: Path) -> list[Record]:
    """All records; a torn line is none."""
    return read_records(out)[0]


def finished(out: Path) -> Counter[tuple[str, int]]:
    """Count the records that say that a cell was measured in a round."""
    return Counter((one.cell_id, one.round) for one in records_of(out) if one.status == "ok")


def assert_whole_rounds(records: list[Record]) -> None:
    """Costs are compared within the rounds of one run: some run has measured every round of a point of all models.

    An interruption between two models has that round of the point measured again, and nothing else.
    """
    points: dict[tuple[Point, int], dict[str, set[str]]] = {}
    for one in records:
        if one.workload == "decode":
            runs = points.setdefault((one.point, one.round), {})
            runs.setdefault(one.run_id, set()).add(one.cell_id)
    for runs in points.values():
        assert set().union(*runs.values()) in runs.values()


def files_in(out: Path) -> list[Path]:
    return sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())


def test_killed_trainings_go_on_and_leave_nothing(folder: Path) -> None:
    chance, out = random.Random(1), folder / "train"
    longest_s = finish(folder, "train", out)
    whole = [path for path in files_in(out) if path.suffix != ".jsonl"]
    for number in range(6):
        out = folder / f"train-{number}"
        for _ in range(KILLS_PER_FOLDER):
            kill_one(chance, begin(folder, "train", out), longest_s)
        finish(folder, "train", out)
        assert [path for path in files_in(out) if path.suffix != ".jsonl"] == whole


def test_killed_runs_go_on_and_leave_nothing(folder: Path) -> None:
    chance, trained, undisturbed = random.Random(2), folder / "trained", folder / "undisturbed"
    finish(folder, "train", trained)
    shutil.copytree(trained, undisturbed)
    longest_s = finish(folder, "run", undisturbed)
    whole = set(finished(undisturbed))
    for number in range(14):
        out = folder / f"run-{number}"
        shutil.copytree(trained, out)
        done: set[tuple[str, int]] = set()
        for _ in range(KILLS_PER_FOLDER):
            kill_one(chance, begin(folder, "run", out), longest_s)
            assert done <= set(finished(out))  # nothing is lost
            done = set(finished(out))
        finish(folder, "run", out)  # without this, a cell whose worker was killed has failed
        counts = finished(out)
        assert set(counts) == whole
        assert_whole_rounds([one for one in records_of(out) if one.status == "ok"])
        repeated = {pair for pair, count in counts.items() if count > 1}
        assert repeated <= {(one.cell_id, one.round) for one in records_of(out) if one.workload == "decode"}
        named = {one.documents.file for one in records_of(out) if one.documents}
        assert {path.name for path in files_in(out) if path.suffix == ".gz"} == named
        assert not list(out.rglob(".*"))
