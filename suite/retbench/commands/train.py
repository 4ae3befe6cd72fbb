"""`retbench train`: train the models of an experiment, progress on stderr and a table on stdout; or show the runs."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench import config
from retbench.commands.layout import print_columns, print_json
from retbench.commands.training_progress import describe_rate, show_training
from retbench.errors import ConfigError
from retbench.measure.environment import pin_process
from retbench.measure.machine import usable_cores
from retbench.plan import PAPER_MEMORY_BYTES
from retbench.running.devices import find_device
from retbench.running.interrupts import Interrupted, catch_signals
from retbench.running.locks import timing_lock
from retbench.training.events import RunResult, Tell, TrainingResult, WaitingForLock
from retbench.training.plan import TrainingPlan, TrainingRun, resolve_models, training_spec
from retbench.units import format_count, format_duration, format_rate

INTERRUPTED = 130
FAILED = 1


@dataclass(frozen=True)
class Request:
    """The words of the command."""

    experiment: str
    profile: str | None
    device: str | None
    overrides: tuple[str, ...]
    data_dir: Path | None


def make_training_plan(request: Request) -> TrainingPlan:
    """The plan of one command; see `retbench.plan.make_plan` for its defaults.

    Raises:
        ConfigError: something is misspelt or contradicts itself, or the profile trains nothing.
        UnsupportedError: this machine cannot do what was asked.
    """
    from retbench.data.corpora import load_corpus
    from retbench.data.tokenizers import load_tokenizer

    found = find_device(request.device)
    roomy = found.memory_bytes is not None and found.memory_bytes >= PAPER_MEMORY_BYTES
    profile_name = request.profile or ("paper" if roomy else "cpu")
    experiment = config.load_experiment(request.experiment, request.overrides, profile=profile_name)
    spec = training_spec(experiment, profile_name)
    tokenizer = load_tokenizer(spec.tokenizer, data_dir=request.data_dir)
    models = resolve_models(experiment, profile_name, tokenizer.vocab_size)
    return TrainingPlan(
        experiment=experiment,
        profile_name=profile_name,
        spec=spec,
        models=models,
        tokenizer=tokenizer,
        corpus=load_corpus(spec.corpus, data_dir=request.data_dir),
        device=found.name,
        threads=experiment.profile(profile_name).threads or usable_cores(),
        command=_command(request, profile_name, found.name),
    )


def _command(request: Request, profile_name: str, device: str) -> str:
    """`retbench train` with the options that were given or settled."""
    words = ["retbench", "train", request.experiment, "--profile", profile_name, "--device", device]
    for item in request.overrides:
        words += ["--set", item]
    if request.data_dir is not None:
        words += ["--data-dir", str(request.data_dir)]
    return shlex.join(words)


def carry_out(plan: TrainingPlan, out: Path, *, fresh: bool, as_json: bool) -> int:
    """Train what is not on disk yet, print the runs, and return the exit code.

    Raises:
        ConfigError: a folder holds another run than the plan's.
        StorageError: something could not be written.
    """
    stopped: list[bool] = []
    with catch_signals(lambda: stopped.append(True)), show_training(plan) as tell:

        def wait(holder: str) -> None:
            _wait(holder, tell, lambda: bool(stopped))

        try:
            with timing_lock(plan.command, wait=wait):
                result = _train(plan, out, fresh, tell, lambda: bool(stopped))
        except Interrupted:
            result = TrainingResult((), (), interrupted=True)
    if as_json:
        print_json(_as_json(plan, result))
    else:
        _print_runs(result.runs)
    if result.interrupted:
        return INTERRUPTED
    return FAILED if any(run.status == "failed" for run in result.runs) else 0


def _wait(holder: str, tell: Tell, stopped: Callable[[], bool]) -> None:
    """Pause while another run holds the machine; Interrupted when told to stop."""
    import time

    tell(WaitingForLock(holder))
    for _ in range(5):
        if stopped():
            raise Interrupted
        time.sleep(0.1)


def _train(
    plan: TrainingPlan, out: Path, fresh: bool, tell: Tell, stop: Callable[[], bool]
) -> TrainingResult:
    """Train, once no other run is timing on the machine."""
    from retbench.data.packing import pack
    from retbench.training.engine import TrainingText, delete_runs, train_all

    pin_process(plan.threads)
    if fresh:
        delete_runs(plan, out)
    # A hub's data set may have no end: what is packed of it is what the longest run learns from.
    most = None if plan.corpus.revision is None else max(map(plan.num_tokens, plan.final_runs))
    text = TrainingText(
        train=pack(plan.corpus, "train", plan.tokenizer, max_tokens=most),
        validation=pack(
            plan.corpus, "validation", plan.tokenizer, max_tokens=most and plan.spec.validation_tokens + 1
        ),
    )
    return train_all(plan, text, out, tell=tell, stop=stop)


def _as_json(plan: TrainingPlan, result: TrainingResult) -> dict[str, Any]:
    """What training came to, in base units."""
    return {
        "experiment": plan.experiment.name,
        "profile": plan.profile_name,
        "interrupted": result.interrupted,
        "tuning": [
            {
                "model": tuning.model_name,
                "size": tuning.size,
                "learning_rate": tuning.learning_rate,
                "edge_of_grid": tuning.edge,
            }
            for tuning in result.tunings
        ],
        "runs": [
            {
                **_run_fields(plan, item.run),
                "status": item.status,
                "error": item.error,
                "num_tokens": item.num_tokens,
                "validation_loss_nats": item.validation_loss,
                "tokens_per_s": item.tokens_per_s,
                "folder": str(item.folder),
                "trained_before": item.on_disk,
            }
            for item in result.runs
        ],
    }


def _run_fields(plan: TrainingPlan, run: TrainingRun) -> dict[str, Any]:
    """A run in base units."""
    return {
        "model": run.model_name,
        "size": run.size,
        "role": run.role,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "num_tokens": plan.num_tokens(run),
    }


def _print_runs(runs: Sequence[RunResult]) -> None:
    """The table of runs that are over."""
    header = ("model", "size", "run", "learning rate", "seed", "tokens", "validation nats/token", "tokens/s")
    print_columns(
        header,
        [
            (
                item.run.model_name,
                item.run.size,
                item.run.role,
                describe_rate(item.run),
                str(item.run.seed),
                format_count(item.num_tokens),
                "failed" if item.validation_loss is None else f"{item.validation_loss:.4f}",
                "" if item.tokens_per_s is None else format_rate(item.tokens_per_s, "tokens/s"),
            )
            for item in runs
        ],
    )


def show_plan(plan: TrainingPlan, *, as_json: bool) -> None:
    """Print every run with its tokens and the time that it will roughly take.

    Raises:
        RetbenchError: another run is timing on this machine, which an estimate would disturb.
    """
    from retbench.training.estimate import estimate_seconds

    def refuse(holder: str) -> None:
        raise ConfigError(
            f"an estimate measures the machine, and that would disturb the run of {holder}. Try again when it is done."
        )

    runs = [*plan.tuning_runs, *plan.final_runs]
    with timing_lock(plan.command, wait=refuse):
        pin_process(plan.threads)
        seconds = estimate_seconds(plan, runs)
    if as_json:
        fields = [
            {**_run_fields(plan, run), "seconds": expected}
            for run, expected in zip(runs, seconds, strict=True)
        ]
        print_json(
            {
                "experiment": plan.experiment.name,
                "profile": plan.profile_name,
                "command": plan.command,
                "runs": fields,
            }
        )
        return
    rows = [
        (
            run.model_name,
            run.size,
            run.role,
            describe_rate(run),
            str(run.seed),
            format_count(plan.num_tokens(run)),
            format_duration(expected),
        )
        for run, expected in zip(runs, seconds, strict=True)
    ]
    total = (
        "all",
        "",
        "",
        "",
        "",
        format_count(sum(map(plan.num_tokens, runs))),
        format_duration(sum(seconds)),
    )
    print_columns(("model", "size", "run", "learning rate", "seed", "tokens", "time"), [*rows, total])
