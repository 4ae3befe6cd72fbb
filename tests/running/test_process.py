"""The worker's process, with a script in place of the worker's program."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest

from retbench.errors import RetbenchError
from retbench.measure import machine
from retbench.planning.plan import Plan
from retbench.records.record import Status
from retbench.running import process
from retbench.running.locks import Interrupted
from retbench.running.process import Inbox, Interrupt, Worker, WorkerExit, explain_exit, read_oom_kills
from retbench.running.protocol import CELL_MARK, Advanced, Ended, Job, Message, RunInfo, Started, encode

Start = Callable[[str], Worker]

VMSTAT = "/proc/vmstat"
HEAD = "import os, sys, time\nsys.stdin.readline()\n"


@pytest.fixture
def job(plan_of: Callable[..., Plan], run_info: RunInfo, tmp_path: Path) -> Job:
    plan = plan_of()
    return Job(
        task="measure",
        run=run_info,
        cells=plan.cells,
        records_path=tmp_path / "a.jsonl",
        states_dir=tmp_path / "states",
        parent_pid=os.getpid(),
    )


@pytest.fixture
def inbox() -> Inbox:
    return SimpleQueue()


@pytest.fixture
def start(job: Job, inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a worker that runs a script in place of retbench.running.worker."""
    real = subprocess.Popen

    def begin(script: str) -> Worker:
        path = tmp_path / "script.py"
        path.write_text(HEAD + script, encoding="utf-8")
        monkeypatch.setattr(
            subprocess,
            "Popen",
            lambda _command, **options: real([sys.executable, str(path)], **options),
        )
        worker = Worker(job, inbox, {"RETBENCH_TEST": "set"})
        monkeypatch.setattr(subprocess, "Popen", real)
        return worker

    return begin


def say(*messages: Message) -> str:
    return "".join(
        f"sys.stdout.buffer.write({encode(message)!r}); sys.stdout.flush()\n" for message in messages
    )


def messages_of(worker: Worker, timeout_s: float = 60.0) -> list[Message | WorkerExit]:
    with worker:
        return list(worker.messages(timeout_s))


def test_messages_come_in_order_and_noise_does_not(start: Start) -> None:
    script = "print('a banner', end='')\n" + say(Started(index=0)) + "print('noise {')\n" + say(Ended())
    assert messages_of(start(script)) == [Started(index=0), Ended()]


def test_the_worker_gets_its_variables(start: Start) -> None:
    script = "assert os.environ['RETBENCH_TEST'] == 'set'\n" + say(Ended())
    assert messages_of(start(script)) == [Ended()]


@pytest.mark.parametrize(
    ("last_step", "reason"),
    [
        ("os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        ("os.kill(os.getpid(), 9)", "was killed with SIGKILL; no out-of-memory counter rose"),
        ("sys.exit(7)", "ended with exit code 7"),
        ("pass", "ended with exit code 0 before its work was done"),
    ],
)
def test_the_end_of_a_worker_is_explained(start: Start, last_step: str, reason: str) -> None:
    script = say(Started(index=1)) + "print('my last line', file=sys.stderr, flush=True)\n" + last_step + "\n"
    first, ended = messages_of(start(script))
    assert first == Started(index=1)
    assert isinstance(ended, WorkerExit)
    assert ended.status == "failed"
    assert reason in ended.reason
    assert ended.reason.endswith("my last line")


@pytest.mark.slow
def test_a_worker_that_a_driver_holds_ends_the_run_and_not_the_wait(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker ignores signals, as a process that the kernel cannot interrupt (state D) seems to."""
    worker = start(say(Started(index=0)) + "time.sleep(60)\n")
    monkeypatch.setattr(process, "_KILL_WAIT_S", 0.2)
    monkeypatch.setattr(os, "killpg", lambda pid, number: None)
    received: list[Message | WorkerExit] = []
    began = time.monotonic()
    try:
        with pytest.raises(RetbenchError, match=rf"process {worker.pid}\) has not ended"), worker:
            received += worker.messages(0.5)
        with pytest.raises(KeyError), worker:
            raise KeyError
        assert time.monotonic() - began < 30
    finally:
        monkeypatch.undo()
        assert worker.kill()
    assert isinstance(received[-1], WorkerExit)
    assert received[-1].status == "timeout"


def test_output_of_an_earlier_cell_does_not_explain_an_exit(start: Start) -> None:
    words = "print('CUDA out of memory', end='', file=sys.stderr, flush=True)\n"
    mark = f"sys.stderr.write({chr(10) + CELL_MARK.decode() + chr(10)!r}); sys.stderr.flush()\n"
    script = say(Started(index=0)) + words + mark + say(Started(index=1)) + "os.kill(os.getpid(), 11)\n"
    *_, ended = messages_of(start(script))
    assert ended == WorkerExit("failed", "the worker was ended by SIGSEGV. It wrote nothing to stderr.")


def test_a_cell_that_takes_too_long_ends_the_worker(start: Start) -> None:
    worker = start(say(Started(index=0)) + "time.sleep(600)\n")
    _, ended = messages_of(worker, timeout_s=0.2)
    assert ended == WorkerExit(
        "timeout", "the cell said nothing for timeout_s = 0.2 and was ended (--set timeout_s= changes it)."
    )
    assert not psutil.pid_exists(worker.pid)


@pytest.mark.slow
def test_a_cell_that_reports_progress_may_take_longer(start: Start) -> None:
    reports = [Advanced(num_tokens=number) for number in range(6)]
    script = say(Started(index=0)) + "".join("time.sleep(0.4)\n" + say(report) for report in reports)
    *received, ended = messages_of(start(script + "time.sleep(600)\n"), timeout_s=2)
    assert received == [Started(index=0), *reports]
    assert isinstance(ended, WorkerExit)
    assert "said nothing for timeout_s = 2 " in ended.reason


def test_silence_outside_a_cell_has_its_own_limit(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SETUP_TIMEOUT_S", 0.5)
    (ended,) = messages_of(start("time.sleep(600)\n"), timeout_s=600.0)
    assert isinstance(ended, WorkerExit)
    assert ended.status == "timeout"
    assert "while no cell was being measured" in ended.reason


def test_a_stopped_worker_is_ended_too(start: Start) -> None:
    worker = start(say(Started(index=0)) + "time.sleep(600)\n")
    with worker:
        received: Iterator[Message | WorkerExit] = worker.messages(0.3)
        assert next(received) == Started(index=0)
        os.kill(worker.pid, signal.SIGSTOP)
        ended = next(received)
    assert isinstance(ended, WorkerExit)
    assert ended.status == "timeout"
    assert not psutil.pid_exists(worker.pid)


def test_an_interrupt_ends_the_messages_and_the_worker(start: Start, inbox: Inbox) -> None:
    worker = start("time.sleep(600)\n")
    inbox.put(Interrupt())
    with pytest.raises(Interrupted), worker:
        next(worker.messages(60.0))
    assert not psutil.pid_exists(worker.pid)


def test_children_of_a_worker_end_with_it(start: Start, tmp_path: Path) -> None:
    script = (
        "import subprocess\nchild = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        + say(Started(index=0))
        + "time.sleep(600)\n"
    )
    with start(script) as worker:
        next(worker.messages(60.0))
        child = int((tmp_path / "child").read_text(encoding="utf-8"))
        assert psutil.pid_exists(child)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_late_message_of_an_ended_worker_is_ignored(start: Start, inbox: Inbox) -> None:
    inbox.put((1, Started(index=3)))
    inbox.put((1, None))
    assert messages_of(start(say(Ended()))) == [Ended()]


def test_a_flood_on_stderr_does_not_block_and_keeps_its_end(start: Start) -> None:
    flood = "sys.stderr.write('x' * 10_000_000 + '\\n' * 200_000 + 'the end'); sys.exit(1)\n"
    (ended,) = messages_of(start(flood))
    assert isinstance(ended, WorkerExit)
    assert ended.reason.endswith("the end")
    assert len(ended.reason) < 100_000


@pytest.mark.parametrize(
    ("returncode", "words", "risen", "status", "reason"),
    [
        (-9, "", 1, "oom", "(oom_kill rose in /proc/vmstat)"),
        (-9, "", 0, "failed", "SIGKILL; no out-of-memory counter rose"),
        (-11, "", 0, "failed", "was ended by SIGSEGV. It wrote nothing to stderr."),
        (-11, "", 1, "failed", "was ended by SIGSEGV"),  # another process was killed meanwhile
        (-6, "terminate called: std::bad_alloc", 0, "oom", "ran out of memory and was ended by SIGABRT"),
        (1, "Traceback\nMemoryError", 0, "oom", "ran out of memory and ended with exit code 1"),
        (3, "its output", 0, "failed", "ended with exit code 3 before its work was done"),
        (0, "", 0, "failed", "ended with exit code 0 before its work was done"),
        (-250, "", 0, "failed", "was ended by signal 250"),
    ],
)
def test_an_exit_is_explained_by_its_evidence(
    returncode: int, words: str, risen: int, status: Status, reason: str
) -> None:
    found = explain_exit(returncode, words, {VMSTAT: 4}, {VMSTAT: 4 + risen})
    assert found.status == status
    assert reason in found.reason
    assert all(line in found.reason for line in words.splitlines())


def test_a_kill_without_any_counter_says_so() -> None:
    found = explain_exit(-9, "", {}, {})
    assert found.status == "failed"
    assert "this system has no out-of-memory counter" in found.reason


def test_only_the_end_of_stderr_is_quoted() -> None:
    error = explain_exit(1, "\n".join(f"line {number}" for number in range(100)), {}, {}).reason
    assert error.endswith("line 98\nline 99")
    assert "line 50" not in error


@pytest.mark.skipif(not Path(VMSTAT).exists(), reason="needs Linux")
def test_the_kernels_counters_are_read() -> None:
    assert read_oom_kills()[VMSTAT] >= 0


def test_counters_of_both_versions_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("self/cgroup", "4:memory:/c\n2:cpu,cpuacct:/d\n0::/a/b\n"),
        ("a/b/memory.events", "oom 9\noom_kill 5\n"),
        ("memory/c/memory.oom_control", "under_oom 0\noom_kill 6\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(process, "_VMSTAT", tmp_path / "none")
    assert sorted(read_oom_kills().values()) == [5, 6]


def test_a_real_crash_is_named() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGBUS)"
    returncode = subprocess.run([sys.executable, "-c", code], check=False).returncode
    assert explain_exit(returncode, "", {}, {}) == WorkerExit(
        "failed", "the worker was ended by SIGBUS. It wrote nothing to stderr."
    )
    assert returncode == -signal.SIGBUS
