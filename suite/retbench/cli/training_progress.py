"""Shows training on stderr: on a terminal a bar with loss, rate and the time left, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from retbench.run.events import WaitingForLock
from retbench.training.events import (
    Noted,
    Packing,
    PointAdded,
    RunResult,
    RunStarted,
    StepDone,
    TrainingEvent,
    TrainingPlanned,
    TrainingResult,
    Tuning,
)
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.units import format_bytes, format_count, format_duration, format_rate

INTERVAL_S = 30.0
"""Between two lines on the steps of a run, where there is no terminal."""
REDRAW_S = 0.2
Event = TrainingEvent | WaitingForLock
Tell = Callable[[Event], None]


@contextmanager
def show_training(plan: TrainingPlan, stream: TextIO | None = None) -> Iterator[Tell]:
    """What to tell events to, until the block ends; it writes to `stream` (stderr when None)."""
    console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal or console.is_dumb_terminal:  # there is no bar on the latter
        yield _Lines(plan, console).notify
        return
    with _Bar(plan, console) as display:
        yield display.notify


class _Lines:
    """A line for each event that a log should keep; of documents and steps, one every `INTERVAL_S`."""

    def __init__(self, plan: TrainingPlan, console: Console) -> None:
        self._plan, self._console = plan, console
        self._last = time.monotonic()
        self._holder = ""

    def notify(self, event: Event) -> None:
        """Write the event, or leave it out."""
        match event:
            case Packing() | StepDone():
                if time.monotonic() - self._last < INTERVAL_S:
                    return
                self._last = time.monotonic()
            case WaitingForLock(holder=holder):
                if holder == self._holder:
                    return
                self._holder = holder
        self._console.print(describe(event, self._plan), soft_wrap=True)


class _Bar:
    """A bar of a run's steps; what should stay is written above it."""

    def __init__(self, plan: TrainingPlan, console: Console) -> None:
        self._plan, self._console = plan, console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, told="")
        self._drawn = 0.0
        self._holder = ""

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def notify(self, event: Event) -> None:
        """Redraw the bar, not more often than a person can read."""
        match event:
            case StepDone(run=run, step=step):
                told = _pace(event)
                self._bar.update(
                    self._task, description=run.name, completed=step, total=run.num_steps, told=told
                )
                if time.monotonic() - self._drawn < REDRAW_S:
                    return
            case Packing():
                self._bar.update(self._task, description=describe(event, self._plan))
                if time.monotonic() - self._drawn < REDRAW_S:
                    return
            case WaitingForLock(holder=holder):
                if holder == self._holder:
                    return
                self._holder = holder
                self._console.print(describe(event, self._plan), soft_wrap=True)
            case PointAdded():
                pass
            case _:
                self._console.print(describe(event, self._plan), soft_wrap=True)
        self._drawn = time.monotonic()
        self._bar.refresh()


def describe(event: Event, plan: TrainingPlan) -> str:
    """One event as a line of text."""
    match event:
        case TrainingPlanned(num_runs=total, num_done=done):
            tokens = sum(map(plan.num_tokens, [*plan.tuning_runs, *plan.final_runs]))
            found = f"; on disk already: {done}" if done else ""
            return f"runs to train: {total}, {format_count(tokens)} tokens in all{found}"
        case WaitingForLock(holder=holder):
            return f"waiting: another run is timing on this machine ({holder})"
        case Packing(split=split, num_documents=count, num_bytes=size):
            return f"packing the split {split}: {count:,} documents, {format_bytes(size)}"
        case RunStarted(run=run, number=number, num_runs=total, step=step):
            begun = f", from step {step} on" if step else ""
            return f"{number}/{total} {run.name}: {run.num_steps} steps at rate {describe_rate(run)}{begun}"
        case StepDone(run=run, step=step):
            return f"{run.name}: step {step} of {run.num_steps}, {_pace(event)}"
        case PointAdded(run=run, point=point):
            return (
                f"{run.name}: step {point.step}, training {point.train_loss_nats:.4f}, "
                f"validation {point.validation_loss_nats:.4f} nats/token"
            )
        case Noted(run=run, text=text):
            return f"{run.name}: {text}"
        case RunResult():
            if event.validation_loss is None:
                return f"{event.run.name}: FAILED: {event.error}"
            before = " (on disk already)" if event.on_disk else ""
            return f"{event.run.name}: done{before}, validation {event.validation_loss:.4f} nats/token"
        case Tuning():
            return _describe_tuning(event)
        case TrainingResult():
            return _summary(event)


def _describe_tuning(tuning: Tuning) -> str:
    """A model's rate in a sentence, with a warning where the grid may not hold the best."""
    text = f"{tuning.model_name} at size {tuning.size}: best learning rate {tuning.learning_rate:g}"
    if tuning.edge is None:
        return text
    return f"{text}. WARNING: it is the {tuning.edge} of the grid; a better one may lie beyond. Widen learning_rates."


def _summary(result: TrainingResult) -> str:
    """How training ended."""
    end = "interrupted; the same command goes on from here" if result.interrupted else "finished"
    failed = sum(run.status == "failed" for run in result.runs)
    return f"{end}: {len(result.runs) - failed} done" + (f", {failed} failed" if failed else "")


def _pace(event: StepDone) -> str:
    """Loss, rate and time left."""
    left = "" if event.seconds_left is None else f", about {format_duration(event.seconds_left)} left"
    return f"loss {event.loss:.4f}, {format_rate(event.tokens_per_s, 'tokens/s')}{left}"


def describe_rate(run: TrainingRun) -> str:
    """A run's learning rate, or that the grid decides it."""
    return "best of grid" if run.learning_rate is None else f"{run.learning_rate:g}"
