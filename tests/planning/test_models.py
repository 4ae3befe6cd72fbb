"""Models under test whose weights are on the disk."""

from pathlib import Path

import pytest
import torch

from retbench.config.experiment_files import load_experiment
from retbench.errors import CheckpointError, ConfigError
from retbench.models.build import build_model
from retbench.planning.models import find_models
from tests.checkpoints.hf_folder import write_hf_folder
from tests.checkpoints.stored import (
    LLAMA,
    save_model,
    write_fla_gla,
    write_fla_retnet,
    write_fla_transformer,
)
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


def write_public(folder: Path) -> list[str]:
    """Small checkpoints in the formats of the public ones of the experiment `checkpoints`; its overrides."""
    write_fla_retnet(folder / "retnet")
    write_fla_transformer(folder / "transformer", LLAMA)
    write_fla_gla(folder / "gla")
    write_hf_folder(folder / "mamba", model_type="mamba", max_position_embeddings=None)
    names = ("retnet", "transformer", "gla", "mamba")
    return ["models.mamba.architecture=hf", *(f"models.{name}.checkpoint={folder / name}" for name in names)]


def test_the_public_models_of_the_same_data_are_read_in_their_own_formats(tmp_path: Path) -> None:
    experiment = load_experiment("checkpoints", write_public(tmp_path), profile="paper")
    found = {one.model_name: one for one in find_models(experiment, "paper", tmp_path / "results")}
    formats = {name: one.weights.info.format for name, one in found.items() if one.weights}
    assert formats == {"retnet": "fla", "transformer": "fla", "gla": "fla_gla", "mamba": "hf"}
    assert {one.size for one in found.values()} == {"checkpoint"}, (
        "they are small, and the file's size is 1.3B"
    )
    assert found["gla"].model.mixer.title == "GLA"
    assert found["mamba"].model.whole_model is not None, "it is not matched"


@pytest.mark.parametrize(("named", "found"), [("25k", "25k"), ("fla-1.3b", "checkpoint")])
def test_a_checkpoint_has_the_size_that_its_entry_names_only_if_it_is_of_that_size(
    tmp_path: Path, named: str, found: str
) -> None:
    write_fla_transformer(tmp_path / "saved", LLAMA)
    overrides = [f"models.transformer.checkpoint={tmp_path / 'saved'}", f"models.transformer.size={named}"]
    experiment = load_experiment("latency", [*overrides, "models=[transformer]"], profile="smoke")
    (model,) = find_models(experiment, "smoke", tmp_path / "results")
    assert model.size == found


def test_a_public_model_that_nothing_here_has_is_refused(tmp_path: Path) -> None:
    overrides = write_public(tmp_path)
    write_hf_folder(tmp_path / "gla", model_type="delta_net", architectures=["DeltaNetForCausalLM"])
    experiment = load_experiment("checkpoints", overrides, profile="paper")
    with pytest.raises(CheckpointError) as refused:
        find_models(experiment, "paper", tmp_path / "results")
    message = str(refused.value)
    assert f"{tmp_path / 'gla' / 'config.json'}: a model of unknown format" in message
    assert "delta_net" in message
    assert 'architecture = "hf" in its table' in message
