"""Checkpoints that transformers' MistralForCausalLM wrote give its logits, with a window and without one."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from retbench.architectures.configs import default_backend
from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import CheckpointError
from retbench.models.equivalence import relative_error
from tests.checkpoints.stored import LLAMA, change_config, load, logits_of, tokens_for

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        find_spec("transformers") is None,
        reason="transformers is not installed: pip install 'retbench[peers]'",
    ),
]


def save(folder: Path, window: int | None) -> torch.Tensor:
    """Save a Mistral in the shapes of LLAMA; return its logits."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=LLAMA.vocab_size,
        hidden_size=LLAMA.d_model,
        intermediate_size=LLAMA.ffn.ffn_dim,
        num_hidden_layers=LLAMA.num_layers,
        num_attention_heads=LLAMA.mixer.num_heads,
        num_key_value_heads=LLAMA.mixer.num_kv_heads,
        rms_norm_eps=LLAMA.norm_eps,
        max_position_embeddings=64,
        initializer_range=0.2,
        sliding_window=window,
    )
    peer = MistralForCausalLM(config).eval()
    peer.save_pretrained(folder)
    with torch.inference_mode():
        return peer(tokens_for(LLAMA)).logits


@pytest.mark.parametrize("window", [1, 5, 36, 64])
def test_logits_with_a_window_are_those_of_transformers(tmp_path: Path, window: int) -> None:
    expected, info = save(tmp_path, window), read_checkpoint(str(tmp_path))
    assert info.format == "mistral"
    assert (info.config.architecture, info.config.mixer.window, info.config.mixer.sinks) == (
        "sliding_window",
        window,
        0,
    )
    assert default_backend(info.config) == "auto"
    assert relative_error(logits_of(load(tmp_path), tokens_for(LLAMA)), expected) < 1e-4


def test_without_a_window_it_is_a_transformer(tmp_path: Path) -> None:
    expected, info = save(tmp_path, None), read_checkpoint(str(tmp_path))
    assert info.config == LLAMA
    assert relative_error(logits_of(load(tmp_path), tokens_for(LLAMA)), expected) < 1e-4


def test_a_file_that_states_no_window_has_that_of_transformers(tmp_path: Path) -> None:
    save(tmp_path, 5)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace("sliding_window", "unread"), encoding="utf-8"
    )
    assert read_checkpoint(str(tmp_path)).config.mixer.window == 4096


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sliding_window": 0}, "sliding_window: give 1 or more"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_a_model_that_is_not_ours_is_refused(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    save(tmp_path, 5)
    change_config(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(str(tmp_path))
