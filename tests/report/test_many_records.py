"""A results folder of years: its table, claims and report are made in seconds and in bounded memory."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from report.synthetic_records import write_many

NUM_RECORDS = 50_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_many(tmp_path_factory.mktemp("many"), NUM_RECORDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "limit_s"), [(["table", "latency"], 10), (["claims"], 10), (["report", "--out", "out"], 20)]
)
def test_a_large_folder_is_read_in_seconds(
    folder: Path, tmp_path: Path, command: list[str], limit_s: float
) -> None:
    started = time.perf_counter()
    call = [sys.executable, "-m", "retbench", *command, "--results", str(folder)]
    with subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    elapsed_s, peak_mb = time.perf_counter() - started, usage.ru_maxrss / 1000
    assert process.returncode == 0
    assert peak_mb < 700
    assert elapsed_s < 2 * limit_s, "twice what it takes on two idle cores"
