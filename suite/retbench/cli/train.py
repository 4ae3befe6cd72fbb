"""`retbench train`: train the models of an experiment with progress on stderr and a table on stdout, or show the plan.

A command may be one process, or one of several that torchrun launched together.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli.layout import output_format, print_json, print_nothing, print_prose, print_table
from retbench.cli.options import (
    AsJson,
    DataDir,
    DeviceName,
    ExperimentName,
    OutputFormat,
    Overrides,
    ProfileName,
    ShardName,
    new_app,
    not_empty,
    read_folder,
)
from retbench.cli.progress import describe_rate, show_events, view_training
from retbench.cli.tracking import load_tracker, track_runs
from retbench.errors import INTERRUPTED, RetbenchError, StorageError
from retbench.files import check_writable
from retbench.measure.environment import pin_process
from retbench.planning.shards import Shard
from retbench.running.events import WaitingForLock
from retbench.running.locks import Interrupted, catch_signals, refuse_estimate, timing_lock
from retbench.training import trained
from retbench.training.events import Packing, RunResult, TrainingResult, WaitingForRun
from retbench.training.plan import TextSource, TrainingPlan, TrainingRun
from retbench.training.planning import make_training_plan
from retbench.training.ranks import ALONE, Launch, OtherRankFailedError, Ranks, joined
from retbench.units import format_count, format_duration, format_percent, format_rate, format_size

if TYPE_CHECKING:
    from retbench.data.packing import PackedTokens
    from retbench.training.engine import TrainingText

app = new_app()
Notify = Callable[[Any], None]


@app.command(epilog="Example: retbench train quality --profile smoke")
def train(
    experiment: ExperimentName,
    profile: ProfileName = None,
    device: DeviceName = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", parser=read_folder, help="Folder of results; the models go to its checkpoints/."
        ),
    ] = Path("results"),
    overrides: Overrides = None,
    data_dir: DataDir = None,
    shard: ShardName = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the runs with their tokens and expected time; train nothing."),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the runs of this profile and train them again.")
    ] = False,
    track: Annotated[
        str | None,
        typer.Option(
            metavar="[wandb|trackio]",
            callback=not_empty,
            help="Log learning curves to this library as well. Needs the extra of that name.",
        ),
    ] = None,
    form: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """Train the models of an experiment under equal conditions, or continue.

    Each model runs the same grid of learning rates and takes its own best; then the final runs follow. A run that was
    ended in any way continues as if it had not been.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m retbench train EXPERIMENT, with a folder of results that
    all of them can access.
    """
    form, launch = output_format(form, as_json=as_json), Launch.from_environment()
    part = None if shard is None else Shard.parse(shard)

    def plan() -> TrainingPlan:
        made = make_training_plan(experiment, profile, device, overrides or (), data_dir, launch, part)
        if launch.rank == 0:
            _say_unused(made)
            _say_joined(made)
        return made

    if not dry_run:
        try:
            with joined(launch, on_cpu=device == "cpu") as ranks:
                code = carry_out(ranks.together(plan), out, form, fresh=fresh, ranks=ranks, track=track)
        except OtherRankFailedError:
            code = RetbenchError.exit_code
        raise typer.Exit(code)
    if launch.rank == 0:
        if track is not None:
            load_tracker(track)
        _show_plan(plan(), out, form, fresh=fresh)


def carry_out(
    plan: TrainingPlan,
    out: Path,
    form: str,
    *,
    fresh: bool,
    ranks: Ranks = ALONE,
    track: str | None = None,
) -> int:
    """Train the runs that are not on disk yet, print all runs, and return the exit code.

    Raises:
        ConfigError: a folder holds another run than the plan's, or cannot be written to.
        StorageError: something could not be written.
    """
    if not plan.runs:
        if ranks.leads:
            _say_empty(plan, form)
        return 0
    ranks.lead(lambda: _check_out(plan, out))
    stopped: list[bool] = []
    with ExitStack() as stack:
        stack.enter_context(catch_signals(lambda: stopped.append(True)))
        notify: Notify = lambda _: None  # noqa: E731 - only the first process shows events
        if ranks.leads:
            notify = stack.enter_context(show_events(view_training(plan, fresh=fresh)))
            if track is not None:
                notify = stack.enter_context(track_runs(track, plan, notify))

        def wait(event: WaitingForRun | WaitingForLock) -> None:
            ranks.hold_on()
            notify(event)
            for _ in range(5):
                if stopped:
                    raise Interrupted
                time.sleep(0.1)

        def lock() -> bool:
            """Take the locks; return False after a stop signal."""
            try:
                stack.enter_context(
                    trained.lock_runs(out, plan, fresh=fresh, wait=lambda folder: wait(WaitingForRun(folder)))
                )
                stack.enter_context(_hold_devices(plan, lambda holder: wait(WaitingForLock(holder))))
            except Interrupted:
                return False
            return True

        result = TrainingResult((), (), interrupted=True)
        if ranks.lead(lock):
            result = _train(plan, out, fresh, notify, lambda: bool(stopped), ranks) or result
    if ranks.leads:
        print_result(plan, result, form)
    if result.interrupted:
        return INTERRUPTED
    return RetbenchError.exit_code if any(run.status == "failed" for run in result.runs) else 0


def _hold_devices(plan: TrainingPlan, wait: Callable[[str], None]) -> AbstractContextManager[None]:
    """Return the lock of the devices of this machine that train each run together."""
    count = plan.local_world_size
    return timing_lock(plan.command, plan.device, wait=wait, threads=count * plan.threads, num_gpus=count)


def _say_unused(plan: TrainingPlan) -> None:
    """Print on stderr which fields of a plan's training have no effect."""
    if plan.spec.unused_fields:
        typer.echo(
            f"retbench: no effect of {' and '.join(plan.spec.unused_fields)}: no grid is run for a single learning "
            "rate. Give several in training.learning_rates.",
            err=True,
        )


def _say_joined(plan: TrainingPlan) -> None:
    """Print on stderr that no token stands between two documents, if the tokenizer has none for it."""
    tokenizer = plan.text.tokenizer if plan.text else None
    if tokenizer is not None and tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        typer.echo(
            f"retbench: tokenizer '{tokenizer.name}' has neither a begin-of-text nor an end-of-text token. Documents "
            "are joined without a mark, and the perplexity of what is trained cannot be measured.",
            err=True,
        )


def _check_out(plan: TrainingPlan, out: Path) -> None:
    """Raise ConfigError if there is a run to train that could not be stored."""
    if not all(trained.is_done(out, plan, run) for run in plan.runs):
        check_writable(out, "--out")


def _say_empty(plan: TrainingPlan, form: str) -> None:
    """Say that a shard has no runs."""
    count = len(set(map(plan.unit_of, replace(plan, shard=None).runs)))
    one, several = (
        ("model", "models") if plan.has_grid else ("pair of size and seed", "pairs of size and seed")
    )
    parts = one if count == 1 else several
    text = f"shard {plan.shard} has no runs, so there is nothing to train. The plan has {count} {parts}."
    print_nothing(text, form, experiment=plan.experiment.name, profile=plan.profile_name, runs=[])


def _train(
    plan: TrainingPlan, out: Path, fresh: bool, notify: Notify, stop: Callable[[], bool], ranks: Ranks
) -> TrainingResult | None:
    """Train while no other run is timing; return None after a stop signal before the first step."""
    from retbench.training.engine import GeneratedExamples, delete_runs, train_all

    if fresh:
        ranks.lead(lambda: delete_runs(plan, out))
        try:
            return _train(plan, out, False, notify, stop, ranks)
        except StorageError as error:
            raise StorageError(f"{error} Leave out --fresh, which would delete what is trained.") from error
    pin_process(plan.threads)
    source = plan.text
    if source is None:
        return train_all(plan, GeneratedExamples(), out, notify=notify, stop=stop, ranks=ranks)
    text = ranks.together(lambda: _read_text(plan, source, notify, stop))
    if ranks.any(text is None):
        return None
    assert text is not None
    return train_all(plan, text, out, notify=notify, stop=stop, ranks=ranks)


def _read_text(
    plan: TrainingPlan, source: TextSource, notify: Notify, stop: Callable[[], bool]
) -> "TrainingText | None":
    """Return the packed tokens of a plan's corpus; None after a stop signal between two documents."""
    from retbench.data.packing import pack
    from retbench.training.engine import TrainingText

    def packed(split: str, most: int | None) -> "PackedTokens":
        def report(num_documents: int, num_bytes: int) -> None:
            notify(Packing(split, num_documents, num_bytes))
            if stop():
                raise Interrupted

        return pack(source.corpus, split, source.tokenizer, max_tokens=most, report=report)

    most = plan.max_packed_tokens
    scored = None if most is None else plan.spec.validation_tokens + 1
    try:
        return TrainingText(packed("train", most), packed("validation", scored))
    except Interrupted:
        return None


_COLUMNS = ("model", "size", "run", "learning rate", "seed", "tokens")


def _columns(run: TrainingRun, num_tokens: int) -> tuple[str, ...]:
    rate, tokens = describe_rate(run), format_count(num_tokens)
    return (run.model_name, format_size(run.size), run.role, rate, str(run.seed), tokens)


def _fields(run: TrainingRun, num_tokens: int) -> dict[str, Any]:
    """Return a run in base units."""
    names = {
        "model": "model_name",
        "size": "size",
        "role": "role",
        "learning_rate": "learning_rate",
        "seed": "seed",
    }
    return {**{key: getattr(run, name) for key, name in names.items()}, "num_tokens": num_tokens}


def print_result(plan: TrainingPlan, result: TrainingResult, form: str) -> None:
    """Print the finished runs as a table, or as one JSON object in base units."""
    if form == "json":
        print_json(
            {
                "experiment": plan.experiment.name,
                "profile": plan.profile_name,
                "interrupted": result.interrupted,
                "tuning": [
                    {"model": one.model_name, "size": one.size, "learning_rate": one.learning_rate}
                    | {"edge_of_grid": one.edge}
                    for one in result.tunings
                ],
                "runs": [
                    {
                        **_fields(item.run, item.num_tokens),
                        "status": item.status,
                        "error": item.error,
                        "validation_loss_nats": item.validation_loss,
                        "validation_acc": item.validation_acc,
                        "tokens_per_s": item.tokens_per_s,
                        "folder": str(item.folder),
                        "trained_before": item.on_disk,
                    }
                    for item in result.runs
                ],
            }
        )
        return
    rows = [
        (
            *_columns(item.run, item.num_tokens),
            "failed" if item.validation_loss is None else f"{item.validation_loss:.4f}",
            *_answers(plan, item),
            "" if item.tokens_per_s is None else format_rate(item.tokens_per_s, "tokens/s"),
            str(item.folder),
        )
        for item in result.runs
    ]
    scores = ("validation nats/token",) if plan.text else ("validation nats/answer", "accuracy")
    print_table((*_COLUMNS, *scores, "tokens/s", "folder"), rows, form, keys=3)


def _answers(plan: TrainingPlan, result: RunResult) -> tuple[str, ...]:
    """Return the cell of the accuracy of a run on a task; no cell for a text."""
    if plan.spec.task is None:
        return ()
    accuracy = result.validation_acc
    if accuracy is None:
        return ("",)
    learnt = "" if plan.spec.task.is_learnt(accuracy) else " (not learnt)"
    return (f"{format_percent(accuracy)}{learnt}",)


def _show_plan(plan: TrainingPlan, out: Path, form: str, *, fresh: bool) -> None:
    """Print every run with its tokens and its approximate time.

    Raises:
        ConfigError: the runs could not be stored in `out`.
        UnsupportedError: another run is timing on this machine, which an estimate would disturb.
    """
    from retbench.training.engine import estimate_seconds

    if not plan.runs:
        _say_empty(plan, form)
        return
    _check_out(plan, out)
    with _hold_devices(plan, refuse_estimate):
        pin_process(plan.threads)
        seconds = estimate_seconds(plan, plan.runs)
    found = 0 if fresh else sum(trained.is_done(out, plan, run) for run in plan.runs)
    print_plan(plan, seconds, form, num_on_disk=found)


def print_plan(plan: TrainingPlan, seconds: Sequence[float], form: str, *, num_on_disk: int = 0) -> None:
    """Print the runs with their tokens and their approximate seconds, and how many of them are trained already."""
    timed = [(run, plan.num_tokens(run), expected) for run, expected in zip(plan.runs, seconds, strict=True)]
    if form == "json":
        found = [{**_fields(run, count), "seconds": expected} for run, count, expected in timed]
        experiment, profile = plan.experiment.name, plan.profile_name
        head = {"experiment": experiment, "profile": profile, "command": plan.command}
        print_json({**head, "runs": found, "num_on_disk": num_on_disk})
        return
    rows = [(*_columns(run, count), format_duration(expected)) for run, count, expected in timed]
    tokens = format_count(sum(count for _, count, _ in timed))
    total = ("all", *[""] * 4, tokens, format_duration(sum(seconds)))
    print_table((*_COLUMNS, "time"), [*rows, total], form, keys=3)
    if num_on_disk:
        typer.echo()
        print_prose(
            f"{num_on_disk} of {len(plan.runs)} runs are on disk already and would not be trained again."
        )
