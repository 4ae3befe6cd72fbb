"""A reader that goes, or a disk that is full, never ends a run and never changes its exit code: real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from regress.test_compare import HEAD, slower, write
from report.synthetic_records import CPU

RETBENCH = [sys.executable, "-m", "retbench"]


def without_reader(*words: object, stream: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the program with a stream that nobody reads from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    try:
        return subprocess.run([*RETBENCH, *map(str, words)], cwd=cwd, text=True, check=False, **streams)
    finally:
        os.close(writer)


@pytest.mark.parametrize("stream", ["stdout", pytest.param("stderr", marks=pytest.mark.slow)])
def test_the_exit_code_is_that_of_the_result(tmp_path: Path, stream: str) -> None:
    base, head = (
        write(tmp_path / "base.jsonl", CPU),
        write(tmp_path / "head.jsonl", HEAD, slower(1.5, "retnet")),
    )
    done = without_reader("compare", base, head, "--accept-confounders", stream=stream, cwd=tmp_path)
    assert done.returncode == 1
    assert not done.stderr
    assert "regressed" in (done.stdout or "regressed")
    missing = without_reader("compare", base, tmp_path / "no-such", stream=stream, cwd=tmp_path)
    assert missing.returncode == 2


@pytest.mark.parametrize(
    ("words", "stream", "code"),
    [(("table", "--help"), "stdout", 0), (("list",), "stdout", 0), (("rnu",), "stderr", 2)],
)
def test_what_nobody_reads_is_no_error(
    tmp_path: Path, words: tuple[str, ...], stream: str, code: int
) -> None:
    done = without_reader(*words, stream=stream, cwd=tmp_path)
    assert done.returncode == code
    assert "Traceback" not in (done.stderr or "")


def test_characters_that_an_encoding_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("ascii", "latin-1"):
        monkeypatch.setenv("PYTHONIOENCODING", encoding)
        done = subprocess.run([*RETBENCH, "list", "--models"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert r"\u2013" in done.stdout
