"""The worker as a process: its messages, its output, and its end."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from retbench.measure.environment import code_revision
from retbench.planning.plan import Plan, make_plan
from retbench.records.record import Gate
from retbench.records.store import read_records
from retbench.running.protocol import (
    CELL_MARK,
    Checked,
    Done,
    Ended,
    Failed,
    Hello,
    Job,
    Measured,
    Message,
    RunInfo,
    Started,
    Task,
    decode,
)
from tests.conftest import KNOWN_CEILINGS, TINY_EXPERIMENT
from tests.measure.outcomes import ROW_OUTCOMES

BEFORE = "0.1.0+src.before"
"""A revision that the source has not: a worker of it greets and refuses to measure."""
NOISE = """
import os, threading, time
print('banner without an end', end='', flush=True)
def speak():
    while os.fstat(1).st_ino != os.fstat(2).st_ino:  # until the worker keeps its stdout for itself
        time.sleep(0.01)
    os.write(1, b'from C')
    print('from Python', flush=True)
threading.Thread(target=speak, daemon=True).start()
"""
"""Code of a library that prints at the start of a process and later, in Python and in C."""
COMMAND = [sys.executable, "-P", "-m", "retbench.running.worker"]


def plan_for(experiment: Path, *overrides: str) -> Plan:
    return make_plan(str(experiment), profile="smoke", device="cpu", overrides=["threads=1", *overrides])


@pytest.fixture
def plan(tiny_experiment: Path) -> Plan:
    return plan_for(tiny_experiment)


def make_job(plan: Plan, folder: Path, *, task: Task = "ceilings", revision: str | None = None) -> Job:
    run = RunInfo(
        run_id="r",
        experiment="tiny",
        profile="smoke",
        command="retbench run tiny",
        code_revision=revision or code_revision(),
    )
    return Job(
        task=task,
        run=run,
        cells=plan.cells[:1],
        gate=Gate(passed=True, dtype="float32", checks=()),
        records_path=folder / "a.jsonl",
        states_dir=folder / "states",
        parent_pid=os.getpid(),
    )


@dataclass(frozen=True)
class Answer:
    """Messages of a worker, what it wrote to stderr, and the kernel's score for its end when memory is short."""

    received: list[Message]
    stderr: str
    oom_score: int | None


def ask(job: Job, extra: dict[str, str] | None = None) -> Answer:
    """Start a worker, give it a job, and wait for its end."""
    with subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(extra or {})},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(job.model_dump_json().encode() + b"\n")
        process.stdin.flush()  # and left open, as the runner does
        received, score, file = [], None, Path(f"/proc/{process.pid}/oom_score_adj")
        for line in process.stdout:
            if (message := decode(line)) is not None:
                received.append(message)
                if isinstance(message, Hello) and file.exists():
                    score = int(file.read_text(encoding="ascii"))
        return Answer(received, process.stderr.read().decode(), score)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """Return the folder and the answer of a noisy worker whose source is not that of its run."""
    folder = tmp_path_factory.mktemp("refused")
    experiment = folder / "tiny.toml"
    experiment.write_text(TINY_EXPERIMENT, encoding="utf-8")
    (folder / "sitecustomize.py").write_text(NOISE, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    job = make_job(plan_for(experiment), folder, task="measure", revision=BEFORE)
    return folder, ask(job, {"PYTHONPATH": path})


def test_prints_of_a_library_do_not_reach_the_protocol(refused: tuple[Path, Answer]) -> None:
    _, answer = refused
    assert [type(message) for message in answer.received] == [Hello, Failed]
    assert "from C" in answer.stderr
    assert "from Python" in answer.stderr


def test_every_cell_begins_with_a_mark_on_stderr(plan: Plan, tmp_path: Path) -> None:
    cells = tuple(cell for cell in plan.cells if cell.model_name == "transformer")
    job = make_job(plan, tmp_path, task="measure").model_copy(update={"cells": cells})
    answer = ask(job)
    assert [type(message) for message in answer.received] == [
        Hello,
        Measured,
        Checked,
        *[Started, Done] * len(cells),
        Ended,
    ]
    assert answer.stderr.encode().splitlines().count(CELL_MARK) == len(cells) > 0


@pytest.mark.parametrize(
    ("batches", "product"),
    [
        (1, "1 row: batched; 2 to 8 rows: onednn"),
        pytest.param(0, "2 to 8 rows: onednn", marks=pytest.mark.slow),
    ],
)
def test_a_worker_multiplies_as_an_earlier_one_of_the_run_found(
    plan: Plan, tmp_path: Path, batches: int, product: str
) -> None:
    """Otherwise models that are compared could run differently: which of two near equals is faster is chance."""
    cell = next(cell for cell in plan.cells if cell.model_name == "transformer")
    found = dict.fromkeys(ROW_OUTCOMES, 0) | {"batches": batches, "onednn_rows": 8, "packed_rows, float32": 3}
    changes = {"products": found, "cells": (cell,), "ceilings": KNOWN_CEILINGS}
    answer = ask(make_job(plan, tmp_path, task="measure").model_copy(update=changes))
    # A worker whose model is checked already reports what it has found where its job states something else.
    assert [type(message) for message in answer.received] == [Hello, Started, Done, Ended]
    ((record,), _) = read_records(tmp_path / "a.jsonl")
    assert record.backend["weight_product"] == product


@pytest.mark.parametrize(
    ("loops", "layout"), [pytest.param(True, "out,in", marks=pytest.mark.slow), (False, "in,out")]
)
def test_a_worker_stores_weights_for_compiled_steps_as_an_earlier_one_of_the_run_found(
    tiny_experiment: Path, tmp_path: Path, loops: bool, layout: str
) -> None:
    plan = plan_for(tiny_experiment, "compile=true", "size=25k")
    cell = next(cell for cell in plan.cells if cell.model_name == "transformer" and cell.workload == "decode")
    found = dict.fromkeys(ROW_OUTCOMES, 0) | {"packed_rows, float32": 0, "by_output, float32": int(loops)}
    changes = {"products": found, "cells": (cell,), "ceilings": KNOWN_CEILINGS}
    # How weights are stored does not depend on the compiler; one compilation by a worker is enough.
    without = {} if loops else {"TORCHDYNAMO_DISABLE": "1"}
    answer = ask(make_job(plan, tmp_path, task="measure").model_copy(update=changes), without)
    assert [one.status for one in answer.received if isinstance(one, Done)] == ["ok"]
    ((record,), _) = read_records(tmp_path / "a.jsonl")
    assert record.backend["weight_layout"] == layout
    assert record.backend["weight_product"] == ("loop" if loops else "torch")


def test_changed_source_is_not_measured(refused: tuple[Path, Answer]) -> None:
    folder, answer = refused
    failed = answer.received[-1]
    assert isinstance(failed, Failed)
    assert failed.kind == "RetbenchError"
    assert "the source of retbench changed during the run, from 0.1.0+src.before to" in failed.message
    assert not (folder / "a.jsonl").exists()


def test_a_full_disk_is_reported_as_such(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "states").write_text("in the way", encoding="utf-8")
    known = {"products": dict.fromkeys(ROW_OUTCOMES, 0)}  # which the worker would find out first
    failed = ask(make_job(plan, tmp_path, task="prepare").model_copy(update=known)).received[-1]
    assert isinstance(failed, Failed)
    assert failed.kind == "StorageError"


def test_a_worker_without_a_runner_ends(plan: Plan, tmp_path: Path) -> None:
    assert subprocess.run(COMMAND, stdin=subprocess.DEVNULL, check=False, timeout=60).returncode == 1
    orphan = make_job(plan, tmp_path).model_copy(update={"parent_pid": os.getpid() + 1})
    assert ask(orphan).received == []


def test_the_end_of_stdin_ends_a_worker(plan: Plan, tmp_path: Path) -> None:
    job = make_job(plan, tmp_path)
    done = subprocess.run(
        COMMAND, input=job.model_dump_json().encode() + b"\n", capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal on a parent's death is Linux's")
def test_even_a_stopped_worker_dies_with_its_runner() -> None:
    parent = (
        "import subprocess, sys, time\n"
        "process = subprocess.Popen([sys.executable, '-P', '-m', 'retbench.running.worker'], stdin=subprocess.PIPE)\n"
        "print(process.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as runner:
        assert runner.stdout is not None
        worker = psutil.Process(int(runner.stdout.readline()))
        streams = [Path(f"/proc/{worker.pid}/fd/{number}") for number in (1, 2)]
        deadline = time.monotonic() + 60
        while os.readlink(streams[0]) != os.readlink(
            streams[1]
        ):  # it claims its stdout after it has asked the kernel
            assert time.monotonic() < deadline
            time.sleep(0.01)
        worker.send_signal(signal.SIGSTOP)
        runner.kill()
        runner.wait()
        worker.wait(timeout=10)


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="needs Linux")
def test_a_worker_is_the_first_to_go_when_memory_is_short(refused: tuple[Path, Answer]) -> None:
    _, answer = refused
    assert answer.oom_score == 1000
