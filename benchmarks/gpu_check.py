"""Check a new GPU within a time budget, the most valuable steps first: `python -m benchmarks.gpu_check`.

Each step is a process with a time limit. A step that exceeds it is stopped, keeps what it has measured, and the next
step starts. A step that fails, or that this machine does not support, is reported and is not fatal, except that
without fused operators of decode steps, which the first step tries, nothing else is begun. Records, logs, a
report and a summary are written in any case. The commands in the logs continue a sweep that was cut short.

Exit codes: 0 all done, 1 a test or another step failed, 2 the request is impossible, 3 no such device, 4 nothing
failed but something was cut short, 130 interrupted.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from types import FrameType

from benchmarks.gpu.steps import STOP_S, Outcome, Step, Stopped, run_step
from retbench.config.experiment_files import load_experiment
from retbench.errors import ConfigError, RetbenchError
from retbench.measure.devices import find_device
from retbench.papers.papers import find_datasheet
from retbench.planning.plan import Plan, make_plan
from retbench.running.estimates import estimate_with
from retbench.units import format_duration
from retbench.workloads.workload import find_workload

DEFAULT_OUT = Path("reports") / "gpu-check"
REPORT_S = 60.0
"""Reserved for the reports."""
MIN_BUDGET_MINUTES = 3
"""Least total time; two of these minutes are kept for the reports and for ending a step that overruns."""
LEAST_S = 2.0
"""A step with less time is not started."""
SLACK = 1.5
"""A step may take so many times its expected time, where the budget allows it."""
SPARE_S = 60.0
"""A sweep may take so much longer than expected at least: before its models are prepared it has no records to keep."""
TAIL_LINES = 15

DATASHEET = "a100-80gb"
"""Device by whose datasheet the times of sweeps are estimated."""
CUDA_START_S = 8.0
"""Expected seconds by which a worker on a GPU starts later than on a CPU: the CUDA context, and its ceilings."""
ROUNDS = 2
"""Rounds of a sweep; `retbench run` with the profile measures the others later."""
SMALL = "1.3b"
"""Size of the first sweeps of `paper`, whose own is 6.7b."""
COMPILED = f"{SMALL}-compiled"
"""Folder of the sweep whose steps are compiled before they are captured."""
GPU_TESTS = (
    "tests/measure/test_ceilings.py",
    "tests/measure/test_clock.py",
    "tests/measure/test_limits.py",
    "tests/measure/test_memory.py",
    "tests/measure/test_nvml.py",
    "tests/measure/test_power.py",
    "tests/models/test_cuda.py",
    "tests/running/test_runner.py",
    "tests/workloads/test_decode.py",
    "tests/workloads/test_memory.py",
    "tests/workloads/test_training.py",
)
"""Files with tests that need a GPU; collecting all files takes several times as long."""
FLA_TESTS = "test_fla_"
FLA_FIRST = "test_fla_streams or test_the_gate_is_green_with_heads"
"""Those that compile and tune the kernels that sweeps need; all of them tune some 1,100 variants."""
GRAPH_TESTS = "replay or graph or nvml or limit or memory"

EPILOG = f"""\
The expected times of sweeps are the project's own estimates for the device {DATASHEET}.

Example: python -m benchmarks.gpu_check --budget 30 --out reports/gpu-check
On a CPU, to try the procedure with the smoke profiles only: python -m benchmarks.gpu_check --device cpu --budget 5
"""


def steps_for(device: str, out: Path) -> list[Step]:
    """Return every step except the reports, the most valuable first."""
    facts = [
        Step("device", ("-m", "benchmarks.gpu.facts"), 30, is_needed=True),
        Step("environment, ceilings", ("-m", "benchmarks.gpu.ceilings", "--device", device), 60),
    ]
    layout = ("-m", "benchmarks.gpu.weight_layout", "--device", device)
    if device == "cpu":
        small = (*layout, "--sizes", "6m", "--rows", "1", "--steps", "3")
        return [*facts, Step("layout of weights", small, 60), *_smoke_steps(device, out)]
    return [
        *facts,
        Step("layout of weights", layout, 60),
        Step("kernel census", _census(device), 120),
        *_test_steps(),
        *_smoke_steps(device, out, "cuda_graph=true"),
        *_paper_steps(device, out),
        Step("kernel census of kin", _census(device, "--experiment", "kin"), 360),
        *_last_steps(),
    ]


def _census(device: str, *more: str) -> tuple[str, ...]:
    """Return the words that count the kernels of decode steps."""
    return ("-m", "benchmarks.gpu.kernel_census", "--device", device, *more)


def _test_steps() -> list[Step]:
    """Return the tests that need a GPU; of those of fla's kernels the ones that compile what sweeps need."""
    has_fla = find_spec("fla") is not None
    others = f"not {FLA_TESTS}" + (f" and not ({FLA_FIRST})" if has_fla else "")
    steps = [
        Step("tests: graphs, memory, driver", _pytest(f"({GRAPH_TESTS}) and {others}"), 200),
        Step("tests: equivalence, kernels", _pytest(f"not ({GRAPH_TESTS}) and {others}"), 240),
    ]
    if has_fla:
        # Before the equivalence checks, which run these kernels too: Triton stores what it has compiled.
        return [Step("fla: compile its kernels", _pytest(FLA_FIRST), 180), *steps]
    return steps


def _last_steps() -> list[Step]:
    """Return the tests of fla's kernels, which take longer to compile than a budget of half an hour allows."""
    if find_spec("fla") is None:
        return []
    return [Step("fla: all tests", _pytest(f"{FLA_TESTS} and not ({FLA_FIRST})"), 900)]


def _pytest(chosen: str) -> tuple[str, ...]:
    """Return the words that run some of the tests that need a GPU."""
    return ("-m", "pytest", *GPU_TESTS, "-m", "gpu", "-q", "--durations=5", "-k", chosen)


def _smoke_steps(device: str, out: Path, *overrides: str) -> list[Step]:
    """Return the smoke profiles, whose time is that of starting workers; the overrides are of `latency`."""
    steps = []
    for experiment, settings in (("latency", overrides), ("memory", ())):
        expected_s = expected_seconds(experiment, device, settings, profile="smoke")
        words = ("--profile", "smoke", *_options(settings))
        steps.append(_sweep(f"smoke: {experiment}", experiment, device, out, expected_s, *words))
    return steps


def _options(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the options of a command that set overrides."""
    return tuple(word for item in overrides for word in ("--set", item))


def _paper_steps(device: str, out: Path) -> list[Step]:
    """Return parts of the profiles `paper`, the most valuable first.

    Their cells are those of the whole profiles, so that a later `retbench run` continues them. Those at another size
    than the profile's answer the same question in less time. Without fla RetNet reads prompts in chunks, and the models
    of `kin`, most of which need it, are left out.
    """
    small = (f"size={SMALL}",)
    form = () if find_spec("fla") is not None else ("models.retnet.backend=chunkwise",)
    decode = (*small, *form, _only("latency", "decode", [1]))
    parts: list[tuple[str, str, tuple[str, ...]]] = [
        (f"{SMALL}: decode, batch 1", "latency", decode),
        ("6.7b: memory", "memory", ()),
        ("6.7b: largest batch", "throughput", (_only("throughput", "largest_batch", None),)),
        (f"{SMALL}: prefill", "latency", (*small, *form, _only("latency", "prefill", [1]))),
        ("6.7b: decode, batch 1", "latency", (*form, _only("latency", "decode", [1]))),
        ("6.7b: decode, batch 8", "latency", (*form, _only("latency", "decode", [8]))),
        ("6.7b: prefill", "latency", (*form, _only("latency", "prefill", [1]))),
        (f"{SMALL}: decode of kin, batch 1", "kin", (*small, _only("kin", "decode", [1]))),
        ("6.7b: throughput", "throughput", (_only("throughput", "decode", None),)),
        (f"{SMALL}: decode, compiled", "latency", (*decode, "compile=true")),
    ]
    if find_spec("fla") is None:
        parts = [part for part in parts if part[1] != "kin"]
    steps = []
    for name, experiment, overrides in parts:
        overrides = (*overrides, f"rounds={ROUNDS}") if experiment != "memory" else overrides
        expected_s = expected_seconds(experiment, device, overrides)
        words = ("--profile", "paper", *_options(overrides))
        # A report shows one size of an experiment, and steps of one kind, so each has its own folder.
        own = COMPILED if "compile=true" in overrides else SMALL
        folder = out / own if small[0] in overrides else out
        steps.append(_sweep(f"paper, {name}", experiment, device, folder, expected_s, *words))
    return steps


def expected_seconds(
    experiment: str, device: str, overrides: Sequence[str], *, profile: str = "paper"
) -> float:
    """Return the estimated seconds of a profile with overrides, by the ceilings of a datasheet."""
    plan = _plan(experiment, device, overrides, profile)
    ceilings = find_datasheet(DATASHEET).ceilings(plan.settings.dtype)
    cells_s = sum(cell.seconds for cell in estimate_with(plan, ceilings) if cell.seconds is not None)
    # Each search for the largest batch has a worker of its own.
    num_searches = sum(find_workload(cell.workload).finds_batch for cell in plan.cells)
    num_workers = len(plan.models) * (plan.rounds + 1) + num_searches
    return cells_s + num_workers * CUDA_START_S


def _plan(experiment: str, device: str, overrides: Sequence[str], profile: str) -> Plan:
    return make_plan(experiment, profile=profile, device=device, overrides=list(overrides))


def _sweep(name: str, experiment: str, device: str, out: Path, expected_s: float, *more: str) -> Step:
    """Return a step that runs an experiment."""
    results = str(out / "results")
    words = ("-m", "retbench", "run", experiment, "--device", device, "--out", results, *more)
    return Step(name, words, expected_s, spare_s=SPARE_S)


def _only(experiment: str, workload: str, batch_sizes: list[int] | None) -> str:
    """Return an override that reduces a profile `paper` to one workload at its own lengths.

    Args:
        experiment: The experiment.
        workload: The workload that stays.
        batch_sizes: Its batch sizes; those of the profile when None.
    """
    spec = load_experiment(experiment).profile("paper").workloads.specs[workload]
    points = list(spec.points())
    lengths = sorted({point.context_len for point in points})
    batches = batch_sizes or sorted({point.batch_size for point in points})
    return f"workloads={{{workload}={{context_len={lengths}, batch_size={batches}}}}}"


def run_steps(steps: Sequence[Step], budget_s: float, logs: Path) -> list[Outcome]:
    """Run the steps one after the other and return an outcome for each, whatever happens."""
    end = monotonic() + budget_s
    outcomes: list[Outcome] = []
    for index, step in enumerate(steps):
        left_s = end - monotonic()
        if left_s < LEAST_S:
            outcomes.append(Outcome(step, "not begun", limit_s=max(0.0, left_s), note="no time was left"))
            continue
        limit_s = time_limit(step, steps[index:], left_s)
        _say(f"[{index + 1} of {len(steps)}] {step.name}: at most {format_duration(limit_s)}")
        log = logs / f"{index + 1}-{_stem(step.name)}.txt"
        try:
            outcomes.append(run_step(step, limit_s, log))
        except Stopped:
            outcomes.append(Outcome(step, "cut short", limit_s=limit_s, note="interrupted"))
            outcomes += [Outcome(later, "not begun", note="interrupted") for later in steps[index + 1 :]]
            break
        _say_outcome(outcomes[-1], log)
        if step.is_needed and outcomes[-1].ending == "failed":
            note = f"needs '{step.name}', which failed: see {log}"
            outcomes += [Outcome(later, "not begun", note=note) for later in steps[index + 1 :]]
            break
    return outcomes


def time_limit(step: Step, left: Sequence[Step], left_s: float) -> float:
    """Return the seconds that a step may take: its expected time and some more, or its share of a large budget."""
    share_s = left_s * step.expected_s / sum(later.expected_s for later in left)
    return min(left_s, max(LEAST_S, SLACK * step.expected_s, step.expected_s + step.spare_s, share_s))


def write_reports(out: Path, logs: Path) -> list[Outcome]:
    """Write the report of every folder with records, and return an outcome for each."""
    outcomes = []
    for folder in (out, out / SMALL, out / COMPILED):
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
    endings = {outcome.ending for outcome in outcomes} - {"not supported"}
    return 1 if "failed" in endings else 4 if endings - {"done"} else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options, find the device, run everything, and return the exit code."""
    options = _parse(arguments)
    out = Path(options.out).absolute()
    try:
        device = _show_one(find_device(options.device).name)
        logs = _make_logs(out)
        steps = steps_for(device, out)
    except RetbenchError as error:
        _say(f"gpu-check: {error}")
        return error.exit_code
    signal.signal(signal.SIGTERM, _interrupt)
    outcomes = run_steps(steps, 60 * options.budget - REPORT_S - STOP_S, logs)
    try:
        outcomes += write_reports(out, logs)
    except Stopped:
        outcomes.append(Outcome(Step("report", (), REPORT_S), "cut short", note="interrupted"))
    summary = summarise(outcomes, out)
    (out / "summary.txt").write_text(summary, encoding="utf-8")
    print(summary, end="")
    return exit_code(outcomes)


def _show_one(device: str) -> str:
    """Let the steps see one GPU alone, so that tests that take the first one take this one; return its name there."""
    if device in ("cpu", "cuda:0"):
        return device
    index, shown = int(device.removeprefix("cuda:")), os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = shown.split(",")[index] if shown else str(index)
    return "cuda:0"


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
    if not MIN_BUDGET_MINUTES <= options.budget < 1e6:
        parser.error(
            f"--budget is {options.budget:g}: give at least {MIN_BUDGET_MINUTES} minutes. "
            f"{(REPORT_S + STOP_S) / 60:g} are kept for the reports and for ending a step that overruns."
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
