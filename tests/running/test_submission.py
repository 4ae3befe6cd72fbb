"""Submissions: the script, refusals, states, and a job that reaches its time limit, through submitit's executors."""

import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from retbench.cli import app, submit
from retbench.errors import RetbenchError, StorageError
from retbench.measure.environment import (
    computing_variables,
    describe_environment,
    machine_name,
    worker_environment,
)
from retbench.planning.plan import Plan
from retbench.records.record import utc_now
from retbench.records.store import append_record
from retbench.running import cluster_job, submission
from retbench.running.cluster_job import JobNote, Resources, ShardJob, read_note
from retbench.running.locks import LOCK_DIR_VARIABLE, timing_lock
from retbench.running.protocol import RunInfo
from retbench.running.recording import Outcome, Surroundings, make_record
from retbench.running.submission import JobRow, Submission, list_jobs

pytest.importorskip("submitit", reason="needs submitit (the extra slurm)")
LOCAL = ("--cluster", "local")
SMOKE = ("--profile", "smoke", "--device", "cpu")


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_a_dry_run_prints_the_script_of_an_array_job(tiny_experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    resources = ("--shards", "3", "--array-parallelism", "2", "--timeout-min", "90", "--cpus-per-task", "4")
    flags = ("--slurm", "partition=gpu", "--slurm", "exclusive", "--setup", "module load cuda")
    batches = ("--set", "workloads.decode.batch_size=[1,2,4]")
    arguments = (*SMOKE, *batches, "--out", str(out), "--", str(tiny_experiment))
    code, output = run("submit", "--dry-run", *resources, *flags, "run", *arguments)
    assert code == 0, output
    lines = output.splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = {"array=0-2%2", "time=90", "signal=USR2@120", "partition=gpu", "exclusive", "cpus-per-task=4"}
    assert {f"#SBATCH --{flag}" for flag in wanted} <= set(lines)
    assert lines.index("module load cuda") < next(
        i for i, line in enumerate(lines) if line.startswith("srun ")
    )
    assert f"# task 2: {shlex.join(['retbench', 'run', '--shard', '3/3', *arguments])}" in lines
    assert not out.exists()


def test_a_training_on_several_nodes_is_launched_by_torchrun() -> None:
    code, output = run(
        *(
            "submit",
            "--dry-run",
            "--nodes",
            "2",
            "--gpus-per-node",
            "8",
            "train",
            "quality",
            "--profile",
            "smoke",
        )
    )
    assert code == 0, output
    assert "#SBATCH --nodes=2" in output
    (task,) = [line for line in output.splitlines() if line.startswith("# task")]
    assert "-m torch.distributed.run --nnodes 2 --nproc-per-node 8 --node-rank NODE" in task
    assert task.endswith("-m retbench train quality --profile smoke")


@pytest.mark.parametrize(
    ("options", "command", "reason"),
    [
        ((), ("check",), "'check' cannot be submitted. Give run or train"),
        ((), ("run", "latency", "--shard", "1/2"), "`retbench submit --shards N run ...`"),
        ((), ("run", "latency", "--dry-run"), "`retbench submit --dry-run run ...`"),
        (("--dry-run", "--json"), ("run", "latency"), "--dry-run prints a script"),
        ((), ("run", "latenzy"), "latency"),
        ((), ("run",), "`retbench run` needs EXPERIMENT."),
        (("--shards", "9"), ("run", "throughput", "--profile", "paper"), "Give at most 8."),
        (("--shards", "2"), ("run", "latency", "--profile", "cpu"), "the plan has 1 part,"),
        (("--shards", "3"), ("train", "quality", "--profile", "cpu"), "the plan has 2 parts,"),
        ((), ("run", "latency", "--nonsense"), "--nonsense"),
        ((), ("train", "quality", "--set", "rounds=2"), "no training reads 'rounds'"),
        ((), ("train", "quality", "--fresh"), "would delete what it has trained"),
        (("--nodes", "2"), ("run", "latency"), "a run is measured by one process on one node"),
        (("--cluster", "k8s"), ("run", "latency"), "Known: debug, local, slurm"),
        (
            ("--cluster", "local", "--slurm", "a=b"),
            ("run", "latency"),
            "--slurm: options for --cluster slurm",
        ),
        (
            (*LOCAL, "--gpus-per-node", "1", "--cpus-per-task", "2", "--array-parallelism", "1"),
            ("run", "latency"),
            "--gpus-per-node, --cpus-per-task, --array-parallelism: options for --cluster slurm only.",
        ),
        ((*LOCAL, "--max-timeouts", "2"), ("run", "latency"), "have no time limit. Leave out, or give"),
        (("--cluster", "debug", "--timeout-min", "9"), ("run", "latency"), "have no time limit. Leave out."),
        ((*LOCAL, "--timeout-min", "9", "--max-timeouts", "6"), ("run", "latency"), "Give at most 5, or no"),
        (("--slurm", "time=3"), ("run", "latency"), "retbench sets this flag of sbatch itself"),
        (("--slurm", "partition="), ("run", "latency"), "such as partition=gpu or exclusive"),
        (("--timeout-min", "1"), ("run", "latency"), "is not longer than --signal-delay-s 120"),
        (("--timeout-min", "3.5"), ("run", "latency"), "Slurm counts whole minutes"),
        (("--timeout-min", "inf"), ("run", "latency"), "--timeout-min inf"),
        ((*LOCAL, "--timeout-min", "1e30"), ("run", "latency"), "--timeout-min 1e+30"),
        (("--slurm", "cpus-per-task=8"), ("run", "latency"), "--slurm cpus-per-task="),
        (("--slurm", "gpus_per_node=8"), ("train", "quality"), "--slurm gpus-per-node="),
        (("--slurm", "partition=a", "--slurm", "partition=b"), ("run", "latency"), "--slurm partition"),
        (("--shards", "10001"), ("run", "latency"), "--shards 10001"),
        ((), ("run", "latency", "--limit", "0"), "--limit is 0"),
        ((), ("run", "latency", "--dtype", "float17"), "--dtype"),
        ((), ("run", "latency", "--device", "gpu"), "--device 'gpu'"),
        ((), ("train", "quality", "--device", "gpu"), "--device 'gpu'"),
        ((), ("run", "latency", "--set", "rouns=3"), "'rouns'"),
    ],
)
def test_what_no_job_could_do_is_refused_before_anything_is_submitted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    command: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = run("submit", "--dry-run", *options, *command)
    assert code == 2, output
    assert reason in output
    assert not any(tmp_path.iterdir())


def test_a_field_of_one_profile_can_be_replaced_where_the_machine_of_the_job_chooses_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    variant = "models.retnet_chunkwise.backend=chunkwise"  # in the profile `paper` alone
    code, output = run("submit", "--dry-run", "run", "latency", "--set", variant)
    assert code == 0, output


def test_without_slurm_the_cluster_is_not_supported(
    tiny_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, output = run("submit", "run", str(tiny_experiment), *SMOKE, "--out", str(tmp_path / "out"))
    assert code == 3
    assert "use --cluster local" in output


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_submitted(
    tiny_experiment: Path,
) -> None:
    code, output = run(
        "submit", "--cluster", "local", "run", str(tiny_experiment), *SMOKE, "--out", "/proc/out"
    )
    assert (code, "--out" in output) == (2, True)


def test_without_submitit_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, output = run("submit", "--cluster", "local", "run", "latency", "--out", "/nowhere")
    assert code == 3
    assert "pip install 'retbench[slurm]'" in output


def test_nothing_submitted_is_said(tmp_path: Path) -> None:
    code, output = run("jobs", "--out", str(tmp_path))
    assert (code, "Nothing was submitted from" in output) == (0, True)


def test_the_debug_cluster_carries_jobs_out_in_the_command(
    tiny_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard without cells is done at once, and a command that is refused has failed."""
    monkeypatch.setattr(cluster_job, "_SIGNAL_WAIT_S", 0.1)
    words = ("submit", "--cluster", "debug", "--json", "run", str(tiny_experiment), *SMOKE)
    for more, state, expected in ((("--shard", "2/2"), "done", 0), (("--dtype", "float16"), "failed", 1)):
        out = tmp_path / state
        commands = [["retbench", *words[4:], *more, "--out", str(out)]]
        rows = submission.jobs_of(submission.submit("debug", commands, out, Resources()))
        assert [(row.state, row.starts) for row in rows] == [(state, 1)]
        assert submit._exit_code(rows) == expected
    code, output = run(*words, "--dtype", "float16", "--out", str(tmp_path / "again"))
    assert code == 1
    (row,) = json.loads(output[output.index("{") :])["jobs"]
    assert (row["state"], row["log"]) == ("failed", None)  # its command wrote to our stderr


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # psutil waited for it
def test_jobs_that_cannot_be_noted_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk they would run on, and could be neither listed nor cancelled."""
    found: list[tuple[Path, Submission]] = []

    def full(path: Path, content: bytes) -> None:
        found.append((path.parent, Submission.model_validate_json(content)))
        assert submission._find_controller(found[0][1].job_ids[0], path.parent)
        raise StorageError("no space left")

    monkeypatch.setattr(submission, "write_atomic", full)
    with pytest.raises(StorageError, match="no space left"):
        submission.submit("local", [["retbench", "run", "x"]], tmp_path, Resources())
    ((folder, noted),) = found
    assert submission._find_controller(noted.job_ids[0], folder) is None


def test_a_process_that_has_no_words_yet_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = psutil.Process.cmdline
    answers: Iterator[list[str]] = iter([[]])
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: next(answers, words(self)))
    command = [sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path)]
    with subprocess.Popen(command) as child:
        found = submission._find_controller(str(child.pid), tmp_path)
        child.kill()
    assert found is not None
    assert found.pid == child.pid


def note(state: str, **fields: object) -> JobNote:
    return JobNote.model_validate({"state": state, "starts": 2, "changed_at": utc_now(), **fields})


def test_a_damaged_submission_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    """One lacks the id of a job, one is no JSON, and of one the state of a job is damaged."""
    commands = [["retbench", "run", "x"], ["retbench", "run", "y"]]
    fields = {"submitted_at": utc_now(), "cluster": "local", "commands": commands}
    whole = json.dumps({**fields, "job_ids": ["7", "8"]})
    damaged = {"b": json.dumps({**fields, "job_ids": ["7"]}), "c": whole[:40], "d": whole}
    for name, text in {"a": whole, **damaged, "e": whole}.items():
        (tmp_path / "jobs" / name).mkdir(parents=True)
        (tmp_path / "jobs" / name / "submission.json").write_text(text, encoding="utf-8")
    (tmp_path / "jobs" / "d" / "shard-2.json").write_text("{", encoding="utf-8")
    done = CliRunner().invoke(app, ["jobs", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 1
    logs = [Path(job["log"]) for job in json.loads(done.stdout)["jobs"]]
    assert [log.parent.name for log in logs] == ["a", "a", "e", "e"]
    problems = done.stderr.splitlines()
    assert [f"jobs/{name}/" in problem for name, problem in zip("bcd", problems, strict=True)] == [True] * 3
    assert all("Remove its folder" in problem or "Remove it." in problem for problem in problems)


@pytest.mark.parametrize(
    ("cluster", "written", "queue", "state"),
    [
        ("slurm", None, {"7_0": "PENDING"}, "pending"),
        ("slurm", "running", {"7_0": "RUNNING"}, "running"),
        ("slurm", "requeued", {"7_0": "PENDING"}, "requeued"),
        ("slurm", "running", {}, "lost"),
        ("slurm", "running", None, "running"),
        ("slurm", "done", {}, "done"),
        ("local", "running", {}, "lost"),
        ("local", "failed", {}, "failed"),
    ],
)
def test_states_are_those_that_jobs_wrote_unless_they_are_gone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: str,
    written: str | None,
    queue: dict[str, str] | None,
    state: str,
) -> None:
    folder = tmp_path / "jobs" / "one"
    folder.mkdir(parents=True)
    fields = {"submitted_at": utc_now(), "cluster": cluster, "commands": [["retbench", "run", "x"]]}
    found = Submission.model_validate({**fields, "job_ids": ["7_0"]})
    (folder / "submission.json").write_text(found.model_dump_json(), encoding="utf-8")
    if written:
        (folder / "shard-1.json").write_text(note(written).model_dump_json(), encoding="utf-8")
    monkeypatch.setattr(submission, "_slurm_queue", lambda job_ids: queue)
    assert [row.state for row in list_jobs(tmp_path)[0]] == [state]


def test_a_command_that_is_signalled_to_end_ends_before_its_job_does() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        cluster_job._stop(child, 60.0)
    assert child.returncode == -signal.SIGTERM
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        cluster_job._stop(child, 0.1)
    assert child.returncode == -signal.SIGKILL


def process(*words: str) -> None:
    """Carry out a command in a process of its own."""
    command = [sys.executable, "-m", "retbench", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def measured_already(plan: Plan, run_info: RunInfo, out: Path) -> None:
    """Write a record of every cell of a plan, as a run on this machine would."""
    threads = plan.settings.threads
    variables = computing_variables(os.environ | worker_environment(threads, "cpu"))
    facts = describe_environment("cpu", threads) | {"variables": variables}
    for cell in plan.cells:
        record = make_record(run_info, cell, 0, Outcome("ok", utc_now()), Surroundings(facts))
        append_record(out / machine_name("cpu") / run_info.experiment / "run-1.jsonl", record)


def wait_until(out: Path, holds: Callable[[JobRow], bool], limit_s: float = 240.0) -> JobRow:
    deadline = time.monotonic() + limit_s
    while True:
        ((row,), _) = list_jobs(out)
        if holds(row):
            return row
        assert time.monotonic() < deadline, (row, row.log.read_text(encoding="utf-8"))
        time.sleep(0.2)


@pytest.mark.slow
def test_a_local_job_is_requeued_at_its_time_limit_and_continues(
    tmp_path: Path,
    tiny_experiment: Path,
    plan_of: Callable[..., Plan],
    run_info: RunInfo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run waits for another one until its time is over; requeued, it finds what that one measured."""
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path / "lock"))
    out = tmp_path / "out"
    words = ("run", str(tiny_experiment), *SMOKE, "--out", str(out))
    started = time.monotonic()
    process(*words, "--dry-run")
    # On a busy machine a command takes longer to begin.
    enough_s = 1 + 2 * (time.monotonic() - started)
    limits = ("--timeout-min", f"{(enough_s + 20) / 60}", "--signal-delay-s", "20")
    with timing_lock("another run", "cpu", wait=pytest.fail):
        process("submit", "--cluster", "local", *limits, *words)
        wait_until(out, lambda row: row.log.is_file() and "waiting: another" in row.log.read_text("utf-8"))
        measured_already(plan_of(), run_info, out)
        wait_until(out, lambda row: row.starts >= 2)
    row = wait_until(out, lambda row: row.state in submission.ENDED)
    log = row.log.read_text(encoding="utf-8")
    assert row.state == "done", log
    assert "waiting: another run is timing on this machine" in log
    assert len([*out.rglob("*.jsonl")]) == 1  # nothing was measured again
    assert f"{row.job_id}" in run("jobs", "--out", str(out))[1]


def test_a_job_ends_with_its_controller_and_can_be_cancelled(
    tmp_path: Path, tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both jobs wait for another run; the controller of the first is killed, and the second is cancelled."""
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path / "lock"))
    out = tmp_path / "out"
    words = ("run", str(tiny_experiment), *SMOKE, "--set", "workloads.decode.batch_size=[1,2]")
    with timing_lock("another run", "cpu", wait=pytest.fail):
        process("submit", "--cluster", "local", "--shards", "2", *words, "--out", str(out))
        rows, _ = list_jobs(out)
        deadline = time.monotonic() + 60
        while not all(row.log.is_file() and "waiting:" in row.log.read_text("utf-8") for row in rows):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        processes = [psutil.Process(int(row.job_id)).children(recursive=True) for row in rows]
        os.kill(int(rows[0].job_id), signal.SIGKILL)
        code, output = run("jobs", "--out", str(out), "--cancel", rows[1].job_id, "--json")
    assert code == 0, output
    assert not psutil.wait_procs([one for tree in processes for one in tree], timeout=10)[1]
    assert [row["state"] for row in json.loads(output)["jobs"]] == ["lost", "cancelled"]
    assert "interrupted" in rows[1].log.read_text("utf-8")  # its command was signalled to end
    for job_id, reason in ((rows[1].job_id, "has ended (cancelled)"), ("0", "is no job of")):
        code, output = run("jobs", "--out", str(out), "--cancel", job_id)
        assert (code, reason in output) == (2, True), output


def test_submitit_starts_local_jobs_as_often_as_is_said() -> None:
    controller = cluster_job.load_submitit("submitit.local.local").Controller
    assert inspect.signature(controller.run).parameters["max_retry"].default == cluster_job.LOCAL_STARTS


def test_a_local_job_that_reaches_its_last_limit_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    job = ShardJob(("retbench", "list"), tmp_path, 1, Resources(timeout_min=90, max_timeouts=1))
    (tmp_path / "shard-1.json").write_text(note("running").model_dump_json(), encoding="utf-8")
    with pytest.raises(RetbenchError, match=r"time limit \(--timeout-min 90\) 2 times"):
        job.checkpoint()


@pytest.mark.parametrize("visible", ["3", None])
def test_the_command_of_a_local_job_sees_the_gpus_that_the_submission_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    """The environment is that in which submitit starts such a job."""
    seen: list[dict[str, str]] = []

    def start(words: list[str], **options: Any) -> None:
        seen.append(options["env"])
        raise OSError("enough")

    variables = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ShardJob, "_follow_controller", lambda job, pid: None)
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(OSError, match="enough"):
        ShardJob(("retbench", "list"), tmp_path, 1, Resources(), visible)()
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in seen] == [visible]


def test_a_cancelled_job_of_slurm_keeps_that_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_DEBUG_JOB_ID", "DEBUG_1")
    folder = tmp_path / "jobs" / "one"
    folder.mkdir(parents=True)
    fields = {"submitted_at": utc_now(), "cluster": "slurm", "commands": [["retbench", "list"]] * 2}
    found = Submission.model_validate({**fields, "job_ids": ["7_0", "7_1"]})
    (folder / "submission.json").write_text(found.model_dump_json(), encoding="utf-8")
    scancel = tmp_path / "scancel"
    scancel.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/given\n', encoding="utf-8")
    scancel.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    submission.cancel(tmp_path, "7")
    assert (tmp_path / "given").read_text("utf-8") == "7_0 7_1\n"
    with pytest.raises(Exception, match="was cancelled"):
        ShardJob(("retbench", "list"), folder, 1, Resources())()
    assert [row.state for row in list_jobs(tmp_path)[0]] == ["cancelled", "cancelled"]


def test_a_job_notes_how_its_command_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_job, "_SIGNAL_WAIT_S", 0.1)
    monkeypatch.setenv("SUBMITIT_DEBUG_JOB_ID", "DEBUG_1")
    job = ShardJob(("retbench", "list", "--nonsense"), tmp_path, 1, Resources())
    with pytest.raises(Exception, match="ended with exit code 2; its stderr says why"):
        job()
    found = read_note(tmp_path, 1)
    assert found is not None
    assert (found.state, found.exit_code, found.starts) == ("failed", 2, 1)
    requeued = job.checkpoint()
    assert requeued.function is job
    again = read_note(tmp_path, 1)
    assert again is not None
    assert again.state == "requeued"
