import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from retbench.planning.plan import Plan
from retbench.running import resume
from retbench.running.scratch import FreshRuns


def test_the_end_of_fresh_runs_on_one_node_leaves_those_of_another(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of()  # of costs, whose records count on their own node only
    FreshRuns(tmp_path, plan).add("one")
    monkeypatch.setattr(resume, "node_id", lambda: "another-node")
    other = FreshRuns(tmp_path, plan)
    other.add("two")
    assert other.read() == {"two"}
    other.end()
    monkeypatch.undo()
    assert FreshRuns(tmp_path, plan).read() == {"one"}


def test_a_command_that_noted_no_run_removes_nothing(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))  # on a read-only disk, of any name

    monkeypatch.setattr(Path, "unlink", refuse)
    FreshRuns(tmp_path, plan_of()).end()
