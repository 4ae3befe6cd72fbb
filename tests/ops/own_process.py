"""Tests of Triton's kernels in a process of their own, so that Triton stays out of the process of other tests."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run_in_own_process(path, part="", **environment):
    """Run a file's tests, or those of an expression of marks, with pytest; skip where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; it is part of the extra `dev` on Linux x86_64")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", part, path]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
