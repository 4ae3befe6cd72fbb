"""`retbench train`: train the models of an experiment, progress on stderr and a table on stdout; or show the runs."""

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retbench.cli.training_output import print_plan, print_result
from retbench.cli.training_progress import Event, Tell, show_training
from retbench.config import experiment as config
from retbench.errors import ConfigError
from retbench.files import check_writable
from retbench.measure.environment import pin_process
from retbench.measure.machine import usable_cores
from retbench.planning.plan import PAPER_MEMORY_BYTES
from retbench.run.devices import Device, find_device
from retbench.run.events import WaitingForLock
from retbench.run.interrupts import Interrupted, catch_signals
from retbench.run.locks import timing_lock
from retbench.training import trained
from retbench.training.events import Packing, TrainingResult
from retbench.training.plan import TrainingPlan, check_shares, resolve_models, training_spec
from retbench.training.ranks import ALONE, Launch, OtherRankFailedError, Ranks, joined

if TYPE_CHECKING:
    from retbench.data.packing import PackedTokens
    from retbench.training.engine import TrainingText

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


def make_training_plan(request: Request, launch: Launch | None = None) -> TrainingPlan:
    """The plan of one command; see `retbench.planning.plan.make_plan` for its defaults.

    Args:
        request: The words of the command.
        launch: The place of this process among those that train together; alone when None.

    Raises:
        ConfigError: something is misspelt or contradicts itself, or the profile trains nothing.
        UnsupportedError: this machine cannot do what was asked.
    """
    from retbench.data.corpora import load_corpus
    from retbench.data.tokenizers import load_tokenizer

    launch = launch or Launch()
    found = _find_device(request.device, launch)
    kind, _, _ = found.name.partition(":")
    roomy = found.memory_bytes is not None and found.memory_bytes >= PAPER_MEMORY_BYTES
    profile_name = request.profile or ("paper" if roomy else "cpu")
    experiment = config.load_experiment(request.experiment, request.overrides, profile=profile_name)
    spec = training_spec(experiment, profile_name)
    check_shares(spec, launch.world_size)
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
        threads=experiment.profile(profile_name).threads or max(1, usable_cores() // launch.local_world_size),
        command=launch.command(
            _command(request, profile_name, found.name if launch.world_size == 1 else kind)
        ),
        world_size=launch.world_size,
    )


def _find_device(asked: str | None, launch: Launch) -> Device:
    """The device of this process: of several on a machine with GPUs, each takes the one of its number."""
    if launch.world_size == 1:
        return find_device(asked)
    if asked not in (None, "cpu", "cuda"):
        raise ConfigError(
            f"--device {asked}: of {launch.world_size} processes each takes a GPU of its own. Give cuda or cpu."
        )
    found = find_device(asked)
    return found if found.name == "cpu" else find_device(f"cuda:{launch.local_rank}")


def _command(request: Request, profile_name: str, device: str) -> str:
    """`retbench train` with the options that were given or settled."""
    words = ["retbench", "train", request.experiment, "--profile", profile_name, "--device", device]
    for item in request.overrides:
        words += ["--set", item]
    if request.data_dir is not None:
        words += ["--data-dir", str(request.data_dir)]
    return shlex.join(words)


def train(request: Request, out: Path, *, fresh: bool, as_json: bool) -> int:
    """Carry out a request, in this process or together with those that torchrun launched; returns the exit code.

    Raises:
        RetbenchError: as of `make_training_plan` and `carry_out`; of several processes, in one of them.
    """
    launch = Launch.from_environment()
    try:
        with joined(launch, on_cpu=request.device == "cpu") as ranks:
            plan = ranks.together(lambda: make_training_plan(request, launch))
            return carry_out(plan, out, fresh=fresh, as_json=as_json, ranks=ranks)
    except OtherRankFailedError:
        return FAILED


def carry_out(plan: TrainingPlan, out: Path, *, fresh: bool, as_json: bool, ranks: Ranks = ALONE) -> int:
    """Train what is not on disk yet, print the runs, and return the exit code.

    Raises:
        ConfigError: a folder holds another run than the plan's, or cannot be written to.
        StorageError: something could not be written.
    """
    ranks.lead(lambda: _check_out(plan, out))
    stopped: list[bool] = []
    with ExitStack() as stack:
        stack.enter_context(catch_signals(lambda: stopped.append(True)))
        tell: Tell = stack.enter_context(show_training(plan)) if ranks.leads else _tell_nobody

        def wait(holder: str) -> None:
            ranks.hold_on()
            _wait(holder, tell, lambda: bool(stopped))

        def enter() -> bool:
            """Whether the machine is ours; False when told to stop."""
            try:
                stack.enter_context(timing_lock(plan.command, wait=wait))
            except Interrupted:
                return False
            return True

        result = TrainingResult((), (), interrupted=True)
        if ranks.lead(enter):
            result = _train(plan, out, fresh, tell, lambda: bool(stopped), ranks) or result
    if ranks.leads:
        print_result(plan, result, as_json=as_json)
    if result.interrupted:
        return INTERRUPTED
    return FAILED if any(run.status == "failed" for run in result.runs) else 0


def _check_out(plan: TrainingPlan, out: Path) -> None:
    """ConfigError where there is something to train, and it could not be stored."""
    if not all(trained.is_done(out, plan, run) for run in [*plan.tuning_runs, *plan.final_runs]):
        check_writable(out, "--out")


def _tell_nobody(event: Event) -> None:
    """What processes other than the first do with events."""


def _wait(holder: str, tell: Tell, stopped: Callable[[], bool]) -> None:
    """Pause while another run holds the machine; Interrupted when told to stop."""
    import time

    tell(WaitingForLock(holder))
    for _ in range(5):
        if stopped():
            raise Interrupted
        time.sleep(0.1)


def _train(
    plan: TrainingPlan, out: Path, fresh: bool, tell: Tell, stop: Callable[[], bool], ranks: Ranks
) -> TrainingResult | None:
    """Train, once no other run is timing on the machine; None where it was told to stop before the first step."""
    from retbench.training.engine import delete_runs, train_all

    pin_process(plan.threads)
    if fresh:
        ranks.lead(lambda: delete_runs(plan, out))
    text = ranks.together(lambda: _read_text(plan, tell, stop))
    if ranks.any(text is None):
        return None
    assert text is not None
    return train_all(plan, text, out, notify=tell, stop=stop, ranks=ranks)


def _read_text(plan: TrainingPlan, tell: Tell, stop: Callable[[], bool]) -> "TrainingText | None":
    """The tokens of a plan's corpus, packed where they are not yet; None when told to stop between two documents."""
    from retbench.data.packing import pack
    from retbench.training.engine import TrainingText

    def packed(split: str, most: int | None) -> "PackedTokens":
        def report(num_documents: int, num_bytes: int) -> None:
            tell(Packing(split, num_documents, num_bytes))
            if stop():
                raise Interrupted

        return pack(plan.corpus, split, plan.tokenizer, max_tokens=most, report=report)

    most = plan.max_packed_tokens
    scored = None if most is None else plan.spec.validation_tokens + 1
    try:
        return TrainingText(packed("train", most), packed("validation", scored))
    except Interrupted:
        return None


def show_plan(request: Request, out: Path, *, as_json: bool) -> None:
    """Print every run with its tokens and the time that it will roughly take.

    Raises:
        ConfigError: another run is timing on this machine, which an estimate would disturb, or the runs could not be
            stored in `out`.
    """
    from retbench.training.engine import estimate_seconds

    def refuse(holder: str) -> None:
        raise ConfigError(
            f"an estimate measures the machine, and that would disturb the run of {holder}. Try again when it is done."
        )

    launch = Launch.from_environment()
    if launch.rank > 0:
        return
    plan = make_training_plan(request, launch)
    _check_out(plan, out)
    runs = [*plan.tuning_runs, *plan.final_runs]
    with timing_lock(plan.command, wait=refuse):
        pin_process(plan.threads)
        seconds = estimate_seconds(plan, runs)
    print_plan(plan, runs, seconds, as_json=as_json)
