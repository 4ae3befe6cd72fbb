"""Progress of runs and of training on stderr: a bar with the time left on a terminal, plain lines anywhere else.

The bar is redrawn only when an event arrives. A thread that redraws it many times a second would take processor
time from the worker that is being timed.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from retbench.cli.in_process import describe_busy, describe_waiting
from retbench.planning.cells import Cell
from retbench.records.record import Gate
from retbench.running import events
from retbench.running.events import RunEvent, RunProgress, RunSummary, WaitingForLock
from retbench.training import events as training
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.units import (
    format_bytes,
    format_count,
    format_duration,
    format_items,
    format_percent,
    format_rate,
    format_size,
    format_tokens,
)

LOG_INTERVAL_S = 30.0
"""Least time between two lines about frequent events in a log."""
REDRAW_S = 0.2
"""Least time between two drawings of the bar for frequent events."""

_E = TypeVar("_E")


@dataclass(frozen=True)
class ShownEvent:
    """One event as a display shows it.

    Attributes:
        text: The event as one line.
        in_log: True if a log keeps the line.
        above_bar: True if the line stays on a terminal, above the bar.
        activity: Words in front of the bar; unchanged when None, as are the next two.
        steps: Steps done and in all.
        note: Words behind the bar.
        is_frequent: True if it may come many times per second.
        reason: Reason of a failure, which is written in full only once.
        brief: The text for a reason that has been written.
    """

    text: str
    in_log: bool = True
    above_bar: bool = True
    activity: str | None = None
    steps: tuple[int, int] | None = None
    note: str | None = None
    is_frequent: bool = False
    reason: str | None = None
    brief: str = ""


@contextmanager
def show_events(
    view: Callable[[_E], ShownEvent], stream: TextIO | None = None
) -> Iterator[Callable[[_E], None]]:
    """Yield a function that writes events to `stream` (stderr when None) until the block ends."""
    console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal or console.is_dumb_terminal:  # a dumb terminal cannot draw a bar
        yield _EventDisplay(view, console, None).notify
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    note = TextColumn("{task.fields[note]}")
    with RichProgress(*columns, note, console=console, auto_refresh=False, transient=True) as bar:
        yield _EventDisplay(view, console, bar).notify


class _EventDisplay(Generic[_E]):
    """Writes events as lines of a log, or on a bar; a line that repeats the last one is left out.

    A reason is written in full once: a model that cannot be loaded has the same in every cell and round.
    """

    def __init__(self, view: Callable[[_E], ShownEvent], console: Console, bar: RichProgress | None) -> None:
        self._view = view
        self._console = console
        self._bar = bar
        self._task = None if bar is None else bar.add_task("starting", total=None, note="")
        self._last_line = ""
        self._reasons: set[str] = set()
        self._shown_s = time.monotonic() if bar is None else 0.0

    def notify(self, event: _E, /) -> None:
        """Show one event."""
        shown = self._view(event)
        interval_s = LOG_INTERVAL_S if self._bar is None else REDRAW_S
        is_too_soon = shown.is_frequent and time.monotonic() - self._shown_s < interval_s
        if self._bar is None:
            if not shown.in_log or is_too_soon:
                return
            self._write(shown)
            if shown.is_frequent:
                self._shown_s = time.monotonic()
            return
        if shown.above_bar:
            self._write(shown)
        assert self._task is not None
        done, total = shown.steps or (None, None)
        self._bar.update(self._task, description=shown.activity, completed=done, total=total)
        if shown.note is not None:
            self._bar.update(self._task, note=shown.note)
        if not is_too_soon:
            self._shown_s = time.monotonic()
            self._bar.refresh()

    def _write(self, shown: ShownEvent) -> None:
        line = shown.text
        if shown.reason is not None:
            if shown.reason in self._reasons:
                line = shown.brief
            self._reasons.add(shown.reason)
        if line != self._last_line:
            self._console.print(line, soft_wrap=True)
        self._last_line = line


def view_run(event: RunEvent) -> ShownEvent:
    """Return an event of a run as it is shown; on a terminal, successful cells only move the bar."""
    shown = _view_run(event)
    if isinstance(event, WaitingForLock):
        return shown
    progress = event.progress
    return replace(shown, steps=(progress.done, progress.total), note=_time_left(progress))


def _view_run(event: RunEvent) -> ShownEvent:
    """Return an event of a run as it is shown, without its progress."""
    match event:
        case WaitingForLock():
            return ShownEvent(describe_waiting(event.holder), activity="waiting for another run")
        case events.RunPlanned(progress=progress, skipped=skipped, run_id=run_id, note=note):
            found = f"; {skipped} {'is' if skipped == 1 else 'are'} on disk already" if skipped else ""
            found += f"; {note}" if note else ""
            left = progress.total - progress.done
            text = f"run {run_id}: {format_items(left, 'measurement')} to take{found}"
            return ShownEvent(text, activity="running")
        case events.MachineBusy(ratio=ratio):
            return ShownEvent(
                f"WARNING: {describe_busy(ratio)}, so times will be too long and vary; end those first"
            )
        case events.Preparing(model_name=name, checks=True):
            text = f"{name}: checking that its execution modes are equivalent"
            return ShownEvent(text, above_bar=False, activity=f"{name}: equivalence check")
        case events.Preparing(model_name=name):
            return ShownEvent(f"{name}: preparing", above_bar=False, activity=f"{name}: preparing")
        case events.GateChecked(model_name=name, gate=gate):
            text = f"{name}: {_describe_gate(gate)}"
            return ShownEvent(text, above_bar=not gate.passed, activity=f"{name}: equivalence check")
        case events.Streaming(model_name=name, num_tokens=done, total_tokens=total):
            return _activity(f"{name}: prefilled {format_tokens(done)} of {format_tokens(total)}")
        case events.RoundStarted(round=number, num_rounds=rounds, model_order=order):
            text = f"round {number + 1} of {rounds}: {', '.join(order)}"
            return ShownEvent(text, above_bar=False, activity="running")
        case events.CellStarted():
            return _activity(_place(event))
        case events.CellAdvanced(num_tokens=done):
            return _activity(f"{_place(event)}: {format_count(done)} tokens read")
        case events.CellDone(status=status, error=error, progress=progress):
            place, remaining = _place(event), _time_left(progress, ", ")
            ended = f"{progress.done}/{progress.total} {place}: {status}"
            if not error:
                return ShownEvent(f"{ended}{remaining}", above_bar=False, activity=place)
            brief = f"{ended}, for a reason given above{remaining}"
            return ShownEvent(f"{ended}: {error}{remaining}", activity=place, reason=error, brief=brief)
        case events.WorkerEnded(model_name=name, pid=pid, reason=reason):
            return ShownEvent(f"{name}: worker {pid} ended: {reason}", activity="running")
        case events.RunFinished(result=result):
            return ShownEvent(_summarise_run(result), activity="running")


def _activity(text: str) -> ShownEvent:
    """Return an event that is shown in front of a bar only."""
    return ShownEvent(text, in_log=False, above_bar=False, activity=text)


def _place(event: events.CellStarted | events.CellAdvanced | events.CellDone) -> str:
    return f"round {event.round + 1}: {_name(event.cell)}"


def _name(cell: Cell) -> str:
    """Return a cell in words: 'retnet decode at 32K', 'retnet 1M seed 0 zeroshot of piqa, 4 examples, at 2K'."""
    point, work = cell.point, describe_work(cell)
    batch = f" x {point.batch_size}" if point.batch_size > 1 else ""
    comma = "," if "," in work else ""
    return f"{cell.under_test.label} {work}{comma} at {format_tokens(point.context_len)}{batch}"


def describe_work(cell: Cell) -> str:
    """Return a cell's workload in words: 'decode', 'zeroshot of piqa, 4 examples'."""
    point = cell.point
    task = f" of {point.task}" if point.task else ""
    examples = f", {point.num_fewshot} examples" if point.num_fewshot else ""
    examples += f", {point.num_pairs} pairs" if point.num_pairs else ""
    return f"{cell.workload}{task}{f', {point.protocol}' if point.protocol else examples}"


def _time_left(progress: RunProgress, prefix: str = "") -> str:
    """Return 'about 3 min 20 s left', or nothing while it is unknown or at the end."""
    if progress.seconds_left is None or progress.done == progress.total:
        return ""
    return f"{prefix}about {format_duration(progress.seconds_left)} left"


def _describe_gate(gate: Gate) -> str:
    if gate.passed:
        earlier = f", found by run {gate.run_id}" if gate.run_id else ""
        return f"equivalent in {len(gate.checks)} checks at {gate.dtype}{earlier}"
    return f"NOT EQUIVALENT at {gate.dtype}, so none of its cells is measured: {gate.failures}"


def _summarise_run(result: RunSummary) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in sorted(result.counts.items()))
    place = f" in {result.path}" if result.path else ""
    if result.interrupted and not counts:
        return f"interrupted: nothing{' new' if result.skipped else ''} was measured{place}"
    nothing = "nothing new to measure"
    return f"{_ending(interrupted=result.interrupted)}: {counts or nothing}{place}"


def _ending(*, interrupted: bool, fresh: bool = False) -> str:
    """Return how a command ended; `fresh` if giving it again would delete what it has done."""
    command = "the same command without --fresh" if fresh else "the same command"
    return f"interrupted; {command} continues from here" if interrupted else "finished"


TrainingEvent = training.TrainingEvent | WaitingForLock


def view_training(plan: TrainingPlan, *, fresh: bool = False) -> Callable[[TrainingEvent], ShownEvent]:
    """Return the function that gives an event of training as it is shown; `fresh` as the command has it."""
    return lambda event: _view_training(event, plan, fresh=fresh)


def _view_training(event: TrainingEvent, plan: TrainingPlan, *, fresh: bool) -> ShownEvent:
    match event:
        case WaitingForLock():
            return ShownEvent(describe_waiting(event.holder))
        case training.WaitingForRun(folder=folder):
            return ShownEvent(f"waiting: another command trains {folder}")
        case training.TrainingPlanned(num_runs=total, num_done=done):
            if done == total:
                runs = "the run is" if total == 1 else f"all {total} runs are"
                return ShownEvent(f"nothing to train: {runs} on disk already")
            tokens = sum(map(plan.num_tokens, [*plan.tuning_runs, *plan.final_runs]))
            found = f"; on disk already: {done}" if done else ""
            return ShownEvent(f"runs: {total}, {format_count(tokens)} tokens in all{found}")
        case training.Packing(split=split, num_documents=count, num_bytes=size):
            text = f"packing the split {split}: {count:,} documents, {format_bytes(size)}"
            return ShownEvent(text, above_bar=False, activity=text, is_frequent=True)
        case training.RunStarted(run=run, number=number, num_runs=total, step=step):
            start = f", from step {step} on" if step else ""
            rate = describe_rate(run)
            return ShownEvent(f"{number}/{total} {run.name}: {run.num_steps} steps at rate {rate}{start}")
        case training.StepDone(run=run, step=step):
            pace = _pace(event)
            text, steps = f"{run.name}: step {step} of {run.num_steps}, {pace}", (step, run.num_steps)
            return ShownEvent(
                text, above_bar=False, activity=run.name, steps=steps, note=pace, is_frequent=True
            )
        case training.PointAdded(run=run, point=point):
            losses = f"training {point.train_loss_nats:.4f}, validation {point.validation_loss_nats:.4f}"
            unit = _loss_unit(point.validation_acc)
            return ShownEvent(f"{run.name}: step {point.step}, {losses} {unit}", above_bar=False)
        case training.Noted(run=run, text=text):
            return ShownEvent(f"{run.name}: {text}")
        case training.RunResult() as result:
            return ShownEvent(_describe_result(result))
        case training.Tuning() as tuning:
            return ShownEvent(_describe_tuning(tuning))
        case training.TrainingResult() as result:
            failed = sum(run.status == "failed" for run in result.runs)
            counts = f"{len(result.runs) - failed} done" + (f", {failed} failed" if failed else "")
            return ShownEvent(f"{_ending(interrupted=result.interrupted, fresh=fresh)}: {counts}")


def _describe_result(result: training.RunResult) -> str:
    if result.validation_loss is None:
        return f"{result.run.name}: FAILED: {result.error}"
    before = " (on disk already)" if result.on_disk else ""
    unit = _loss_unit(result.validation_acc)
    return f"{result.run.name}: done{before}, validation {result.validation_loss:.4f} {unit}"


def _loss_unit(accuracy: float | None) -> str:
    """Return the unit of a loss: per token, or per answer with the accuracy of the answers."""
    return "nats/token" if accuracy is None else f"nats/answer, accuracy {format_percent(accuracy)}"


def _describe_tuning(tuning: training.Tuning) -> str:
    """Return a model's rate in a sentence, with a warning where the grid may miss the best one."""
    text = (
        f"{tuning.model_name} at size {format_size(tuning.size)}: best learning rate {tuning.learning_rate:g}"
    )
    if tuning.edge is None:
        return text
    return f"{text}. WARNING: it is the {tuning.edge} of the grid; a better one may lie beyond. Widen learning_rates."


def _pace(event: training.StepDone) -> str:
    left = "" if event.seconds_left is None else f", about {format_duration(event.seconds_left)} left"
    return f"loss {event.loss:.4f}, {format_rate(event.tokens_per_s, 'tokens/s')}{left}"


def describe_rate(run: TrainingRun) -> str:
    """Return a run's learning rate, or that the grid decides it."""
    return "best of grid" if run.learning_rate is None else f"{run.learning_rate:g}"
