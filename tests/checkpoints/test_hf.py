"""Checkpoints that transformers loads: what their configuration and the headers of their weights say."""

from pathlib import Path
from typing import Any

import pytest
import torch

from retbench.architectures import costs
from retbench.checkpoints.reading import CheckpointInfo, read_checkpoint
from retbench.checkpoints.weights import SAFETENSORS_NAME as FILE
from retbench.checkpoints.weights import save_tensors
from retbench.errors import CheckpointError, ConfigError
from tests.checkpoints.hf_folder import WEIGHTS, write_hf_folder


def describe(folder: Path) -> CheckpointInfo:
    return read_checkpoint(str(folder), format="hf")


def counts(info: CheckpointInfo) -> tuple[int, int]:
    return costs.num_params(info.config), costs.num_params_nonembedding(info.config)


def test_the_description_is_that_of_the_files(tmp_path: Path) -> None:
    info = describe(write_hf_folder(tmp_path))
    config = info.config
    assert (config.variant, config.d_model, config.num_layers, config.vocab_size) == ("llama", 8, 2, 300)
    assert info.context_len == 64
    assert counts(info) == (2 * 2400 + 8, 8)


def test_a_tied_table_counts_once_though_it_is_stored_twice(tmp_path: Path) -> None:
    assert counts(describe(write_hf_folder(tmp_path, tie_word_embeddings=True))) == (2400 + 8, 8)


@pytest.mark.parametrize("is_tied", [False, True])
def test_weights_of_the_shape_of_an_embedding_are_counted(tmp_path: Path, is_tied: bool) -> None:
    """The feed-forward network is as wide as the vocabulary is large, and so is the table of positions long."""
    others = (
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.up_proj",
        "transformer.wpe",
        "embed_positions",
    )
    shapes = {**WEIGHTS, **{f"{name}.weight": (300, 8) for name in others}}
    found = counts(describe(write_hf_folder(tmp_path, shapes, tie_word_embeddings=is_tied)))
    assert found == ((1 if is_tied else 2) * 2400 + 4 * 2400 + 8, 4 * 2400 + 8)


def test_stored_buffers_are_no_weights(tmp_path: Path) -> None:
    """A causal mask, and what Pythia and early Llamas hold, which transformers does not load."""
    shapes = {
        **WEIGHTS,
        "h.0.attn.bias": (1, 1, 64, 64),
        "h.0.attn.masked_bias": (),
        "h.0.attn.rotary_emb.inv_freq": (4,),
    }
    assert counts(describe(write_hf_folder(tmp_path, shapes))) == (2 * 2400 + 8, 8)


def test_the_names_of_other_configurations_are_read(tmp_path: Path) -> None:
    other = {"hidden_size": None, "n_embd": 8, "num_hidden_layers": None, "n_layer": 3, "model_type": "gpt2"}
    config = describe(write_hf_folder(tmp_path, **other)).config
    assert (config.d_model, config.num_layers) == (8, 3)


@pytest.mark.parametrize(
    "layers", [{"decoder_layers": 3}, {"layers_block_type": ["linear_attention", "full_attention", "mlp"]}]
)
def test_layers_are_also_counted_as_those_of_a_decoder_or_by_their_kinds(
    tmp_path: Path, layers: dict[str, Any]
) -> None:
    assert describe(write_hf_folder(tmp_path, num_hidden_layers=None, **layers)).config.num_layers == 3


@pytest.mark.parametrize(("model_type", "grows"), [("llama", True), ("mamba", False)])
def test_a_model_is_known_to_have_a_cache_or_a_fixed_state(
    tmp_path: Path, model_type: str, grows: bool
) -> None:
    assert describe(write_hf_folder(tmp_path, model_type=model_type)).config.grows == grows


def test_two_configurations_have_two_fingerprints(tmp_path: Path) -> None:
    found = {
        describe(write_hf_folder(tmp_path / str(theta), rope_theta=theta)).config.fingerprint
        for theta in (1e4, 5e5)
    }
    assert len(found) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "the field model_type is None"),
        ({"hidden_size": None}, "none of hidden_size, n_embd"),
        ({"num_hidden_layers": 0}, "none of num_hidden_layers"),
        ({"num_hidden_layers": None, "layers_block_type": []}, "none of num_hidden_layers"),
        ({"vocab_size": "many"}, "none of vocab_size"),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is no causal language model"),
        (
            {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            "T5ForConditionalGeneration is no causal language model",
        ),
    ],
)
def test_a_configuration_that_lacks_a_field_or_is_of_another_task_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        describe(write_hf_folder(tmp_path, **changes))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn], ids=str)
def test_quantised_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """transformers would take the integers themselves for weights."""
    tensors = {name: torch.zeros(shape) for name, shape in WEIGHTS.items()}
    save_tensors(tensors | {"h.0.weight": torch.zeros(8, 8, dtype=dtype)}, write_hf_folder(tmp_path) / FILE)
    with pytest.raises(CheckpointError, match="the weights are quantised"):
        describe(tmp_path)


def test_weights_that_transformers_would_quantise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the weights are quantised"):
        describe(write_hf_folder(tmp_path, quantization_config={"quant_method": "bitsandbytes"}))


def test_stored_buffers_are_not_taken_for_quantised_weights(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in WEIGHTS.items()}
    buffers = {
        "position_ids": torch.zeros(1, 64, dtype=torch.int64),
        "h.0.attn.bias": torch.zeros(1, 1, 64, 64, dtype=torch.uint8),
    }
    save_tensors(tensors | buffers, write_hf_folder(tmp_path) / FILE)
    assert counts(describe(tmp_path)) == (2 * 2400 + 8, 8)


def test_the_configuration_in_place_of_its_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"Give its folder: {tmp_path}$"):
        describe(write_hf_folder(tmp_path) / "config.json")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    (write_hf_folder(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickle") as refused:
        describe(tmp_path)
    assert "--allow-pickle" not in str(refused.value)  # no command reads it for transformers


def test_a_file_of_weights_in_place_of_its_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"Give its folder: {tmp_path}$"):
        describe(write_hf_folder(tmp_path) / "model.safetensors")


def test_no_checkpoint_is_taken_for_one_without_being_asked(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        read_checkpoint(str(write_hf_folder(tmp_path, model_type="qwen3")))
