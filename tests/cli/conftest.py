"""A command run in this process, and the plan of a training that is not carried out."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retbench.cli import app
from retbench.training.plan import TrainingPlan
from retbench.training.planning import make_training_plan
from tests.training.conftest import TINY_TRAINING

SETTINGS = (
    'training.sizes=["300k"]',
    "training.batch_size=4",
    "training.seq_len=32",
    "training.num_tokens=2048",
    "training.learning_rates=[1e-3, 4e-3]",
)
"""16 steps of 128 tokens."""


def invoke(*words: str, **options: Any) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command run in this process; an error other than its exit is raised."""
    result = CliRunner().invoke(app, words, **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def training_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingPlan:
    """A grid of two rates for each of two models, and a final run of each."""
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("Some text to learn from. " * 40, encoding="utf-8")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_TRAINING.format(corpus=tmp_path / "text.txt"), encoding="utf-8")
    return make_training_plan(str(path), "cpu", "cpu", SETTINGS)
