"""The procedure for a GPU, with small processes in the place of its steps, and its commands held to the code."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
from _pytest.mark.expression import Expression

from benchmarks import gpu_check
from benchmarks.gpu import steps as gpu_steps
from benchmarks.gpu.steps import Step, run_step, stop
from benchmarks.gpu_check import exit_code, run_steps, steps_for, time_limit
from retbench.measure.devices import Device
from retbench.papers.papers import find_datasheet
from retbench.planning import plan
from retbench.planning.plan import Plan
from retbench.running.estimates import estimate_with

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


def python(name: str, code: str, *arguments: object, expected_s: float = 10.0) -> Step:
    return Step(name, ("-c", code, *map(str, arguments)), expected_s)


def test_an_overrun_is_cut_short_and_kept_a_failure_is_reported_and_the_next_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = [
        python("fails", "print('why it failed'); raise SystemExit(1)"),
        python("is not possible", "print('more words'); print('nsys is not installed'); raise SystemExit(3)"),
        python("overruns", LISTENS, tmp_path / "kept", expected_s=2),
        python("goes on", "print('fine')"),
    ]
    outcomes = run_steps(steps, 30.0, tmp_path)
    assert [outcome.ending for outcome in outcomes] == ["failed", "not supported", "cut short", "done"]
    assert [outcome.note for outcome in outcomes] == ["exit code 1", "nsys is not installed", "", ""]
    assert (tmp_path / "kept").read_text() == "kept"
    assert outcomes[2].took_s < 12.0
    assert (tmp_path / "4-goes-on.txt").read_text().splitlines()[-1] == "fine"
    assert "why it failed" in capfd.readouterr().err
    assert [exit_code(outcomes), exit_code(outcomes[1:]), exit_code(outcomes[1::2])] == [1, 4, 0]
    (late,) = run_steps(steps[3:], 1.0, tmp_path)
    assert (late.ending, late.note) == ("not begun", "no time was left")


def test_nothing_is_begun_without_a_step_that_all_others_need(tmp_path: Path) -> None:
    steps = [
        replace(python("device", "raise SystemExit(1)"), is_needed=True),
        python("later", "print('fine')"),
    ]
    first, later = run_steps(steps, 30.0, tmp_path)
    assert (first.ending, later.ending) == ("failed", "not begun")
    assert later.note == f"needs 'device', which failed: see {tmp_path / '1-device.txt'}"
    assert exit_code([first, later]) == 1


def test_a_step_with_spare_time_gets_it_where_the_budget_has_it() -> None:
    step = replace(python("sweep", "pass"), spare_s=60.0)
    later = python("later", "pass", expected_s=1000.0)
    assert [gpu_check.time_limit(step, [step, later], left_s) for left_s in (500.0, 40.0)] == [70.0, 40.0]


def test_tests_of_the_first_gpu_are_shown_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for shown, asked, expected in ((None, "cuda:2", "2"), ("5,7", "cuda:1", "7"), ("5,7", "cuda:0", "5,7")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if shown:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert gpu_check._show_one(asked) == "cuda:0"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize(
    ("left_s", "limit_s"),
    [(400.0, 200.0), (100.0, 15.0), (12.0, 12.0)],
)
def test_a_step_may_take_its_share_of_a_large_budget_and_all_that_is_left_of_a_small_one(
    left_s: float, limit_s: float
) -> None:
    steps = [python("first", "", expected_s=10), python("second", "", expected_s=10 if left_s > 300 else 90)]
    assert time_limit(steps[0], steps, left_s) == pytest.approx(limit_s)


def test_a_step_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "GRACE_S", (0.2, 0.2))
    outcome = run_step(python("deaf", DEAF), 1.0, tmp_path / "log.txt")
    assert outcome.ending == "cut short"
    assert outcome.took_s < 20


def test_a_step_that_a_driver_holds_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ignores signals and SIGKILL does not arrive, as in state D."""
    started: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(gpu_steps, "GRACE_S", (0.1, 0.1))
    monkeypatch.setattr(gpu_steps, "KILL_WAIT_S", 0.1)
    monkeypatch.setattr(gpu_steps, "stop", lambda process: (started.append(process), stop(process))[1])
    monkeypatch.setattr(os, "killpg", lambda pid, number: None)
    outcomes = run_steps([python("held", DEAF, expected_s=1), python("next", "pass")], 20.0, tmp_path)
    (held,) = started
    held.kill()
    held.wait(10)
    assert [outcome.ending for outcome in outcomes] == ["failed", "done"]
    assert outcomes[0].note == f"process {held.pid} has not ended after SIGKILL: a driver holds it"


LEAVES = """
import pathlib, subprocess, sys
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1]).write_text(str(left.pid))
sys.exit(1)
"""


def test_a_step_leaves_no_process_behind(tmp_path: Path) -> None:
    assert run_step(python("leaves", LEAVES, tmp_path / "pid"), 20.0, tmp_path / "log.txt").ending == "failed"
    left = psutil.Process(int((tmp_path / "pid").read_text()))
    with suppress(psutil.NoSuchProcess):  # its new parent may not have waited for it
        assert left.status() == psutil.STATUS_ZOMBIE or left.wait(5) is None


def test_the_reason_of_a_step_that_cannot_run_is_logged_and_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('fla is not installed', file=sys.stderr); sys.exit(3)"
    outcome = run_step(python("needs fla", code), 20.0, tmp_path / "1-needs-fla.txt")
    assert (outcome.ending, outcome.note) == ("not supported", "fla is not installed")
    assert (tmp_path / "1-needs-fla.stderr.txt").read_text() == "fla is not installed\n"
    assert capfd.readouterr().err == "fla is not installed\n"


@pytest.mark.parametrize(("module", "ending"), [("pytest", "failed"), ("sweep", "not supported")])
def test_an_internal_error_of_pytest_is_a_failure(tmp_path: Path, module: str, ending: str) -> None:
    """Its exit code is the one of retbench for what is not supported."""
    outcome = run_step(python(module, "raise SystemExit(3)", module), 20.0, tmp_path / "log.txt")
    assert outcome.ending == ending


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


def test_the_budget_holds_the_end_of_a_step_that_overruns_and_the_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_s: list[float] = []

    def run(steps: list[Step], budget_s: float, logs: Path) -> list[gpu_steps.Outcome]:
        given_s.append(budget_s)
        return [gpu_steps.Outcome(steps[0], "done")]

    monkeypatch.setattr(gpu_check, "run_steps", run)
    for minutes in ("3", "30"):
        assert gpu_check.main(["--device", "cpu", "--budget", minutes, "--out", str(tmp_path / "out")]) == 0
    worst_s = sum(gpu_steps.GRACE_S) + gpu_check.REPORT_S
    assert [budget_s + worst_s for budget_s in given_s] == [180.0, 1800.0]


def test_without_the_device_nothing_is_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--device", "cuda:99", "--out", str(tmp_path / "out")]) == 3
    assert "gpu-check: --device cuda:99: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--budget", "0.5"])


def test_on_a_cpu_only_what_needs_no_gpu_is_tried(tmp_path: Path) -> None:
    steps = steps_for("cpu", tmp_path)
    assert [step.name for step in steps] == [
        "device",
        "environment, ceilings",
        "layout of weights",
        "smoke: latency",
        "smoke: memory",
    ]
    assert not any("paper" in word or "cuda" in word for step in steps for word in step.words)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bool], list[Step]]:
    """Return the steps for a GPU of 80 GB, with and without fla."""

    def steps(has_fla: bool) -> list[Step]:
        monkeypatch.setattr(gpu_check, "find_spec", lambda name: object() if has_fla else None)
        monkeypatch.setattr(plan, "find_device", lambda asked: Device("cuda:0", 85 * 10**9))
        return steps_for("cuda:0", tmp_path)

    return steps


OnGpu = Callable[[bool], list[Step]]


def test_on_a_gpu_facts_come_first_and_the_most_valuable_sweeps_before_the_others(on_gpu: OnGpu) -> None:
    assert [step.name for step in on_gpu(True)] == [
        "device",
        "environment, ceilings",
        "layout of weights",
        "kernel census",
        "fla: compile its kernels",
        "tests: graphs, memory, driver",
        "tests: equivalence, kernels",
        "smoke: latency",
        "smoke: memory",
        "paper, 1.3b: decode, batch 1",
        "paper, 6.7b: memory",
        "paper, 6.7b: largest batch",
        "paper, 1.3b: prefill",
        "paper, 6.7b: decode, batch 1",
        "paper, 6.7b: decode, batch 8",
        "paper, 6.7b: prefill",
        "paper, 1.3b: decode of kin, batch 1",
        "paper, 6.7b: throughput",
        "paper, 1.3b: decode, compiled",
        "kernel census of kin",
        "fla: all tests",
    ]


def test_what_triton_compiles_for_has_a_step_before_the_equivalence_checks(on_gpu: OnGpu) -> None:
    names = [step.name for step in on_gpu(True)]
    assert names.index("fla: compile its kernels") < min(
        names.index(name) for name in names if "tests: " in name
    )
    assert not any("fla" in step.name for step in on_gpu(False))
    test_cuda = (gpu_steps.ROOT / "tests" / "models" / "test_cuda.py").read_text(encoding="utf-8")
    assert f"def {gpu_check.FLA_TESTS}" in test_cuda
    assert all(f"def {name}" in test_cuda for name in gpu_check.FLA_FIRST.split(" or "))


def test_only_files_with_tests_of_a_gpu_are_collected(on_gpu: OnGpu) -> None:
    files = (gpu_steps.ROOT / "tests").glob("*/test_*.py")
    marked = [file for file in files if re.search(r"pytest\.mark\.gpu\b", file.read_text(encoding="utf-8"))]
    expected = {str(file.relative_to(gpu_steps.ROOT)) for file in marked}
    for step in on_gpu(True):
        if "pytest" in step.words:
            assert {word for word in step.words if word.endswith(".py")} == expected


def test_each_test_of_a_gpu_is_in_one_step(on_gpu: OnGpu) -> None:
    chosen = [step.words[step.words.index("-k") + 1] for step in on_gpu(True) if "pytest" in step.words]
    steps = {
        "test_fla_streams": [True, False, False, False],
        "test_a_replayed_step_equals_an_eager_one": [False, True, False, False],
        "test_the_gate_is_green": [False, False, True, False],
        "test_flash_equals_sdpa_equals_reference": [False, False, True, False],
        "test_fla_trains_as_the_chunkwise_form_does": [False, False, False, True],
    }
    for name, expected in steps.items():
        matches = partial(lambda name, word, **_: word in name, name)
        assert [Expression.compile(one).evaluate(matches) for one in chosen] == expected


def test_without_fla_only_its_own_tests_are_in_no_step(on_gpu: OnGpu) -> None:
    chosen = [step.words[step.words.index("-k") + 1] for step in on_gpu(False) if "pytest" in step.words]
    for name, expected in (
        ("test_the_gate_is_green_with_heads_as_wide_as_the_papers", 1),
        ("test_fla_streams", 0),
    ):
        matches = partial(lambda name, word, **_: word in name, name)
        assert sum(Expression.compile(one).evaluate(matches) for one in chosen) == expected


def plan_of(step: Step) -> Plan:
    """Return what a sweep's command measures."""
    words = step.words[step.words.index("run") + 1 :]
    options = list(zip(words[1::2], words[2::2], strict=True))
    overrides = [value for flag, value in options if flag == "--set"]
    return plan.make_plan(words[0], profile=dict(options)["--profile"], device="cuda:0", overrides=overrides)


def sweeps(steps: list[Step]) -> dict[str, Plan]:
    return {step.name: plan_of(step) for step in steps if step.name.startswith("paper")}


@pytest.mark.parametrize("experiment", ["latency", "memory", "throughput"])
def test_the_sweeps_at_the_papers_size_are_the_cells_of_its_profiles(on_gpu: OnGpu, experiment: str) -> None:
    found = [
        cell.cell_id
        for name, part in sweeps(on_gpu(True)).items()
        if part.experiment.name == experiment and "1.3b" not in name
        for cell in part.cells
    ]
    whole = plan.make_plan(experiment, profile="paper", device="cuda")
    assert sorted(found) == sorted(cell.cell_id for cell in whole.cells)


@pytest.mark.parametrize("has_fla", [True, False])
def test_sweeps_take_two_rounds_and_a_prompt_is_read_by_what_is_installed(
    on_gpu: OnGpu, has_fla: bool
) -> None:
    found = sweeps(on_gpu(has_fla))
    assert {part.rounds for part in found.values()} <= {1, gpu_check.ROUNDS}
    cells = [cell for name, part in found.items() if "prefill" in name for cell in part.cells]
    assert {cell.backend for cell in cells if cell.model_name == "retnet"} == {
        "fla" if has_fla else "chunkwise"
    }


def test_the_time_of_a_sweep_is_the_projects_own_estimate(on_gpu: OnGpu) -> None:
    for step in on_gpu(True):
        if step.name.startswith(("smoke", "paper")):
            part = plan_of(step)
            ceilings = find_datasheet("a100-80gb").ceilings(part.settings.dtype)
            estimated_s = sum(one.seconds or 0.0 for one in estimate_with(part, ceilings))
            searches = sum(cell.workload == "largest_batch" for cell in part.cells)
            starts_s = ((part.rounds + 1) * len(part.models) + searches) * gpu_check.CUDA_START_S
            assert step.expected_s == pytest.approx(estimated_s + starts_s)
            assert step.expected_s > 30


@pytest.mark.parametrize(
    ("has_fla", "beyond"), [(True, "paper, 6.7b: decode, batch 1"), (False, "paper, 6.7b: decode, batch 8")]
)
def test_the_default_budget_holds_all_but_the_last_sweeps(on_gpu: OnGpu, has_fla: bool, beyond: str) -> None:
    expected_s = {step.name: step.expected_s for step in on_gpu(has_fla)}
    first = list(expected_s)[: list(expected_s).index(beyond)]
    assert sum(expected_s[name] for name in first) + gpu_check.REPORT_S + gpu_steps.STOP_S < 30 * 60


def test_the_small_size_has_a_folder_and_a_report_of_its_own(on_gpu: OnGpu, tmp_path: Path) -> None:
    folders = {
        step.name: step.words[step.words.index("--out") + 1] for step in on_gpu(True) if "run" in step.words
    }
    assert folders["paper, 1.3b: prefill"] == str(tmp_path / "1.3b" / "results")
    assert folders["paper, 1.3b: decode, compiled"] == str(tmp_path / "1.3b-compiled" / "results")
    assert folders["paper, 6.7b: prefill"] == str(tmp_path / "results")


def test_one_sweep_captures_compiled_steps(on_gpu: OnGpu) -> None:
    found = {name: part.settings for name, part in sweeps(on_gpu(True)).items() if part.settings.compile}
    assert [(name, one.cuda_graph) for name, one in found.items()] == [
        ("paper, 1.3b: decode, compiled", True)
    ]
