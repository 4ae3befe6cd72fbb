"""Checkpoints of flash-linear-attention's GLA, by its published formula token by token in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retbench.architectures import costs
from retbench.checkpoints import fla_gla
from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import CheckpointError
from retbench.models.equivalence import relative_error
from tests.checkpoints.stored import (
    GLA,
    draw_fla_gla,
    fla_gla_config,
    load,
    logits_of,
    save,
    tokens_for,
    write_fla_gla,
)

HEADS, KEYS, VALUES = 3, 24, 48
PUBLISHED = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_heads": 4,
    "vocab_size": 32000,
    "model_type": "gla",
}

Weights = dict[str, Tensor]


def normed(x: Tensor, weight: Tensor) -> Tensor:
    scaled: Tensor = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    return scaled


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def expected_logits(weights: Weights) -> Tensor:
    """fla/models/gla and fla/layers/gla.py, with the recurrence of fla/ops/gla/naive.py, in float64."""
    states = torch.zeros(GLA.num_layers, HEADS, KEYS // HEADS, VALUES // HEADS, dtype=torch.float64)
    rows = []
    for token in tokens_for(GLA)[0]:
        x = weights["model.embeddings.weight"][token]
        for index in range(GLA.num_layers):
            layer = {
                name.removeprefix(f"model.layers.{index}."): weight
                for name, weight in weights.items()
                if name.startswith(f"model.layers.{index}.")
            }
            x = x + mix(layer, normed(x, layer["attn_norm.weight"]), states[index])
            y = normed(x, layer["mlp_norm.weight"])
            hidden = silu(layer["mlp.gate_proj.weight"] @ y) * (layer["mlp.up_proj.weight"] @ y)
            x = x + layer["mlp.down_proj.weight"] @ hidden
        rows.append(weights["lm_head.weight"] @ normed(x, weights["model.norm.weight"]))
    return torch.stack(rows)[None]


def mix(layer: Weights, x: Tensor, state: Tensor) -> Tensor:
    """One token x (D,); `state` (H, K, V) is advanced in place."""
    q, k, v, gate = ((layer[f"attn.{name}_proj.weight"] @ x).view(HEADS, -1) for name in ("q", "k", "v", "g"))
    low = layer["attn.gk_proj.0.weight"] @ x
    logits = layer["attn.gk_proj.1.weight"] @ low + layer["attn.gk_proj.1.bias"]
    decay = torch.sigmoid(logits).pow(1 / 16).view(HEADS, -1)
    state.copy_(decay[..., None] * state + k[..., None] * v[:, None])
    out = torch.einsum("hk,hkv->hv", q * (KEYS // HEADS) ** -0.5, state)
    out = normed(out, layer["attn.g_norm_swish_gate.weight"]) * silu(gate)
    return layer["attn.o_proj.weight"] @ out.flatten()


def error_of(folder: Path, weights: Weights) -> float:
    return relative_error(logits_of(load(folder), tokens_for(GLA)), expected_logits(weights))


def test_it_gives_the_logits_of_the_published_formula(tmp_path: Path) -> None:
    weights = write_fla_gla(tmp_path)
    info = read_checkpoint(str(tmp_path))
    assert (info.format, info.config, info.context_len) == ("fla_gla", GLA, 2048)
    assert error_of(tmp_path, weights) < 1e-4


def test_older_names_and_layouts_are_read(tmp_path: Path) -> None:
    """The names are those before February 2025, and norm and gate are in two kernels."""
    weights, stored = write_fla_gla(tmp_path), {}
    for name, weight in weights.items():
        if "mlp.gate_proj" in name:
            weight = torch.cat([weight, weights[name.replace("gate", "up")]])
        if "mlp.up_proj" not in name:
            stored[name.replace("g_norm_swish_gate", "g_norm")] = weight
    save(tmp_path, stored, fla_gla_config(GLA) | {"fuse_norm": False})
    assert error_of(tmp_path, weights) < 1e-4


def test_tied_embeddings_are_read(tmp_path: Path) -> None:
    weights = draw_fla_gla(GLA)
    weights["lm_head.weight"] = weights["model.embeddings.weight"]
    stored = {name: weight for name, weight in weights.items() if name != "lm_head.weight"}
    save(tmp_path, stored, fla_gla_config(GLA) | {"tie_word_embeddings": True})
    assert error_of(tmp_path, weights) < 1e-4


def test_the_public_model_has_the_parameters_of_its_layers() -> None:
    """fla-hub/gla-1.3B-100B: embeddings and head 2 V d, and L layers of 4 d^2 + 24 d + d / 2 + V_head + 3 d F + 2 d."""
    found = fla_gla.describe(PUBLISHED, Path("config.json")).config
    d, ffn, value_head = 2048, 5632, 512
    layer = 4 * d * d + 24 * d + d // 2 + value_head + 3 * d * ffn + 2 * d
    assert costs.num_params(found) == 2 * 32000 * d + 24 * layer + d == 1_365_514_240


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_kv_heads": 1}, "num_kv_heads 1"),
        ({"feature_map": "relu"}, "feature_map"),
        ({"attn": {"layers": [1], "num_heads": 3}}, "attn"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"elementwise_affine": False}, "elementwise_affine"),
        ({"use_output_gate": False}, "use_output_gate"),
        ({"use_short_conv": True}, "use_short_conv"),
        ({"gate_logit_normalizer": 8}, "gate_logit_normalizer"),
        ({"clamp_min": -1.0}, "clamp_min"),
        ({"expand_k": 0.6}, "key_dim 28 must be a multiple of num_heads 3"),
    ],
    ids=str,
)
def test_a_model_that_is_not_ours_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_fla_gla(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)
