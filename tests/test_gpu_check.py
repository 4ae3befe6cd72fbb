"""The procedure for a GPU, with small processes in the place of its steps, and its commands held to the code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Step, exit_code, run_step, run_steps, steps_for
from retbench.planning import plan
from retbench.run.devices import Device

# Says that it runs, then waits; on SIGINT it keeps what it has and ends as retbench does.
LISTENS = """
import pathlib, sys, time
print("running", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path(sys.argv[1]).write_text("kept")
    sys.exit(130)
"""
DEAF = """
import signal, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
time.sleep(60)
"""


def python(name: str, code: str, *arguments: object, guess_s: float = 10.0) -> Step:
    return Step(name, ("-c", code, *map(str, arguments)), guess_s)


def test_an_overrun_is_cut_short_and_kept_a_failure_is_told_and_the_next_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = [
        python("fails", "print('why it failed'); raise SystemExit(3)", guess_s=1),
        python("overruns", LISTENS, tmp_path / "kept", guess_s=30),
        python("goes on", "print('fine')", guess_s=60),
    ]
    outcomes = run_steps(steps, 9.0, tmp_path)
    assert [outcome.ending for outcome in outcomes] == ["not begun", "cut short", "done"]
    assert (tmp_path / "kept").read_text() == "kept"
    assert outcomes[1].took_s < 9.0
    assert (tmp_path / "3-goes-on.txt").read_text().splitlines()[-1] == "fine"
    assert exit_code(outcomes) == 4

    (failed,) = run_steps(steps[:1], 20.0, tmp_path)
    assert (failed.ending, failed.note) == ("failed", "exit code 3")
    assert "why it failed" in capfd.readouterr().err
    assert exit_code([failed, *outcomes]) == 1
    assert exit_code([outcomes[2]]) == 0


def test_a_step_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "GRACE_S", (0.2, 0.2))
    outcome = run_step(python("deaf", DEAF), 1.0, tmp_path / "log.txt")
    assert outcome.ending == "cut short"
    assert outcome.took_s < 20


PROCEDURE = """
import pathlib, sys
from benchmarks import gpu_check
code, out, kept = sys.argv[1:]
gpu_check.steps_for = lambda device, out: [
    gpu_check.Step("waits", ("-c", code, kept), 60),
    gpu_check.Step("comes after", ("-c", "pass"), 1),
]
sys.exit(gpu_check.main(["--device", "cpu", "--budget", "3", "--out", out]))
"""


def test_an_interrupt_ends_the_step_and_still_writes_what_there_is(tmp_path: Path) -> None:
    root = Path(gpu_check.__file__).parents[1]
    command = [sys.executable, "-c", PROCEDURE, LISTENS, tmp_path / "out", tmp_path / "kept"]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "logs" / "1-waits.txt"
    deadline = time.monotonic() + 60
    while not (log.exists() and "running" in log.read_text()[-10:]) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    summary, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "kept").read_text() == "kept"
    assert summary == (tmp_path / "out" / "summary.txt").read_text()
    first, second = summary.splitlines()[:2]
    assert first.startswith("waits ")
    assert "cut short" in first
    assert second.startswith("comes after ")
    assert "not begun" in second


def test_without_the_device_nothing_is_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--device", "cuda:99", "--out", str(tmp_path / "out")]) == 3
    assert "gpu-check: --device cuda:99: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--budget", "0.5"])


def test_on_a_cpu_only_smoke_is_tried(tmp_path: Path) -> None:
    steps = steps_for("cpu", tmp_path)
    assert [step.name for step in steps[2:]] == ["smoke: latency", "smoke: memory"]
    assert not any("paper" in word or "cuda" in word for step in steps for word in step.words)


@pytest.mark.parametrize("has_fla", [False, True])
def test_its_sweeps_are_cells_of_the_papers_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_fla: bool
) -> None:
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: object() if has_fla else None)
    monkeypatch.setattr(plan, "find_device", lambda asked: Device("cuda:0", 80 * 10**9))
    whole = plan.make_plan("latency", profile="paper", device="cuda", dtype=None, limit=None, overrides=[])
    wanted = {cell.cell_id for cell in whole.cells}
    found: list[str] = []
    steps = [
        step for step in steps_for("cuda:0", tmp_path) if "latency" in step.words and "paper" in step.words
    ]
    assert len(steps) == 3 + has_fla
    for step in steps:
        overrides = [value for flag, value in _options(step) if flag == "--set"]
        part = plan.make_plan(
            "latency", profile="paper", device="cuda:0", dtype=None, limit=None, overrides=overrides
        )
        assert part.rounds == whole.rounds
        found += [cell.cell_id for cell in part.cells if cell.backend != "fla"]
    assert set(found) == wanted


def test_what_triton_compiles_for_comes_last_and_the_guesses_fill_half_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: object())
    steps = steps_for("cuda:0", tmp_path)
    assert sum(step.guess_s for step in steps) + gpu_check.REPORT_S == 30 * 60
    chosen = [step.words[step.words.index("-k") + 1] for step in steps if "pytest" in step.words]
    assert chosen == ["not test_fla_", "test_fla_"]
    assert "def test_fla_" in (gpu_check.ROOT / "tests" / "models" / "test_cuda.py").read_text()


def _options(step: Step) -> list[tuple[str, str]]:
    """Flags and values of a `retbench run`."""
    words = step.words[step.words.index("latency") + 1 :]
    return list(zip(words[::2], words[1::2], strict=True))
