"""Checkpoints of Mamba-2 that transformers wrote give its logits; so do the same weights in mamba's format."""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from retbench.checkpoints.loading import load_checkpoint
from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import CheckpointError
from retbench.models.equivalence import relative_error

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        find_spec("transformers") is None,
        reason="transformers is not installed: pip install 'retbench[peers]'",
    ),
]
LIMIT = 1e-4
"""Largest error in float32, divided by the root mean square of the reference."""
TOKENS = torch.randint(96, (1, 70), generator=torch.Generator().manual_seed(0))
CONFIG: dict[str, Any] = {
    "num_heads": 6,
    "head_dim": 16,
    "hidden_size": 48,
    "state_size": 8,
    "n_groups": 1,
    "num_hidden_layers": 2,
    "vocab_size": 96,
    "initializer_range": 0.1,
    "chunk_size": 32,
}
MAMBA_CONFIG: dict[str, Any] = {
    "d_model": 48,
    "d_intermediate": 0,
    "n_layer": 2,
    "vocab_size": 93,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 16},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}


def save_peer(folder: Path, **settings: Any) -> torch.Tensor:
    """Save a Mamba-2 of transformers with weights that are not all one; return its logits of TOKENS."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(1)
    peer = Mamba2ForCausalLM(Mamba2Config(**(CONFIG | settings))).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if parameter.dim() == 1 and not name.endswith(("A_log", "dt_bias")):
                parameter.uniform_(0.5, 1.5)
        logits: torch.Tensor = peer(TOKENS, use_cache=False).logits
    peer.save_pretrained(folder)
    return logits


def error_of(folder: Path, expected: torch.Tensor) -> float:
    model = load_checkpoint(folder, dtype=torch.float32, device="cpu", backend="chunkwise")
    with torch.inference_mode():
        return relative_error(model(TOKENS), expected)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_groups": 3},
        {"tie_word_embeddings": True},
        {"conv_kernel": 3},
        {"layer_norm_epsilon": 1e-2},
        {"expand": 4, "head_dim": 32},
    ],
    ids=str,
)
def test_logits_are_those_of_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert error_of(tmp_path, save_peer(tmp_path, **settings)) < LIMIT


def test_a_configuration_of_an_old_release(tmp_path: Path) -> None:
    """It has options without effect, and infinity as JSON's extension writes it."""
    expected = save_peer(tmp_path)
    rewrite(tmp_path, norm_before_gate=True, rms_norm=True, time_step_limit=[0.0, math.inf])
    assert error_of(tmp_path, expected) < LIMIT


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_weights_in_the_format_of_mamba(tmp_path: Path, tied: bool) -> None:
    expected = save_peer(tmp_path, tie_word_embeddings=tied)
    weights = load_file(tmp_path / "model.safetensors")
    weights["backbone.embedding.weight"] = weights.pop("backbone.embeddings.weight")
    if tied:  # mamba stores the shared table twice
        weights["lm_head.weight"] = weights["backbone.embedding.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(MAMBA_CONFIG | {"tie_embeddings": tied}))
    info = read_checkpoint(str(tmp_path))
    assert (info.format, info.config.vocab_size, info.tied_embeddings) == ("mamba2", 96, tied)
    assert error_of(tmp_path, expected) < LIMIT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_step_limit": [0.0, 0.1]}, "time steps are limited to 0.0 .. 0.1"),
        ({"use_bias": True}, "use_bias"),
        ({"use_conv_bias": False}, "use_conv_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"n_groups": 4}, "multiple of num_groups 4"),
    ],
)
def test_a_model_that_is_not_here_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_peer(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_layer_idx": [1]}, "attn_layer_idx"),
        ({"d_intermediate": 64}, "d_intermediate"),
        ({"rms_norm": False}, "rms_norm"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 36}}, "not a multiple of headdim 36"),
        ({"ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.0, 1.0]}}, "time steps are limited"),
    ],
)
def test_a_layer_of_mamba_that_is_not_here_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_peer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MAMBA_CONFIG | changes))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(str(tmp_path))


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    save_peer(tmp_path)
    rewrite(tmp_path, conv_kernel=3)
    with pytest.raises(CheckpointError, match=r"conv1d\.weight' has shape"):
        load_checkpoint(tmp_path, dtype=torch.float32, device="cpu", backend="chunkwise")


def test_the_published_configuration_of_130m_is_that_model(tmp_path: Path) -> None:
    from retbench.architectures import costs
    from retbench.checkpoints.mamba2 import describe

    published = MAMBA_CONFIG | {
        "d_model": 768,
        "n_layer": 24,
        "vocab_size": 50277,
        "ssm_cfg": {"layer": "Mamba2"},
    }
    described = describe(published, tmp_path)
    assert described.tied_embeddings
    assert described.config.vocab_size == 50288
    assert costs.num_params(described.config) - 50288 * 768 == 128_989_632
