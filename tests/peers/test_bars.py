"""The command: what it lists, what it refuses, and what it leaves on stdout."""

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import bars

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "benchmarks.peers", *arguments]
    return subprocess.run(call, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)


def test_a_bar_prints_json_lines_only_and_ends_with_0() -> None:
    done = _run("--only", "equal-loop", "--threads", "1")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["bar"].split(":")[0] for line in lines] == ["equal-loop", "equal-loop"]
    assert all(line["holds"] for line in lines)


def test_the_list_names_every_bar_without_importing_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(bars.BARS)
    code = "import sys, benchmarks.peers.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_unknown_bar_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "decode-torchscal"]) == 2
    assert "Did you mean 'decode-torchscale'?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rounds", "1"], ["--threads", "0"], ["--rounds", "many"]])
def test_impossible_numbers_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2


def test_a_missing_peer_ends_with_3_and_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bars.PACKAGES, "no_such_peer", "no-such-peer")
    bar = bars.Bar("", "equality", "loop_equality", peers=("no_such_peer",), timed=False)
    monkeypatch.setitem(bars.BARS, "equal-loop", bar)
    assert command.main(["--only", "equal-loop"]) == 3
    shown = capsys.readouterr()
    assert "no-such-peer" in shown.err
    assert "pip install 'retbench[peers]'" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("name", bars.BARS)
def test_every_bar_calls_a_function_that_takes_its_arguments(name: str) -> None:
    bar = bars.BARS[name]
    function = getattr(importlib.import_module(f"benchmarks.peers.{bar.module}"), bar.function)
    inspect.signature(function).bind(*([2] if bar.timed else []), **bar.arguments)
    assert set(bar.peers) <= set(bars.PACKAGES)
