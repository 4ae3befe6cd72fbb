"""The composite action and the example workflow: their files are complete, and the script follows its inputs."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from retbench.cli import load_command
from retbench.regress.render import write_report
from retbench.regress.report import CheckReport

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "check-workflow.yml").read_text(encoding="utf-8"))
STEP, INSTALL = (
    next(step for step in ACTION["runs"]["steps"] if step.get("id") == name) for name in ("check", "install")
)

STUB = """\
#!/usr/bin/env bash
printf '%s\\n' "$@" '--end--' >> "$CALLS"
echo "summary of $1"
if [[ "$*" == *--against* ]]; then exit "$TIMED"; else exit "$EXACT"; fi
"""


def run_step(
    folder: Path, *, exact: int = 0, timed: int = 0, **inputs: str
) -> tuple[int, list[list[str]], str]:
    """Run the step; return its exit code, the arguments of every call of retbench, and the summary."""
    stub = folder / "bin" / "retbench"
    stub.parent.mkdir()
    stub.write_text(STUB, encoding="utf-8")
    stub.chmod(0o755)
    given = {name: str(one["default"]) for name, one in ACTION["inputs"].items()} | inputs
    files = {name: folder / name for name in ("CALLS", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    environment = {
        **os.environ,
        **{name: str(path) for name, path in files.items()},
        **{name: given[text.split("inputs.")[1].rstrip(" }")] for name, text in STEP["env"].items()},
        "PATH": f"{stub.parent}:{os.environ['PATH']}",
        "EXACT": str(exact),
        "TIMED": str(timed),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEP["run"]]
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    calls = [
        call.splitlines() for call in files["CALLS"].read_text(encoding="utf-8").split("--end--\n") if call
    ]
    assert files["GITHUB_OUTPUT"].read_text(encoding="utf-8") == f"report={folder}/reports/check\n"
    return done.returncode, calls, files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")


def test_without_a_base_only_the_machine_independent_check_runs(tmp_path: Path) -> None:
    code, calls, summary = run_step(tmp_path)
    assert code == 0
    assert calls == [["check", "--out", f"{tmp_path}/reports/check", "--format", "md"]]
    assert summary == "summary of check\n"


def test_a_base_is_passed_on_whole_whatever_it_is_called(tmp_path: Path) -> None:
    name = 'a branch; echo $(hostname) "quoted"'
    code, calls, summary = run_step(tmp_path, against=name, budget="5", strict="true")
    assert code == 0
    assert [call.count("--strict") for call in calls] == [1, 1]
    assert calls[1][calls[1].index("--against") + 1] == name
    assert calls[1][calls[1].index("--budget") + 1] == "5"
    assert summary.count("summary") == 2


@pytest.mark.parametrize(("exact", "timed", "expected"), [(1, 0, 1), (0, 1, 1), (3, 1, 3), (0, 4, 4)])
def test_either_check_fails_the_job_and_both_are_run(
    tmp_path: Path, exact: int, timed: int, expected: int
) -> None:
    code, calls, _ = run_step(tmp_path, exact=exact, timed=timed, against="main")
    assert (code, len(calls)) == (expected, 2)


def test_every_call_is_one_that_retbench_takes(tmp_path: Path) -> None:
    _, calls, _ = run_step(tmp_path, against="main", strict="true")
    for name, *arguments in calls:
        load_command(name).make_context(name, list(arguments))


def test_a_device_and_an_index_are_passed_on_where_they_are_given(tmp_path: Path) -> None:
    _, calls, _ = run_step(tmp_path, against="main", device="cuda")
    assert calls[1][calls[1].index("--device") + 1] == "cuda"
    installing = [
        step["env"] for step in ACTION["runs"]["steps"] if "PIP_EXTRA_INDEX_URL" in step.get("env", {})
    ]
    assert [env["PIP_EXTRA_INDEX_URL"] for env in installing] == ["${{ inputs.torch-index }}"] * 2


@pytest.mark.parametrize("expected", [0, 1, 4])
def test_two_commands_are_compared_in_place_of_the_checkout(tmp_path: Path, expected: int) -> None:
    first, second = "make -C 'the base' bench", "--odd $(hostname)"
    code, calls, summary = run_step(tmp_path, exact=expected, first=first, second=second, budget="5")
    assert code == expected
    ((name, *arguments),) = calls
    assert (name, arguments[-2:]) == ("compare-commands", [first, second])
    assert load_command(name).make_context(name, list(arguments)).params["budget"] == 5
    assert summary == "summary of compare-commands\n"


@pytest.mark.parametrize(("commands", "source"), [("", "."), ("a commandanother", "/the/action")])
def test_retbench_is_installed_from_the_checkout_or_from_the_action(
    tmp_path: Path, commands: str, source: str
) -> None:
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    stub.chmod(0o755)
    environment = {
        "ACTION": "/the/action",
        "COMMANDS": commands,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", INSTALL["run"]], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"-m pip install --quiet --editable {source}\n"


def test_the_workflow_gives_inputs_that_the_action_has() -> None:
    steps = WORKFLOW["jobs"]["check"]["steps"]
    (used,) = [step for step in steps if step.get("uses") == "./"]
    assert used["with"].keys() <= ACTION["inputs"].keys()
    assert steps[0]["with"]["fetch-depth"] == 0
    assert "steps.check.outputs.report" in steps[-1]["with"]["path"]
    assert ACTION["outputs"].keys() == {"report"}


def test_the_output_names_every_file_of_both_kinds_of_reports(tmp_path: Path) -> None:
    for folder, quantities in (("times", False), ("exact", True)):
        report = CheckReport(first="a", second="b", method="none", quantities=quantities)
        write_report(report, tmp_path / folder, strict=False)
    written = {path.name for path in tmp_path.glob("*/*")}
    described = re.findall(r"[\w-]+\.(?:md|json|xml|svg|png)", ACTION["outputs"]["report"]["description"])
    assert written <= set(described)
    assert set(described) - written == {"ratios.svg", "ratios.png"}, "those of a report without a ratio"
