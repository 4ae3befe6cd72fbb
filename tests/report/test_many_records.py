"""A results folder of years: its table, claims and report are made in seconds and in bounded memory."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from report.synthetic_records import write_many

NUM_RECORDS = 50_000

# The peak memory of a process begins at that of its parent, so a small one starts the command.
SMALL_PARENT = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


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
    call = [sys.executable, "-c", SMALL_PARENT, sys.executable, "-m", "retbench", *command]
    done = subprocess.run(
        [*call, "--results", str(folder)], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
    )
    elapsed_s, (*printed, peak_kib) = time.perf_counter() - started, done.stdout.splitlines()
    assert printed
    peak_mb = int(peak_kib) * 1024 / 1e6
    assert peak_mb < 700
    assert elapsed_s < 2 * limit_s, "twice what it takes on two idle cores"
