import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from retbench.config.experiment import load_experiment
from retbench.planning.cells import Cell, Settings, expand
from retbench.records.record import Gate, GateCheck
from retbench.run.events import (
    CellAdvanced,
    CellDone,
    CellStarted,
    Event,
    Finished,
    GateChecked,
    Planned,
    Preparing,
    Progress,
    RoundStarted,
    RunResult,
    Streaming,
    WaitingForLock,
    WorkerDied,
)
from retbench.run.progress import BarDisplay, describe, show_progress

HALF = Progress(done=2, total=4, seconds_left=75.0)
DONE = Progress(done=4, total=4, seconds_left=0.0)
CHECK = GateCheck(name="a = b", length=17, error=1e-6, limit=1e-3)
GREEN = Gate(passed=True, dtype="float32", checks=(CHECK, CHECK))
RED = Gate(passed=False, dtype="float32", checks=(GateCheck(name="a = b", length=17, error=0.5, limit=1e-3),))


@pytest.fixture
def cell(tiny_experiment: Path) -> Cell:
    settings = Settings(
        dtype="float32", device="cpu", threads=2, seed=0, warmup_s=0, min_steps=2, cuda_graph=False
    )
    overrides = ["workloads.decode.context_len=[32768]"]
    return expand(load_experiment(str(tiny_experiment), overrides, profile="smoke"), "smoke", settings)[0]


def events_of_a_run(cell: Cell) -> list[Event]:
    return [
        WaitingForLock("process 7, `retbench run memory`, since 2026-01-02 03:04:05 UTC"),
        Planned(HALF, skipped=2, run_id="20260102T030405Z-abcdef"),
        Preparing("retnet", 11, HALF),
        GateChecked("retnet", GREEN, HALF),
        Streaming("retnet", 2048, 32768, HALF),
        RoundStarted(0, 3, ("retnet", "transformer"), HALF),
        CellStarted(cell, 0, 12, HALF),
        CellAdvanced(cell, 0, 1_230_000, HALF),
        CellDone(cell, 0, "ok", None, HALF),
        CellDone(cell, 1, "oom", "out of memory: 3 GiB", HALF),
        WorkerDied("retnet", 12, "the worker was ended by SIGSEGV", HALF),
        Finished(RunResult(counts={"oom": 1, "ok": 3}, path=Path("results/x.jsonl")), DONE),
    ]


def test_a_log_has_one_plain_line_for_each_thing_that_ended(cell: Cell) -> None:
    stream = io.StringIO()
    with show_progress(stream) as observer:
        for event in events_of_a_run(cell):
            observer.notify(event)
    assert stream.getvalue().splitlines() == [
        "waiting: another run is timing on this machine (process 7, `retbench run memory`, "
        "since 2026-01-02 03:04:05 UTC)",
        "run 20260102T030405Z-abcdef: 2 measurements to take; 2 are on disk already",
        "retnet: checking that its forms agree",
        "retnet: equal in 2 checks at float32",
        "round 1 of 3: retnet, transformer",
        "2/4 round 1: retnet decode at 32K: ok, about 1 min 15 s left",
        "2/4 round 2: retnet decode at 32K: oom: out of memory: 3 GiB, about 1 min 15 s left",
        "retnet: worker 12 ended: the worker was ended by SIGSEGV",
        "finished: 3 ok, 1 oom in results/x.jsonl",
    ]


def test_text_is_shown_as_it_is(cell: Cell) -> None:
    """No markup of rich: a message may hold brackets, and a path may be longer than the line."""
    stream = io.StringIO()
    message = "[bold] :smile: " + "x" * 300
    with show_progress(stream) as observer:
        observer.notify(CellDone(cell, 0, "failed", message, DONE))
    assert stream.getvalue() == f"4/4 round 1: retnet decode at 32K: failed: {message}\n"


def test_a_red_gate_says_what_differs() -> None:
    assert describe(GateChecked("retnet", RED, HALF)) == (
        "retnet: NOT EQUAL at float32, so none of its cells is measured: "
        "a = b at 17 tokens has error 0.5, limit 0.001"
    )


def test_an_interrupted_run_says_how_to_go_on() -> None:
    event = Finished(RunResult(counts={"ok": 1}, interrupted=True, path=Path("r.jsonl")), HALF)
    assert describe(event) == "interrupted; the same command goes on from here: 1 ok in r.jsonl"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (RunResult(interrupted=True), "nothing measured yet"),
        (RunResult(interrupted=True, skipped={"ok": 2}), "nothing new measured yet"),
    ],
)
def test_a_run_that_was_interrupted_at_once_does_not_say_that_all_is_measured(
    result: RunResult, words: str
) -> None:
    assert describe(Finished(result, HALF)) == f"interrupted; the same command goes on from here: {words}"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_that_can_draw_no_bar_gets_lines(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with show_progress(stream) as observer:
        observer.notify(CellDone(cell, 0, "ok", None, DONE))
    assert stream.getvalue() == "4/4 round 1: retnet decode at 32K: ok\n"


def test_a_terminal_shows_a_bar_and_keeps_what_went_wrong(cell: Cell) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    before = threading.active_count()
    with BarDisplay(console) as display:
        for event in events_of_a_run(cell):
            display.notify(event)
            assert threading.active_count() == before, "a thread would disturb what is being timed"
    text = stream.getvalue()
    assert "round 1: retnet decode at 32K" in text
    assert "round 1: retnet decode at 32K: 1.23 M tokens read" in text
    assert "2/4" in text
    assert "about 1 min 15 s left" in text
    kept = [line for line in text.splitlines() if "oom: out of memory" in line or "SIGSEGV" in line]
    assert len(kept) == 2
    assert "ok, about" not in text, "a cell that went well only moves the bar"
