"""Models under test whose weights are on the disk."""

from pathlib import Path

import pytest
import torch

from retbench.config.experiment import load_experiment
from retbench.errors import ConfigError
from retbench.models.build import build_model
from retbench.planning.models import find_models
from tests.checkpoints.stored import save_model
from tests.models.cases import config_of


@pytest.mark.parametrize(("stored", "is_refused"), [("llama", True), ("llama-concat", False)])
def test_a_cache_that_the_stored_model_does_not_have_is_refused(
    tiny_experiment: Path, tmp_path: Path, stored: str, is_refused: bool
) -> None:
    model = build_model(config_of(stored), dtype=torch.float32, device="cpu", seed=0, backend="sdpa")
    save_model(tmp_path / "saved", model)
    overrides = [f"models.transformer.checkpoint={tmp_path / 'saved'}", "models.transformer.cache=concat"]
    experiment = load_experiment(str(tiny_experiment), [*overrides, "allow_mismatch=true"], profile="smoke")
    if is_refused:
        with pytest.raises(
            ConfigError, match=r"'transformer' has cache = \"concat\", and .*saved holds a model with"
        ):
            find_models(experiment, "smoke", tmp_path / "results")
    else:
        found = {one.model_name: one.model for one in find_models(experiment, "smoke", tmp_path / "results")}
        assert found["transformer"].concatenates
