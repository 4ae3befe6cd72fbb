"""Weights that are not what they should be: each is refused by a message that names file, tensor and what is wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import CheckpointError, ConfigError
from tests.checkpoints.stored import FLA, change_config, change_weights, load, write_fla_retnet

Q_PROJ = "model.layers.1.attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path):
    write_fla_retnet(tmp_path)
    return tmp_path


def refusal(folder, **options):
    with pytest.raises(CheckpointError) as caught:
        load(folder, **options)
    return str(caught.value)


def test_a_missing_tensor_is_named(folder):
    change_weights(folder, **{Q_PROJ: None})
    message = refusal(folder)
    assert message.startswith(str(folder))
    assert "of the 25 tensors of a retnet (fla) with 2 layers" in message
    assert f"{Q_PROJ} is missing" in message


def test_many_missing_tensors_are_counted(folder):
    change_config(folder, num_hidden_layers=3)
    assert "model.layers.2.attn.k_proj.weight" in refusal(folder)
    assert "and 8 more are missing" in refusal(folder)


def test_an_unexpected_tensor_is_named(folder):
    change_weights(folder, **{"model.layers.0.attn.q_proj.bias": torch.zeros(48)})
    message = refusal(folder)
    assert message.startswith(str(folder / "model.safetensors"))
    assert "model.layers.0.attn.q_proj.bias is not part of a retnet" in message


def test_a_tensor_of_another_shape_is_named(folder):
    change_weights(folder, **{Q_PROJ: torch.zeros(48, 40)})
    message = refusal(folder)
    assert message.startswith(
        f"{folder / 'model.safetensors'}: tensor '{Q_PROJ}' has shape (48, 40), expected (48, 48)"
    )


def test_a_vocabulary_of_another_size_is_named(folder):
    change_config(folder, vocab_size=96)
    message = refusal(folder)
    assert "'model.embeddings.weight' has shape (97, 48), expected (96, 48)" in message
    assert "Weights and configuration do not belong together" in message


def test_a_quantised_tensor_is_refused(folder):
    change_weights(folder, **{Q_PROJ: torch.zeros(48, 48, dtype=torch.int8)})
    assert f"tensor '{Q_PROJ}' has dtype I8, expected one of float64, float32" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_refused(folder, value):
    weight = load_file(folder / "model.safetensors")[Q_PROJ]
    weight[3, 4:6] = value
    change_weights(folder, **{Q_PROJ: weight})
    assert refusal(folder) == (
        f"{folder / 'model.safetensors'}: tensor '{Q_PROJ}' holds 2 values that are NaN or infinite."
    )


def test_values_that_the_asked_dtype_cannot_hold_are_refused(folder):
    weight = load_file(folder / "model.safetensors")[Q_PROJ]
    weight[0, 0] = 1e6
    change_weights(folder, **{Q_PROJ: weight})
    load(folder)
    assert "holds values up to 1e+06, which torch.float16 cannot hold" in refusal(folder, dtype=torch.float16)


@pytest.mark.parametrize("keep", [0, 5, 500, -1])
def test_a_truncated_file_is_named(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is not a complete safetensors file") as caught:
        read_checkpoint(str(folder))
    assert str(caught.value).startswith(str(path))


def test_a_pickle_under_another_name_is_not_loaded(folder):
    torch.save({"a": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        read_checkpoint(str(folder))


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_that_would_run_code_runs_none(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"model": Bomb(str(folder / "ran"))}, folder / "weights.pt")
    with pytest.raises(ConfigError, match="is a pickle"):
        load(folder)
    assert "does not hold a state dict of tensors" in refusal(folder, allow_pickle=True)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("content", [{"step": 3}, [1, 2], {"model": {"a": 1}}])
def test_a_pickle_of_something_else_is_refused(folder, content):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "weights.pt")
    assert "does not hold a state dict of tensors" in refusal(folder, allow_pickle=True)


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    assert refusal(folder).startswith(f"{folder}: holds no weights")


def test_several_weight_files_without_an_index(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"a": torch.zeros(1)}, folder / "b.safetensors")
    assert "several weight files (a.safetensors, b.safetensors)" in refusal(folder)
    load(folder / "a.safetensors")


def shard(folder):
    """The same weights in two files with an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    files = {"model-00001-of-00002.safetensors": names[:12], "model-00002-of-00002.safetensors": names[12:]}
    for file, held in files.items():
        save_file({name: weights[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in files.items() for name in held}}
    write_index(folder, index)
    return index


def write_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def test_weights_in_several_files(folder):
    whole = load(folder)
    shard(folder)
    for one, other in zip(whole.parameters(), load(folder).parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_missing_file_of_several_is_named(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "names model-00002-of-00002.safetensors, which is not in that folder" in refusal(folder)


def test_a_tensor_that_the_index_promises_is_missed(folder):
    index = shard(folder)
    index["weight_map"]["model.layers.9.mlp_norm.weight"] = "model-00001-of-00002.safetensors"
    write_index(folder, index)
    assert "lists the tensor 'model.layers.9.mlp_norm.weight', which none of its files has" in refusal(folder)


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": {}}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../b"}}]
)
def test_an_index_that_is_none(folder, index):
    shard(folder)
    write_index(folder, index)
    assert refusal(folder).startswith(str(folder / "model.safetensors.index.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a JSON list, expected an object"),
        ("{}", "unknown format: neither model_type nor architectures is given"),
        (
            '{"model_type": "bloom"}',
            r"\{'model_type': 'bloom'\}. Formats: retbench, .*fla, .*; force one with --format\. "
            'A model that transformers has is measured as it is by `retbench run --model`, or architecture = "hf"',
        ),
    ],
)
def test_a_configuration_that_is_none(folder, text, message):
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(str(folder))
    assert str(caught.value).startswith(str(folder / "config.json"))


def test_a_format_can_be_forced(folder):
    change_config(folder, model_type="my-retnet")
    with pytest.raises(CheckpointError, match="force one with --format"):
        read_checkpoint(str(folder))
    change_config(folder, model_type="retnet")
    assert read_checkpoint(str(folder), format="fla").config == FLA
    with pytest.raises(ConfigError, match="Did you mean 'llama'"):
        read_checkpoint(str(folder), format="llamma")
    change_config(folder, intermediate_size=None)
    with pytest.raises(ConfigError, match=r"not of format 'llama', but 'fla'\. Leave --format out"):
        read_checkpoint(str(folder), format="llama")
    change_config(folder, model_type="my-llama")
    with pytest.raises(CheckpointError, match="intermediate_size"):
        read_checkpoint(str(folder), format="llama")
