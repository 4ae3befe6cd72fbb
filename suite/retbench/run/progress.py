"""Shows a run on stderr: a bar with the time left on a terminal, a plain line an event anywhere else.

The bar is redrawn only when an event arrives. A thread that redraws it many times a second would take
processor time from the worker that is being timed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from retbench.planning.cells import Cell
from retbench.records.record import Gate
from retbench.run.events import (
    CellAdvanced,
    CellDone,
    CellStarted,
    Event,
    Finished,
    GateChecked,
    Observer,
    Planned,
    Preparing,
    Progress,
    RoundStarted,
    RunResult,
    Streaming,
    WaitingForLock,
    WorkerDied,
)
from retbench.units import format_count, format_duration, format_tokens


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Observer]:
    """An observer that writes to `stream` (stderr when None) until the block ends."""
    console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal or console.is_dumb_terminal:  # there is no bar on the latter
        yield Lines(console)
        return
    with BarDisplay(console) as display:
        yield display


class Lines:
    """Writes a line for each event that a log should keep."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def notify(self, event: Event, /) -> None:
        """Write the event, unless it only says that something begins or goes on."""
        if not isinstance(event, CellStarted | CellAdvanced | Streaming):
            self._console.print(describe(event), soft_wrap=True)


class BarDisplay:
    """A bar of the measurements done, with what is going on and how long the rest will take."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, left="")

    def __enter__(self) -> "BarDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def notify(self, event: Event, /) -> None:
        """Redraw the bar; what a person should still see at the end is written above it."""
        if _is_lasting(event):
            self._console.print(describe(event), soft_wrap=True)
        self._bar.update(self._task, description=_activity(event))
        if not isinstance(event, WaitingForLock):
            progress = event.progress
            self._bar.update(
                self._task, completed=progress.done, total=progress.total, left=_time_left(progress)
            )
        self._bar.refresh()


def _is_lasting(event: Event) -> bool:
    """Whether an event stays on the terminal when the bar has moved on."""
    match event:
        case CellDone(status=status):
            return status != "ok"
        case GateChecked(gate=gate):
            return not gate.passed
        case _:
            return isinstance(event, WaitingForLock | Planned | WorkerDied | Finished)


def _activity(event: Event) -> str:
    """What is going on, in the few words that fit in front of a bar."""
    match event:
        case WaitingForLock():
            return "waiting for another run"
        case Preparing(model_name=name) | GateChecked(model_name=name):
            return f"{name}: equality checks"
        case Streaming(model_name=name, num_tokens=done, total_tokens=total):
            return f"{name}: prefilled {format_tokens(done)} of {format_tokens(total)}"
        case CellAdvanced():
            return describe(event)
        case CellStarted(cell=cell, round=number) | CellDone(cell=cell, round=number):
            return f"round {number + 1}: {_name(cell)}"
        case _:
            return "running"


def describe(event: Event) -> str:
    """One event as a line of text."""
    match event:
        case WaitingForLock(holder=holder):
            return f"waiting: another run is timing on this machine ({holder})"
        case Planned(progress=progress, skipped=skipped, run_id=run_id):
            found = f"; {skipped} are on disk already" if skipped else ""
            return f"run {run_id}: {progress.total - progress.done} measurements to take{found}"
        case Preparing(model_name=name):
            return f"{name}: checking that its forms agree"
        case Streaming(model_name=name, num_tokens=done, total_tokens=total):
            return f"{name}: prefilled {done} of {total} tokens"
        case GateChecked(model_name=name, gate=gate):
            return f"{name}: {_verdict(gate)}"
        case RoundStarted(round=number, num_rounds=rounds, model_order=order):
            return f"round {number + 1} of {rounds}: {', '.join(order)}"
        case CellStarted(cell=cell, round=number):
            return f"round {number + 1}: {_name(cell)}"
        case CellAdvanced(cell=cell, round=number, num_tokens=done):
            return f"round {number + 1}: {_name(cell)}: {format_count(done)} tokens read"
        case CellDone(cell=cell, round=number, status=status, error=error, progress=progress):
            why = f": {error}" if error else ""
            place = f"{progress.done}/{progress.total}"
            return f"{place} round {number + 1}: {_name(cell)}: {status}{why}{_time_left(progress, ', ')}"
        case WorkerDied(model_name=name, pid=pid, reason=reason):
            return f"{name}: worker {pid} ended: {reason}"
        case Finished(result=result):
            return _summary(result)


def _name(cell: Cell) -> str:
    """A cell as a person says it: 'retnet decode at 32K', 'retnet 1m seed 0 zeroshot of piqa, 4 examples, at 2K'."""
    point, work = cell.point, describe_work(cell)
    batch = f" x {point.batch_size}" if point.batch_size > 1 else ""
    comma = "," if "," in work else ""
    return f"{cell.subject.label} {work}{comma} at {format_tokens(point.context_len)}{batch}"


def describe_work(cell: Cell) -> str:
    """What is measured of a cell's model: 'decode', 'zeroshot of piqa, 4 examples'."""
    point = cell.point
    task = f" of {point.task}" if point.task else ""
    examples = f", {point.num_fewshot} examples" if point.num_fewshot else ""
    return f"{cell.workload}{task}{f', {point.protocol}' if point.protocol else examples}"


def _time_left(progress: Progress, prefix: str = "") -> str:
    """'about 3 min 20 s left', or nothing while that is unknown or no longer matters."""
    if progress.seconds_left is None or progress.done == progress.total:
        return ""
    return f"{prefix}about {format_duration(progress.seconds_left)} left"


def _verdict(gate: Gate) -> str:
    """A gate in a sentence; what failed, with error and limit."""
    if gate.passed:
        return f"equal in {len(gate.checks)} checks at {gate.dtype}"
    failed = "; ".join(
        f"{check.name} at {check.length} tokens has error {check.error:.3g}, limit {check.limit:.3g}"
        for check in gate.checks
        if not check.passed
    )
    return f"NOT EQUAL at {gate.dtype}, so none of its cells is measured: {failed}"


def _summary(result: RunResult) -> str:
    """How a run ended."""
    end = "interrupted; the same command goes on from here" if result.interrupted else "finished"
    counts = ", ".join(f"{count} {status}" for status, count in sorted(result.counts.items()))
    place = f" in {result.path}" if result.path else ""
    nothing = "nothing new to measure"
    if result.interrupted:
        nothing = "nothing new measured yet" if result.skipped else "nothing measured yet"
    return f"{end}: {counts or nothing}{place}"
