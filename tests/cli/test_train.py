"""Output of `retbench train` on stdout: finished or planned runs."""

import json
from pathlib import Path

import pytest

from retbench.cli.train import print_plan, print_result
from retbench.training.events import RunResult, TrainingResult, Tuning
from retbench.training.plan import TrainingPlan


@pytest.fixture
def result(training_plan: TrainingPlan) -> TrainingResult:
    """A run of the grid that went well, one that failed, and a final run that had no rate."""
    good, bad = training_plan.tuning_runs[:2]
    final = training_plan.final_runs[0]
    return TrainingResult(
        (
            RunResult(good, "ok", Path("a"), 2048, validation_loss=2.34567, tokens_per_s=1234.0),
            RunResult(bad, "failed", Path("b"), 384, error="step 3: the training loss is nan."),
            RunResult(final, "failed", Path("c"), 0, error="no learning rate"),
        ),
        (Tuning("retnet", "300k", 1e-3, "lowest"),),
        interrupted=True,
    )


def rows(text: str) -> list[list[str]]:
    """The cells of a printed table, which is Markdown where stdout is no terminal."""
    lines = [line for line in text.splitlines() if not line.startswith("| :--")]
    return [[cell.strip() for cell in line.split("|") if cell.strip()] for line in lines]


def test_people_get_a_table_of_runs(
    training_plan: TrainingPlan, result: TrainingResult, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(training_plan, result, "md")
    header, *lines = rows(capsys.readouterr().out)
    assert header[-3:] == ["validation nats/token", "tokens/s", "folder"]
    assert lines == [
        ["retnet", "300K", "tuning", "0.001", "0", "2.05 K", "2.3457", "1.23 ktokens/s", "a"],
        ["transformer", "300K", "tuning", "0.001", "0", "384", "failed", "b"],
        ["retnet", "300K", "final", "best of grid", "0", "0", "failed", "c"],
    ]


def test_scripts_get_one_object_in_base_units(
    training_plan: TrainingPlan, result: TrainingResult, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(training_plan, result, "json")
    answer = json.loads(capsys.readouterr().out)
    assert (answer["experiment"], answer["profile"], answer["interrupted"]) == ("tiny", "cpu", True)
    assert answer["tuning"] == [
        {"model": "retnet", "size": "300k", "learning_rate": 1e-3, "edge_of_grid": "lowest"}
    ]
    good, bad, final = answer["runs"]
    assert good == {
        "model": "retnet",
        "size": "300k",
        "role": "tuning",
        "learning_rate": 1e-3,
        "seed": 0,
        "num_tokens": 2048,
        "status": "ok",
        "error": None,
        "validation_loss_nats": 2.34567,
        "validation_acc": None,
        "tokens_per_s": 1234.0,
        "folder": "a",
        "trained_before": False,
    }
    assert (bad["status"], bad["num_tokens"], bad["validation_loss_nats"]) == ("failed", 384, None)
    assert (final["learning_rate"], final["error"]) == (None, "no learning rate")


def test_a_plan_shows_each_run_and_the_whole(
    training_plan: TrainingPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    print_plan(training_plan, [10.0] * 4 + [40.0] * 2, "md")
    header, *lines = rows(capsys.readouterr().out)
    assert header[-1] == "time"
    assert len(lines) == 7
    assert lines[0] == ["retnet", "300K", "tuning", "0.001", "0", "2.05 K", "10 s"]
    assert lines[-2][3] == "best of grid"
    assert lines[-1] == ["all", "12.3 K", "2 min 00 s"]


def test_a_plan_in_json_has_the_seconds_and_the_command(
    training_plan: TrainingPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    print_plan(training_plan, [10.0] * 4 + [1.5, 2.5], "json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["command"] == training_plan.command
    assert [(run["model"], run["num_tokens"], run["seconds"]) for run in answer["runs"][4:]] == [
        ("retnet", 2048, 1.5),
        ("transformer", 2048, 2.5),
    ]
