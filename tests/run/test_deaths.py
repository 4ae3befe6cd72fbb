import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retbench.records.record import Status
from retbench.run import deaths
from retbench.run.deaths import explain_death, read_oom_kills

VMSTAT = "/proc/vmstat"


@pytest.mark.parametrize(
    ("returncode", "words", "risen", "status", "reason"),
    [
        (-9, "", 1, "oom", "killed the worker for want of memory (oom_kill rose in /proc/vmstat)"),
        (-9, "", 0, "failed", "SIGKILL; no out-of-memory counter rose, so who did it and why is not known"),
        (-11, "", 0, "failed", "was ended by SIGSEGV. It wrote nothing to stderr."),
        (-11, "", 1, "failed", "was ended by SIGSEGV"),  # somebody else was killed meanwhile
        (-6, "terminate called: std::bad_alloc", 0, "oom", "ran out of memory and was ended by SIGABRT"),
        (1, "Traceback\nMemoryError", 0, "oom", "ran out of memory and ended with exit code 1"),
        (3, "what it said", 0, "failed", "ended with exit code 3 before its work was done"),
        (0, "", 0, "failed", "ended with exit code 0 before its work was done"),
        (-250, "", 0, "failed", "was ended by signal 250"),
    ],
)
def test_a_death_is_explained_by_its_evidence(
    returncode: int, words: str, risen: int, status: Status, reason: str
) -> None:
    found, error = explain_death(returncode, words, {VMSTAT: 4}, {VMSTAT: 4 + risen})
    assert found == status
    assert reason in error
    assert all(line in error for line in words.splitlines())


def test_a_kill_without_any_counter_says_so() -> None:
    status, error = explain_death(-9, "", {}, {})
    assert status == "failed"
    assert "this system has no out-of-memory counter" in error


def test_only_the_last_words_are_quoted() -> None:
    _, error = explain_death(1, "\n".join(f"line {number}" for number in range(100)), {}, {})
    assert error.endswith("line 98\nline 99")
    assert "line 50" not in error


@pytest.mark.skipif(not Path(VMSTAT).exists(), reason="needs Linux")
def test_the_kernels_counters_are_read() -> None:
    counters = read_oom_kills(os.getpid())
    assert counters[VMSTAT] >= 0
    assert read_oom_kills(2**22 + 1).keys() == {VMSTAT}  # no such process: the system's counter alone


def test_counters_of_both_versions_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "memory" / "c").mkdir(parents=True)
    (tmp_path / "a" / "b" / "memory.events").write_text("oom 9\noom_kill 5\n", encoding="utf-8")
    (tmp_path / "memory" / "c" / "memory.oom_control").write_text(
        "under_oom 0\noom_kill 6\n", encoding="utf-8"
    )
    monkeypatch.setattr(deaths, "_CGROUPS", tmp_path)
    monkeypatch.setattr(deaths, "_VMSTAT", tmp_path / "none")
    real = Path.read_text
    groups = "4:memory:/c\n2:cpu,cpuacct:/d\n0::/a/b\n"

    def read_text(path: Path, encoding: str | None = None) -> str:
        return groups if str(path) == "/proc/1/cgroup" else real(path, encoding=encoding)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert sorted(read_oom_kills(1).values()) == [5, 6]


def test_a_real_crash_is_named() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGBUS)"
    returncode = subprocess.run([sys.executable, "-c", code], check=False).returncode
    assert explain_death(returncode, "", {}, {}) == (
        "failed",
        "the worker was ended by SIGBUS. It wrote nothing to stderr.",
    )
    assert returncode == -signal.SIGBUS
