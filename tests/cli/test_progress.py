"""Progress on stderr: a log's lines and a terminal's bar, of a run and of training."""

import io
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from retbench.cli import progress
from retbench.cli.progress import (
    ShownEvent,
    show_events,
    view_run,
    view_training,
)
from retbench.config.experiment_files import load_experiment
from retbench.planning.cells import Cell, Settings, expand
from retbench.records.record import Gate, GateCheck
from retbench.running.events import (
    CellAdvanced,
    CellDone,
    CellStarted,
    GateChecked,
    MachineBusy,
    Preparing,
    RoundStarted,
    RunEvent,
    RunFinished,
    RunPlanned,
    RunProgress,
    RunSummary,
    Streaming,
    WaitingForLock,
    WorkerEnded,
)
from retbench.training.events import (
    CurvePoint,
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
    WaitingForRun,
)
from retbench.training.plan import TrainingPlan, TrainingRun

HALF = RunProgress(done=2, total=4, seconds_left=75.0)
DONE = RunProgress(done=4, total=4, seconds_left=0.0)
CHECK = GateCheck(name="a = b", length=17, error=1e-6, limit=1e-3)
PASSED = Gate(passed=True, dtype="float32", checks=(CHECK, CHECK))
FAILED = Gate(
    passed=False, dtype="float32", checks=(GateCheck(name="a = b", length=17, error=0.5, limit=1e-3),)
)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def show(view: Callable[[Any], ShownEvent], stream: io.StringIO, events: Iterable[Any]) -> str:
    """The output for events on a stream."""
    before = threading.active_count()
    with show_events(view, stream) as notify:
        for event in events:
            notify(event)
            assert threading.active_count() == before, "a thread would disturb the timed worker"
    return stream.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


@pytest.fixture
def cell(tiny_experiment: Path) -> Cell:
    settings = Settings(
        dtype="float32", device="cpu", threads=2, seed=0, warmup_s=0, min_steps=2, cuda_graph=False
    )
    overrides = ["workloads.decode.context_len=[32768]"]
    return expand(load_experiment(str(tiny_experiment), overrides, profile="smoke"), "smoke", settings)[0]


def events_of_a_run(cell: Cell) -> list[RunEvent]:
    return [
        WaitingForLock("process 7, `retbench run memory`, since 2026-01-02 03:04:05 UTC"),
        RunPlanned(HALF, skipped=2, run_id="20260102T030405Z-abcdef"),
        MachineBusy(0.45, HALF),
        Preparing("retnet", 11, HALF),
        GateChecked("retnet", PASSED, HALF),
        Streaming("retnet", 2048, 32768, HALF),
        RoundStarted(0, 3, ("retnet", "transformer"), HALF),
        CellStarted(cell, 0, 12, HALF),
        CellAdvanced(cell, 0, 1_230_000, HALF),
        CellDone(cell, 0, "ok", None, HALF),
        CellDone(cell, 1, "oom", "out of memory: 3 GiB", HALF),
        WorkerEnded("retnet", 12, "the worker was ended by SIGSEGV", HALF),
        RunFinished(RunSummary(counts={"oom": 1, "ok": 3}, path=Path("results/x.jsonl")), DONE),
    ]


def test_a_log_has_one_plain_line_for_each_thing_that_ended(cell: Cell) -> None:
    assert show(view_run, io.StringIO(), events_of_a_run(cell)).splitlines() == [
        "waiting: another run is timing on this machine (process 7, `retbench run memory`, "
        "since 2026-01-02 03:04:05 UTC)",
        "run 20260102T030405Z-abcdef: 2 measurements to take; 2 are on disk already",
        "WARNING: other processes use 45.0 % of the processors, so times will be too long and vary; end those first",
        "retnet: checking that its execution modes are equivalent",
        "retnet: equivalent in 2 checks at float32",
        "round 1 of 3: retnet, transformer",
        "2/4 round 1: retnet decode at 32K: ok, about 1 min 15 s left",
        "2/4 round 2: retnet decode at 32K: oom: out of memory: 3 GiB, about 1 min 15 s left",
        "retnet: worker 12 ended: the worker was ended by SIGSEGV",
        "finished: 3 ok, 1 oom in results/x.jsonl",
    ]


def test_text_is_shown_as_it_is(cell: Cell) -> None:
    """Without rich's markup: a message may hold brackets, and a path may be longer than the line."""
    message = "[bold] :smile: " + "x" * 300
    text = show(view_run, io.StringIO(), [CellDone(cell, 0, "failed", message, DONE)])
    assert text == f"4/4 round 1: retnet decode at 32K: failed: {message}\n"


def test_a_reason_is_written_in_full_once(cell: Cell) -> None:
    faults = [CellDone(cell, number, "failed", why, DONE) for number, why in enumerate(["a", "no file", "a"])]
    assert show(view_run, io.StringIO(), faults).splitlines() == [
        "4/4 round 1: retnet decode at 32K: failed: a",
        "4/4 round 2: retnet decode at 32K: failed: no file",
        "4/4 round 3: retnet decode at 32K: failed, for a reason given above",
    ]


def test_a_check_that_holds_names_the_run_that_checked() -> None:
    held = PASSED.model_copy(update={"run_id": "20260102T030405Z-abcdef"})
    assert view_run(GateChecked("retnet", held, HALF)).text == (
        "retnet: equivalent in 2 checks at float32, found by run 20260102T030405Z-abcdef"
    )
    assert view_run(Preparing("retnet", 11, HALF, checks=False)).text == "retnet: preparing"


def test_a_failed_equivalence_check_shows_the_difference() -> None:
    assert view_run(GateChecked("retnet", FAILED, HALF)).text == (
        "retnet: NOT EQUIVALENT at float32, so none of its cells is measured: "
        "a = b at 17 tokens: error 0.5, limit 0.001"
    )


def test_an_interrupted_run_says_how_to_continue() -> None:
    event = RunFinished(RunSummary(counts={"ok": 1}, interrupted=True, path=Path("r.jsonl")), HALF)
    assert view_run(event).text == "interrupted; the same command continues from here: 1 ok in r.jsonl"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (RunSummary(interrupted=True), "interrupted: nothing was measured"),
        (RunSummary(interrupted=True, skipped={"ok": 2}), "interrupted: nothing new was measured"),
    ],
)
def test_a_run_that_was_interrupted_at_once_does_not_say_that_all_is_measured(
    result: RunSummary, words: str
) -> None:
    assert view_run(RunFinished(result, HALF)).text == words


def test_a_terminal_that_can_draw_no_bar_gets_lines(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = show(view_run, Terminal(), [CellDone(cell, 0, "ok", None, DONE)])
    assert text == "4/4 round 1: retnet decode at 32K: ok\n"


def test_a_terminal_shows_a_bar_and_keeps_failures(cell: Cell, terminal: Terminal) -> None:
    text = show(view_run, terminal, events_of_a_run(cell))
    assert "round 1: retnet decode at 32K" in text
    assert "round 1: retnet decode at 32K: 1.23 M tokens read" in text
    assert "2/4" in text
    assert "about 1 min 15 s left" in text
    kept = [line for line in text.splitlines() if "oom: out of memory" in line or "SIGSEGV" in line]
    assert len(kept) == 2
    assert "ok, about" not in text, "a successful cell only moves the bar"


TUNING = TrainingRun("retnet", "300k", 0, 16, "tuning", 4e-3)
FINAL = TrainingRun("transformer", "300k", 0, 16, "final", None)
POINT = CurvePoint(8, 1024, 2.5, 2.75, 4e-3, 1.0, 900.0)
GOOD = RunResult(TUNING, "ok", Path(), 2048, validation_loss=2.34567, tokens_per_s=1234.0)
FOUND = RunResult(TUNING, "ok", Path(), 2048, validation_loss=2.34567, tokens_per_s=1234.0, on_disk=True)
BAD = RunResult(FINAL, "failed", Path(), 0, error="step 3: the training loss is nan.")
HOLDER = "process 7, `retbench run memory`"


def step(number: int, left: float | None = 75.0) -> StepDone:
    return StepDone(TUNING, number, 2.6, 1234.0, left)


EVENTS: list[TrainingEvent | WaitingForLock] = [
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


def test_a_log_of_training_has_no_line_for_each_step(training_plan: TrainingPlan) -> None:
    assert show(view_training(training_plan), io.StringIO(), EVENTS).splitlines() == [
        "waiting: another run is timing on this machine (process 7, `retbench run memory`)",
        "waiting: another run is timing on this machine (process 8, `retbench train quality`)",
        "runs: 6, 12.3 K tokens in all; on disk already: 1",
        "1/6 retnet-300k-lr0.004-seed0: 16 steps at rate 0.004",
        "retnet-300k-lr0.004-seed0: step 8, training 2.5000, validation 2.7500 nats/token",
        "retnet-300k-lr0.004-seed0: the snapshot x is damaged",
        "retnet-300k-lr0.004-seed0: done, validation 2.3457 nats/token",
        "retnet at size 300K: best learning rate 0.004. WARNING: it is the highest of the grid; a better one may lie "
        "beyond. Widen learning_rates.",
        "transformer-300k-seed0: FAILED: step 3: the training loss is nan.",
        "finished: 1 done, 1 failed",
    ]


def test_a_log_shows_a_long_run_at_intervals(
    training_plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.0)
    events = [Packing("train", 1200, 3 * 2**20), step(7), step(8, left=None)]
    assert show(view_training(training_plan), io.StringIO(), events).splitlines() == [
        "packing the split train: 1,200 documents, 3.00 MiB",
        "retnet-300k-lr0.004-seed0: step 7 of 16, loss 2.6000, 1.23 ktokens/s, about 1 min 15 s left",
        "retnet-300k-lr0.004-seed0: step 8 of 16, loss 2.6000, 1.23 ktokens/s",
    ]


def test_a_terminal_shows_a_bar_of_training_and_keeps_warnings(
    training_plan: TrainingPlan, terminal: Terminal
) -> None:
    text = show(view_training(training_plan), terminal, EVENTS)
    assert "about 1 min 15 s left" in text
    assert "2/16" in text
    assert text.count("process 7") == text.count("process 8") == 1
    for kept in ("the snapshot x is damaged", "FAILED: step 3", "WARNING: it is the highest", "1 failed"):
        assert text.count(kept) == 1
    assert "step 8, training" not in text  # the bar has moved on: a log keeps it


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (WaitingForRun(Path("out/retnet")), "waiting: another command trains out/retnet"),
        (TrainingPlanned(6, 0), "runs: 6, 12.3 K tokens in all"),
        (TrainingPlanned(6, 6), "nothing to train: all 6 runs are on disk already"),
        (
            RunStarted(FINAL, 5, 6, 7),
            "5/6 transformer-300k-seed0: 16 steps at rate best of grid, from step 7 on",
        ),
        (FOUND, "retnet-300k-lr0.004-seed0: done (on disk already), validation 2.3457 nats/token"),
        (Tuning("retnet", "1m", 1e-2, None), "retnet at size 1M: best learning rate 0.01"),
        (
            TrainingResult((GOOD,), (), interrupted=True),
            "interrupted; the same command continues from here: 1 done",
        ),
    ],
)
def test_other_events_of_training(training_plan: TrainingPlan, event: TrainingEvent, line: str) -> None:
    assert view_training(training_plan)(event).text == line
