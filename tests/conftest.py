"""What tests share: hypothesis without deadlines (test machines are noisy) and a small experiment file."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("retbench", deadline=None, max_examples=50)
settings.load_profile("retbench")

TINY_EXPERIMENT = """\
title = "Tiny"
source = "none; made for tests"
expect = "It runs."

[models.retnet]
architecture = "retnet"

[models.transformer]
architecture = "transformer"

[profiles.smoke]
size = "1m"
rounds = 1
warmup_s = 0.0
min_steps = 2
[profiles.smoke.workloads.decode]
context_len = [64, 128]
"""


@pytest.fixture
def tiny_experiment(tmp_path: Path) -> Path:
    """An experiment of four cells that takes seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_EXPERIMENT, encoding="utf-8")
    return path
