"""Check a new GPU within a time budget, the most valuable steps first: `python -m benchmarks.gpu_check`.

Each step is a process with a share of the remaining budget. A step that exceeds it is stopped, keeps what it has
measured, and the next step starts. A step that fails is reported and is not fatal. Records, logs, a report and a
summary are written in any case. The commands in the logs continue a sweep that was cut short.

Exit codes: 0 all done, 1 a test or another step failed, 2 the request is impossible, 3 no such device, 4 nothing
failed but something was cut short, 130 interrupted.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Literal

from retbench.config.experiment import load_experiment
from retbench.errors import ConfigError, RetbenchError
from retbench.run.devices import find_device
from retbench.units import format_duration

ROOT = Path(__file__).parents[1]
DEFAULT_OUT = Path("reports") / "gpu-check"
REPORT_S = 60.0
"""Reserved for the reports."""
LEAST_S = 2.0
"""A step with less time is not started."""
GRACE_S = (45.0, 15.0)
"""Seconds that a step may take to stop after SIGINT, and then after SIGTERM (where SIGINT is ignored)."""
TAIL_LINES = 15

EPILOG = """\
The expected times of the steps are guesses for an A100 or H100 of 80 GB; the budget is divided by them.

Example: python -m benchmarks.gpu_check --budget 30 --out reports/gpu-check
On a CPU, to try the procedure with the smoke profiles only: python -m benchmarks.gpu_check --device cpu --budget 5
"""

Ending = Literal["done", "failed", "cut short", "not begun"]


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: Name in the summary.
        words: Arguments of the interpreter.
        guess_s: Guessed seconds, by which the budget is divided.
    """

    name: str
    words: tuple[str, ...]
    guess_s: float


@dataclass(frozen=True)
class Outcome:
    """Result of a step: how it ended, the time it took and its limit, and a note on a failure."""

    step: Step
    ending: Ending
    took_s: float = 0.0
    limit_s: float = 0.0
    note: str = ""


def steps_for(device: str, out: Path) -> list[Step]:
    """Return every step except the reports, the most valuable first."""
    graphs = () if device == "cpu" else ("--set", "cuda_graph=true")
    steps = [
        Step("environment, ceilings", ("-m", "retbench", "env", "--device", device), 60),
        Step("tests that need a GPU", ("-m", "pytest", "-m", "gpu", "-k", "not test_fla_", "-q"), 180),
        _sweep("smoke: latency", "latency", device, out, 90, "--profile", "smoke", *graphs),
        _sweep("smoke: memory", "memory", device, out, 60, "--profile", "smoke"),
    ]
    if device == "cpu":
        return steps
    paper = ("--profile", "paper")
    steps += [
        _sweep("paper: decode, batch 1", "latency", device, out, 390, *paper, *_only("decode", [1])),
        _sweep("paper: memory", "memory", device, out, 120, *paper),
        _sweep("paper: decode, batch 8", "latency", device, out, 270, *paper, *_only("decode", [8])),
        _sweep("paper: prefill", "latency", device, out, 210, *paper, *_only("prefill", [1])),
    ]
    if find_spec("fla") is not None:
        # In a separate folder: a report shows one way of running a model.
        fla = ("--set", "models.retnet.backend=fla")
        words = (*paper, *_only("prefill", [1]), *fla)
        steps += [
            _sweep("paper: prefill, backend fla", "latency", device, out / "fla", 180, *words),
            # Last: Triton compiles hundreds of variants of the kernels to choose from.
            Step("tests of fla's kernels", ("-m", "pytest", "-m", "gpu", "-k", "test_fla_", "-q"), 180),
        ]
    return steps


def _sweep(name: str, experiment: str, device: str, out: Path, guess_s: float, *more: str) -> Step:
    """Return a step that runs an experiment."""
    results = str(out / "results")
    return Step(
        name, ("-m", "retbench", "run", experiment, "--device", device, "--out", results, *more), guess_s
    )


def _only(workload: str, batch_sizes: list[int]) -> tuple[str, ...]:
    """Return options that reduce the profile `paper` of latency to one workload at its own lengths.

    The cells are those of the whole profile, so that a later `retbench run latency --profile paper` continues them.
    """
    points = load_experiment("latency").profile("paper").workloads.specs[workload].points()
    lengths = sorted({point.context_len for point in points})
    table = f"workloads={{{workload}={{context_len={lengths}, batch_size={batch_sizes}}}}}"
    return ("--set", table)


class Stopped(Exception):  # noqa: N818 - an outcome, not an error
    """The user ended the whole check."""


def run_steps(steps: Sequence[Step], budget_s: float, logs: Path) -> list[Outcome]:
    """Run the steps one after the other and return an outcome for each, whatever happens."""
    end = monotonic() + budget_s
    outcomes: list[Outcome] = []
    for index, step in enumerate(steps):
        share = step.guess_s / sum(later.guess_s for later in steps[index:])
        limit_s = share * (end - monotonic())
        if limit_s < LEAST_S:
            outcomes.append(Outcome(step, "not begun", limit_s=max(0.0, limit_s), note="no time was left"))
            continue
        _say(f"[{index + 1} of {len(steps)}] {step.name}: at most {format_duration(limit_s)}")
        log = logs / f"{index + 1}-{_stem(step.name)}.txt"
        try:
            outcomes.append(run_step(step, limit_s, log))
        except Stopped:
            outcomes.append(Outcome(step, "cut short", limit_s=limit_s, note="interrupted"))
            outcomes += [Outcome(later, "not begun", note="interrupted") for later in steps[index + 1 :]]
            break
        _say_outcome(outcomes[-1], log)
    return outcomes


def run_step(step: Step, limit_s: float, log: Path) -> Outcome:
    """Run one step with its stdout in a file; Stopped if the user interrupts, after the step has been ended."""
    command = [sys.executable, *step.words]
    start = monotonic()
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        # In a new process session: Ctrl-C reaches this process only, and the whole group can be killed.
        process = subprocess.Popen(command, stdout=file, cwd=ROOT, start_new_session=True)
        overran = False
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            overran, code = True, stop(process)
        except KeyboardInterrupt:
            stop(process)
            raise Stopped from None
    took_s = monotonic() - start
    if code == 0:
        return Outcome(step, "done", took_s, limit_s)
    if overran:
        return Outcome(step, "cut short", took_s, limit_s)
    return Outcome(step, "failed", took_s, limit_s, f"exit code {code}")


def stop(process: subprocess.Popen[bytes]) -> int:
    """Interrupt a step, so that it keeps what it has measured; kill it if it does not end."""
    try:
        for number, grace_s in zip((signal.SIGINT, signal.SIGTERM), GRACE_S, strict=True):
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                return process.wait(grace_s)
    finally:  # after a second Ctrl-C too
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def write_reports(out: Path, logs: Path) -> list[Outcome]:
    """Write the report of every folder with records, and return an outcome for each."""
    outcomes = []
    for folder in (out, out / "fla"):
        if any(folder.glob("results/**/*.jsonl")):
            words = ("report", "--results", str(folder / "results"), "--out", str(folder / "report"))
            step = Step(f"report: {folder / 'report' / 'index.html'}", ("-m", "retbench", *words), REPORT_S)
            log = logs / f"report-{folder.name}.txt"
            outcomes.append(run_step(step, REPORT_S, log))
            _say_outcome(outcomes[-1], log)
    return outcomes


def summarise(outcomes: Sequence[Outcome], out: Path) -> str:
    """Return a line per step, and the folder of the results."""
    width = max(len(outcome.step.name) for outcome in outcomes)
    lines = [
        f"{one.step.name.ljust(width)}  {one.ending.ljust(9)}  {format_duration(one.took_s):>12}"
        f" of {format_duration(one.limit_s):>12}  {one.note}".rstrip()
        for one in outcomes
    ]
    return "\n".join([*lines, f"Records, logs and reports: {out}"]) + "\n"


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return 130 after an interrupt, 1 after a failure, 4 if something was cut short, else 0."""
    if any(outcome.note == "interrupted" for outcome in outcomes):
        return 130
    endings = {outcome.ending for outcome in outcomes}
    return 1 if "failed" in endings else 4 if endings - {"done"} else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options, find the device, run everything, and return the exit code."""
    options = _parse(arguments)
    out = Path(options.out).absolute()
    try:
        device = find_device(options.device).name
        logs = _make_logs(out)
    except RetbenchError as error:
        _say(f"gpu-check: {error}")
        return error.exit_code
    signal.signal(signal.SIGTERM, _interrupt)
    steps = steps_for(device, out)
    outcomes = run_steps(steps, 60 * options.budget - REPORT_S, logs)
    try:
        outcomes += write_reports(out, logs)
    except Stopped:
        outcomes.append(Outcome(Step("report", (), REPORT_S), "cut short", note="interrupted"))
    summary = summarise(outcomes, out)
    (out / "summary.txt").write_text(summary, encoding="utf-8")
    print(summary, end="")
    return exit_code(outcomes)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; argparse exits with 2 for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="Environment, tests, smoke sweeps and as much of the paper's sizes as a budget allows.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--budget", type=float, default=30.0, metavar="MINUTES", help="total time (default 30)"
    )
    parser.add_argument("--out", default=DEFAULT_OUT, metavar="DIR", help=f"folder (default {DEFAULT_OUT})")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for smoke only (default cuda)")
    options = parser.parse_args(arguments)
    if not 2 <= options.budget < 1e6:
        parser.error(
            f"--budget is {options.budget:g}: give at least 2 minutes, one of which is for the report"
        )
    return options


def _make_logs(out: Path) -> Path:
    """Make the folder of the logs; ConfigError if it cannot be made."""
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{out}: cannot be made: {error.strerror}. Give another folder with --out."
        ) from error
    return out / "logs"


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _stem(name: str) -> str:
    """Return a name as part of a file name."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_outcome(outcome: Outcome, log: Path) -> None:
    """Print how a step ended; for a failed one, the end of its output."""
    if outcome.ending == "failed":
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        _say("\n".join(lines[-TAIL_LINES:]))
    _say(
        f"{outcome.step.name}: {outcome.ending} {outcome.note}".rstrip()
        + f" ({format_duration(outcome.took_s)})"
    )


if __name__ == "__main__":
    sys.exit(main())
