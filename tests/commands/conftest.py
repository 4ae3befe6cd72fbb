"""A plan without a disk or a device: the small pair, its tokenizer and corpus by name."""

from pathlib import Path

import pytest

from retbench.commands.train import Request, make_training_plan
from retbench.training.plan import TrainingPlan

EXPERIMENT = """\
title = "Tiny"
source = "none; made for tests"
expect = "It runs."

[models.retnet]
architecture = "retnet"

[models.transformer]
architecture = "transformer"

[profiles.smoke]
size = "300k"
threads = 1
[profiles.smoke.training]
corpus = "{corpus}"
sizes = ["300k"]
seq_len = 64
batch_size = 2
num_tokens = 2048
learning_rates = [1e-3, 4e-3]
[profiles.smoke.workloads.decode]
context_len = [64]
"""
"""16 steps of 128 tokens."""


@pytest.fixture
def training_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingPlan:
    """A grid of two rates for each of two models, and a final run of each."""
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("Some text to learn from. " * 40, encoding="utf-8")
    path = tmp_path / "tiny.toml"
    path.write_text(EXPERIMENT.format(corpus=tmp_path / "text.txt"), encoding="utf-8")
    return make_training_plan(Request(str(path), "smoke", "cpu", (), None))
