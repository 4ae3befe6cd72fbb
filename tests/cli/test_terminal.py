"""The output of commands on a real terminal (a pseudo-terminal of the system), and in a pipe."""

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from report.synthetic_records import CPU, Maker, write_results
from retbench.cli import app


def on_terminal(*words: str, width: int) -> list[str]:
    """Return the lines that a command writes to a terminal."""
    reader, writer = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(width)}
    process = subprocess.Popen(
        [sys.executable, "-m", "retbench", *words], stdout=writer, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(writer)
    parts = []
    while select.select([reader], [], [], 120)[0]:
        try:
            part = os.read(reader, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(reader)
    assert process.wait(timeout=60) == 0
    return b"".join(parts).decode().splitlines()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of records of latency and memory."""
    records = [*Maker(CPU).latency(), *Maker(CPU).memory()]
    return write_results(tmp_path_factory.mktemp("terminal") / "results", records)


@pytest.mark.parametrize("width", [60, 120])
def test_a_table_fits_a_terminal(results: Path, width: int) -> None:
    lines = on_terminal("table", "latency", "--results", str(results), width=width)
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("Decode latency: batch 1")
    assert not any(line.startswith("|") or "…" in line for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "time per token" in text
    assert "tokens/s" in text


def test_a_table_is_markdown_in_a_pipe_and_where_it_is_asked_for(results: Path) -> None:
    piped = CliRunner().invoke(app, ["table", "latency", "--results", str(results)]).stdout
    assert piped.startswith("### decode\n\n| model | batch |")
    assert (
        on_terminal("table", "latency", "--results", str(results), "--format", "md", width=80)
        == piped.splitlines()
    )


def test_list_is_aligned_on_a_terminal_and_markdown_in_a_pipe() -> None:
    lines = on_terminal("list", "--sizes", width=60)
    assert max(map(len, lines)) <= 60
    assert "25M" in [line.split(" ")[0] for line in lines]
    assert CliRunner().invoke(app, ["list", "--sizes"]).stdout.startswith("| size | width |")


@pytest.mark.usefixtures("_without_pictures")
def test_report_ends_with_the_answer_and_the_place_of_the_page(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "reports"
    result = CliRunner().invoke(app, ["report", "--results", str(results), "--out", str(out)])
    lines = result.stdout.splitlines()
    assert len(lines) <= 12
    assert [line.partition(":")[0] for line in lines[2:6]] == ["Decode", "Memory", "Prefill", "Quality"]
    assert lines[-1] == f"Open {out / 'index.html'}"
    assert (out / "index.html").is_file()


def test_env_warns_on_a_busy_machine_and_says_each_reason_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retbench.measure.machine.busy_ratio", lambda: 0.45)
    result = CliRunner().invoke(app, ["env", "--device", "cpu"])
    assert result.exit_code == 0
    assert "other processes use 45.0 % of the processors" in result.stderr
    reasons = [line.split(": ", 2)[2] for line in result.stdout.splitlines() if line.startswith("not usable")]
    assert len(reasons) == len({*reasons}) > 1


def test_env_measures_ceilings_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retbench.measure.machine.busy_ratio", lambda: 0.0)
    result = CliRunner().invoke(app, ["env", "--device", "cpu", "--json"])
    assert json.loads(result.stdout)["ceilings"] is None
    assert result.stderr == ""
