"""Configurations of checkpoints that anybody may have written: each is read, or refused by one of our errors."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from retbench.checkpoints.loading import load_checkpoint
from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import CheckpointError
from tests.checkpoints.stored import (
    FLA,
    GLA,
    LLAMA,
    change_config,
    fla_gla_config,
    fla_retnet_config,
    fla_transformer_config,
    load,
    save_model,
    weighty,
    write_fla_retnet,
)
from tests.checkpoints.test_rwkv6 import FLA_CONFIG, HUB_CONFIG
from tests.fuzzing import EXAMPLES, fuzz, read_or_refused, texts

LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
}
TORCHSCALE_CONFIG = {
    "decoder_embed_dim": 48,
    "decoder_value_embed_dim": 96,
    "decoder_retention_heads": 3,
    "decoder_ffn_embed_dim": 40,
    "decoder_layers": 2,
    "vocab_size": 97,
    "activation_fn": "swish",
}


def retbench_config(folder: Path) -> dict[str, Any]:
    save_model(folder, weighty(LLAMA))
    found: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return found


@EXAMPLES
@pytest.mark.parametrize(
    "form",
    ["fla", "fla transformer", "fla_gla", "llama", "torchscale", "retbench", "rwkv6", "fla_rwkv6"],
)
def test_any_configuration_is_read_or_refused(tmp_path: Path, form: str, examples: int) -> None:
    config = {
        "fla": lambda: fla_retnet_config(FLA),
        "fla transformer": lambda: fla_transformer_config(LLAMA),
        "fla_gla": lambda: fla_gla_config(GLA),
        "llama": lambda: LLAMA_CONFIG,
        "torchscale": lambda: TORCHSCALE_CONFIG,
        "retbench": lambda: retbench_config(tmp_path),
        "rwkv6": lambda: HUB_CONFIG,
        "fla_rwkv6": lambda: FLA_CONFIG,
    }[form]()
    if form != "retbench":
        save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    assert read_checkpoint(str(tmp_path)).format == form.split()[0]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        with read_or_refused():
            load_checkpoint(str(tmp_path), dtype=torch.float32, device="cpu", backend="sdpa")

    fuzz(texts(config), check, examples)


@EXAMPLES
def test_any_index_is_read_or_refused(tmp_path: Path, examples: int) -> None:
    write_fla_retnet(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}

    def check(content: bytes) -> None:
        (tmp_path / "model.safetensors.index.json").write_bytes(content)
        with read_or_refused():
            load(tmp_path)

    fuzz(texts(index), check, examples)


@pytest.mark.parametrize("value", [5, "LlamaForCausalLM", {"a": 1}, None, [5]])
def test_architectures_of_another_type(tmp_path: Path, value: object) -> None:
    write_fla_retnet(tmp_path)
    change_config(tmp_path, model_type="unheard of", architectures=value)
    with pytest.raises(CheckpointError, match="a model of unknown format"):
        read_checkpoint(str(tmp_path))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """This process can take 512 MiB more: what takes much more fails, instead of taking the machine's memory."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**29, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**12},
        {"hidden_size": 2**20, "num_heads": 2},
        {"expand_v": 1e300},
        {"hidden_ratio": float("inf"), "intermediate_size": None},
    ],
    ids=str,
)
def test_a_model_that_its_files_cannot_fill_takes_no_memory(tmp_path: Path, fields: dict[str, Any]) -> None:
    write_fla_retnet(tmp_path)
    change_config(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=r"do not belong together|can be read here"):
        load(tmp_path)


@EXAMPLES
def test_any_pickle_is_read_or_refused(tmp_path: Path, examples: int) -> None:
    weights = write_fla_retnet(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"model": {name: tensor.float() for name, tensor in weights.items()}}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()

    def check(change: tuple[int, bytes, int]) -> None:
        start, put, length = change
        (tmp_path / "a.pt").write_bytes(content[:start] + put + content[start + length :])
        with read_or_refused():
            load(tmp_path, allow_pickle=True)

    places = st.one_of(st.integers(0, 3000), st.integers(max(0, len(content) - 3000), len(content)))
    fuzz(st.tuples(places, st.binary(max_size=4), st.integers(0, 4)), check, examples)
