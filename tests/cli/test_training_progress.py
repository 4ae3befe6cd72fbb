"""What `retbench train` tells on stderr while it goes on: a log's lines, and a terminal's bar."""

import io
import threading
from pathlib import Path

import pytest

from retbench.cli import training_progress
from retbench.cli.training_progress import Event, describe, show_training
from retbench.run.events import WaitingForLock
from retbench.training.events import (
    CurvePoint,
    Noted,
    Packing,
    PointAdded,
    RunResult,
    RunStarted,
    StepDone,
    TrainingPlanned,
    TrainingResult,
    Tuning,
)
from retbench.training.plan import TrainingPlan, TrainingRun

TUNING = TrainingRun("retnet", "300k", 0, 16, "tuning", 4e-3)
FINAL = TrainingRun("transformer", "300k", 0, 16, "final", None)
POINT = CurvePoint(8, 1024, 2.5, 2.75, 4e-3, 1.0, 900.0)
GOOD = RunResult(TUNING, "ok", Path(), 2048, validation_loss=2.34567, tokens_per_s=1234.0)
FOUND = RunResult(TUNING, "ok", Path(), 2048, validation_loss=2.34567, tokens_per_s=1234.0, on_disk=True)
BAD = RunResult(FINAL, "failed", Path(), 0, error="step 3: the training loss is nan.")
HOLDER = "process 7, `retbench run memory`"


def step(number: int, left: float | None = 75.0) -> StepDone:
    return StepDone(TUNING, number, 2.6, 1234.0, left)


EVENTS: list[Event] = [
    WaitingForLock(HOLDER),
    WaitingForLock(HOLDER),
    WaitingForLock("process 8, `retbench train quality`"),
    Packing("train", 1, 4096),
    Packing("train", 1200, 3 * 2**20),
    TrainingPlanned(6, 1),
    RunStarted(TUNING, 1, 6, 0),
    step(1),
    step(2),
    PointAdded(TUNING, POINT),
    Noted(TUNING, "the snapshot x is damaged"),
    GOOD,
    Tuning("retnet", "300k", 4e-3, "highest"),
    BAD,
    TrainingResult((GOOD, BAD), ()),
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def show(plan: TrainingPlan, stream: io.StringIO) -> str:
    """What all events come to on a stream."""
    before = threading.active_count()
    with show_training(plan, stream) as tell:
        for event in EVENTS:
            tell(event)
            assert threading.active_count() == before, "a thread would disturb what is being timed"
    return stream.getvalue()


def test_a_log_has_a_line_for_each_thing_and_not_for_each_step(training_plan: TrainingPlan) -> None:
    assert show(training_plan, io.StringIO()).splitlines() == [
        "waiting: another run is timing on this machine (process 7, `retbench run memory`)",
        "waiting: another run is timing on this machine (process 8, `retbench train quality`)",
        "runs to train: 6, 12.3 K tokens in all; on disk already: 1",
        "1/6 retnet-300k-lr0.004-seed0: 16 steps at rate 0.004",
        "retnet-300k-lr0.004-seed0: step 8, training 2.5000, validation 2.7500 nats/token",
        "retnet-300k-lr0.004-seed0: the snapshot x is damaged",
        "retnet-300k-lr0.004-seed0: done, validation 2.3457 nats/token",
        "retnet at size 300k: best learning rate 0.004. WARNING: it is the highest of the grid; a better one may lie "
        "beyond. Widen learning_rates.",
        "transformer-300k-seed0: FAILED: step 3: the training loss is nan.",
        "finished: 1 done, 1 failed",
    ]


def test_a_long_run_is_told_of_now_and_then(
    training_plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_progress, "INTERVAL_S", 0.0)
    stream = io.StringIO()
    with show_training(training_plan, stream) as tell:
        tell(Packing("train", 1200, 3 * 2**20))
        tell(step(7))
        tell(step(8, left=None))
    assert stream.getvalue().splitlines() == [
        "packing the split train: 1,200 documents, 3.00 MiB",
        "retnet-300k-lr0.004-seed0: step 7 of 16, loss 2.6000, 1.23 ktokens/s, about 1 min 15 s left",
        "retnet-300k-lr0.004-seed0: step 8 of 16, loss 2.6000, 1.23 ktokens/s",
    ]


def test_a_terminal_shows_a_bar_and_keeps_what_matters(
    training_plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    text = show(training_plan, Terminal())
    assert "about 1 min 15 s left" in text
    assert "2/16" in text
    assert text.count("process 7") == text.count("process 8") == 1
    for kept in ("the snapshot x is damaged", "FAILED: step 3", "WARNING: it is the highest", "1 failed"):
        assert text.count(kept) == 1
    assert "step 8, training" not in text  # the bar has moved on: a log keeps it


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (TrainingPlanned(6, 0), "runs to train: 6, 12.3 K tokens in all"),
        (
            RunStarted(FINAL, 5, 6, 7),
            "5/6 transformer-300k-seed0: 16 steps at rate best of grid, from step 7 on",
        ),
        (FOUND, "retnet-300k-lr0.004-seed0: done (on disk already), validation 2.3457 nats/token"),
        (Tuning("retnet", "1m", 1e-2, None), "retnet at size 1m: best learning rate 0.01"),
        (
            TrainingResult((GOOD,), (), interrupted=True),
            "interrupted; the same command goes on from here: 1 done",
        ),
    ],
)
def test_what_else_is_told(training_plan: TrainingPlan, event: Event, line: str) -> None:
    assert describe(event, training_plan) == line


def test_a_terminal_that_can_draw_no_bar_gets_lines(
    training_plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    with show_training(training_plan, stream) as tell:
        tell(PointAdded(TUNING, POINT))
    assert "step 8, training 2.5000, validation 2.7500 nats/token" in stream.getvalue()
