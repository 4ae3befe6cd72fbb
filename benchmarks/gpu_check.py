"""The first half hour on a GPU in one command, most valuable first: `python -m benchmarks.gpu_check`.

Each step is a process with its share of what is left of the budget. One that overruns is told to stop, keeps what it
has measured, and the next goes on; one that fails is reported and not fatal. Records, logs, a report and a summary are
there at the end, whatever was reached; the commands in the logs go on where a sweep was cut short.

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
"""Kept for the reports."""
LEAST_S = 2.0
"""A step that would get less is not begun."""
GRACE_S = (45.0, 15.0)
"""How long a step may take to stop after SIGINT, and then after SIGTERM (where SIGINT is ignored)."""
TAIL_LINES = 15

EPILOG = """\
What a step is expected to take is a guess for an A100 or H100 of 80 GB; it decides how the budget is shared.

Example: python -m benchmarks.gpu_check --budget 30 --out reports/gpu-check
On a CPU, to try the procedure with the smoke profiles alone: python -m benchmarks.gpu_check --device cpu --budget 5
"""

Ending = Literal["done", "failed", "cut short", "not begun"]


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: What it shows.
        words: What follows the interpreter.
        guess_s: Guessed, not measured: how long it takes, for its share of the budget.
    """

    name: str
    words: tuple[str, ...]
    guess_s: float


@dataclass(frozen=True)
class Outcome:
    """What came of a step: how it ended, how long it took and had, and a word on a failure."""

    step: Step
    ending: Ending
    took_s: float = 0.0
    limit_s: float = 0.0
    note: str = ""


def steps_for(device: str, out: Path) -> list[Step]:
    """Every step but the reports, most valuable first."""
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
        # In a folder of its own: a report shows one way of running a model.
        fla = ("--set", "models.retnet.backend=fla")
        words = (*paper, *_only("prefill", [1]), *fla)
        steps += [
            _sweep("paper: prefill, backend fla", "latency", device, out / "fla", 180, *words),
            # Last: Triton compiles hundreds of variants of the kernels to choose from.
            Step("tests of fla's kernels", ("-m", "pytest", "-m", "gpu", "-k", "test_fla_", "-q"), 180),
        ]
    return steps


def _sweep(name: str, experiment: str, device: str, out: Path, guess_s: float, *more: str) -> Step:
    """A step that runs an experiment."""
    results = str(out / "results")
    return Step(
        name, ("-m", "retbench", "run", experiment, "--device", device, "--out", results, *more), guess_s
    )


def _only(workload: str, batch_sizes: list[int]) -> tuple[str, ...]:
    """What reduces the profile `paper` of latency to one workload at its own lengths.

    The cells are those of the whole profile, so that a later `retbench run latency --profile paper` goes on from here.
    """
    grid = load_experiment("latency").profile("paper").workloads.grids[workload]
    lengths = list(grid.context_len)
    table = f"workloads={{{workload}={{context_len={lengths}, batch_size={batch_sizes}}}}}"
    return ("--set", table)


class Stopped(Exception):  # noqa: N818 - an outcome, not an error
    """The user ended the whole check."""


def run_steps(steps: Sequence[Step], budget_s: float, logs: Path) -> list[Outcome]:
    """Run the steps one after the other; an outcome for each, whatever happens."""
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
    """Run one step, its stdout going to a file; Stopped when this process was told to end, with the step ended too."""
    command = [sys.executable, *step.words]
    start = monotonic()
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        # A session of its own: Ctrl-C comes here first, and what must be killed can be as a whole.
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
    """End a step as a user would, so that it keeps what it has; harder where it does not listen."""
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
    """The report of every folder that holds records; an outcome for each."""
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
    """A line for each step and where everything is."""
    width = max(len(outcome.step.name) for outcome in outcomes)
    lines = [
        f"{one.step.name.ljust(width)}  {one.ending.ljust(9)}  {format_duration(one.took_s):>12}"
        f" of {format_duration(one.limit_s):>12}  {one.note}".rstrip()
        for one in outcomes
    ]
    return "\n".join([*lines, f"Records, logs and reports: {out}"]) + "\n"


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """130 after an interrupt, 1 after a failure, 4 where something was cut short, else 0."""
    if any(outcome.note == "interrupted" for outcome in outcomes):
        return 130
    endings = {outcome.ending for outcome in outcomes}
    return 1 if "failed" in endings else 4 if endings - {"done"} else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, look for the device, run everything; returns the exit code."""
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
    """Options; argparse ends the process with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="Environment, tests, smoke sweeps and as much of the paper's sizes as a budget allows.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--budget", type=float, default=30.0, metavar="MINUTES", help="in all (default 30)")
    parser.add_argument("--out", default=DEFAULT_OUT, metavar="DIR", help=f"folder (default {DEFAULT_OUT})")
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:N, or cpu for smoke alone (default cuda)"
    )
    options = parser.parse_args(arguments)
    if not 2 <= options.budget < 1e6:
        parser.error(
            f"--budget is {options.budget:g}: give at least 2 minutes, one of which is for the report"
        )
    return options


def _make_logs(out: Path) -> Path:
    """The folder of the logs; ConfigError where it cannot be made."""
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
    """A name as part of a file's."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_outcome(outcome: Outcome, log: Path) -> None:
    """How a step ended; of one that failed, the end of what it printed."""
    if outcome.ending == "failed":
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        _say("\n".join(lines[-TAIL_LINES:]))
    _say(
        f"{outcome.step.name}: {outcome.ending} {outcome.note}".rstrip()
        + f" ({format_duration(outcome.took_s)})"
    )


if __name__ == "__main__":
    sys.exit(main())
