"""A small corpus of real text, and plans that train two small models on it in a second."""

import csv
import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path

import pytest

from retbench.data.packing import pack
from retbench.training.engine import TrainingText
from retbench.training.events import CurvePoint
from retbench.training.plan import TrainingPlan
from retbench.training.planning import make_training_plan

TINY_TRAINING = """\
title = "Tiny"
source = "none; made for tests"
expect = "It runs."

[models.retnet]
architecture = "retnet"
chunk_size = 32

[models.transformer]
architecture = "transformer"

[profiles.cpu]
size = "300k"
threads = 1
[profiles.cpu.training]
corpus = "{corpus}"
sizes = ["300k"]
seq_len = 48
batch_size = 2
num_tokens = 1152
learning_rates = [0.003]
validation_tokens = 192
validate_every = 4
checkpoint_every = 3
[profiles.cpu.workloads.decode]
context_len = [64]
"""
"""12 steps of 96 tokens."""

PlanOf = Callable[..., TrainingPlan]


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's language reference, one file per topic."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, text in list(pydoc_data.topics.topics.items())[:40]:
        (folder / f"{name.replace('/', '-')}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def experiment(tmp_path: Path, corpus_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment that trains each model for 12 steps."""
    monkeypatch.setenv("RETBENCH_CACHE", str(corpus_dir.parent / "cache"))
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_TRAINING.format(corpus=corpus_dir), encoding="utf-8")
    return path


@pytest.fixture
def plan_of(experiment: Path) -> PlanOf:
    """Makes the plan of the small experiment, with overrides."""

    def make(*overrides: str) -> TrainingPlan:
        return make_training_plan(str(experiment), "cpu", "cpu", overrides)

    return make


@pytest.fixture
def plan(plan_of: PlanOf) -> TrainingPlan:
    return plan_of()


def text_of(plan: TrainingPlan) -> TrainingText:
    """The tokens of a plan's corpus."""
    assert plan.text is not None
    corpus, tokenizer = plan.text.corpus, plan.text.tokenizer
    return TrainingText(pack(corpus, "train", tokenizer), pack(corpus, "validation", tokenizer))


def read_curve(path: Path) -> list[CurvePoint]:
    """The points in the file of a learning curve, as any program would read them."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            CurvePoint(
                **{
                    name: int(value) if name in ("step", "num_tokens") else float(value)
                    for name, value in row.items()
                }
            )
            for row in csv.DictReader(file)
        ]
