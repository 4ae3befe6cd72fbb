"""Checkpoints of flash-linear-attention: RetNet by its published formula, Transformer by transformers' Llama."""

from importlib.util import find_spec

import pytest
import torch

from benchmarks.peers import fla_retnet
from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import CheckpointError
from retbench.models.equivalence import relative_error
from tests.checkpoints.stored import (
    FLA,
    LLAMA,
    change_config,
    fla_retnet_config,
    fla_transformer_config,
    load,
    logits_of,
    save,
    tokens_for,
    write_fla_retnet,
)

LIMIT = 1e-4


def expected_logits(weights):
    return fla_retnet.logits(weights, FLA, tokens_for(FLA)[0])[None]


def error_of(folder, expected):
    return relative_error(logits_of(load(folder), tokens_for(FLA)), expected)


def fuse_mlp(weights):
    """Return weights in the layout before February 2025: both inputs of a feed-forward in one tensor."""
    fused = {name: weight for name, weight in weights.items() if "up_proj" not in name}
    for index in range(FLA.num_layers):
        mlp = f"model.layers.{index}.mlp"
        fused[f"{mlp}.gate_proj.weight"] = torch.cat(
            [weights[f"{mlp}.gate_proj.weight"], weights[f"{mlp}.up_proj.weight"]]
        )
    return fused


def test_retnet_gives_the_logits_of_the_published_formula(tmp_path):
    weights = write_fla_retnet(tmp_path)
    info = read_checkpoint(str(tmp_path))
    assert (info.format, info.config, info.context_len) == ("fla", FLA, 2048)
    assert error_of(tmp_path, expected_logits(weights)) < LIMIT


def test_retnet_with_the_older_feed_forward(tmp_path):
    weights = write_fla_retnet(tmp_path)
    save(tmp_path, fuse_mlp(weights), fla_retnet_config(FLA))
    assert error_of(tmp_path, expected_logits(weights)) < LIMIT


def test_retnet_whose_norm_and_gate_are_not_one_kernel(tmp_path):
    weights = write_fla_retnet(tmp_path)
    renamed = {name.replace("g_norm_swish_gate", "g_norm"): weight for name, weight in weights.items()}
    save(tmp_path, renamed, fla_retnet_config(FLA) | {"fuse_norm": False})
    assert error_of(tmp_path, expected_logits(weights)) < LIMIT


def test_retnet_with_tied_embeddings(tmp_path):
    weights = write_fla_retnet(tmp_path)
    weights["lm_head.weight"] = weights["model.embeddings.weight"]
    stored = {name: weight for name, weight in weights.items() if name != "lm_head.weight"}
    save(tmp_path, stored, fla_retnet_config(FLA) | {"tie_word_embeddings": True})
    assert read_checkpoint(str(tmp_path)).tied_embeddings
    assert error_of(tmp_path, expected_logits(weights)) < LIMIT


def test_retnet_without_a_gate(tmp_path):
    weights = write_fla_retnet(tmp_path)
    bare = {
        name.replace("g_norm_swish_gate", "g_norm"): weight
        for name, weight in weights.items()
        if "g_proj" not in name
    }
    save(tmp_path, bare, fla_retnet_config(FLA) | {"use_output_gate": False})
    for index in range(FLA.num_layers):
        del weights[f"model.layers.{index}.attn.g_proj.weight"]
    assert not read_checkpoint(str(tmp_path)).config.mixer.swish_gate
    assert error_of(tmp_path, expected_logits(weights)) < LIMIT


def test_the_public_retnet_has_the_size_that_is_published():
    """fla-hub/retnet-1.3B-100B: 1,351,727,104 parameters; 2.7B: 2,722,548,224."""
    from pathlib import Path

    from retbench.architectures import costs
    from retbench.checkpoints import fla

    published = {"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 8, "expand_v": 2}
    sizes = {"hidden_ratio": 2, "intermediate_size": None, "vocab_size": 32000, "model_type": "retnet"}
    found = fla.describe(published | sizes, Path("config.json"))
    assert costs.num_params(found.config) == 1_351_727_104
    larger = published | sizes | {"hidden_size": 2560, "num_hidden_layers": 32, "num_heads": 10}
    assert costs.num_params(fla.describe(larger, Path("config.json")).config) == 2_722_548_224


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expand_k": 0.5}, "expand_k 0.5"),
        ({"num_kv_heads": 1}, "num_kv_heads 1"),
        ({"feature_map": "relu"}, "feature_map"),
        ({"attn": {"layers": [1], "num_heads": 3}}, "attn"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"elementwise_affine": False}, "elementwise_affine"),
    ],
    ids=str,
)
def test_a_retnet_that_is_not_ours_is_refused(tmp_path, fields, message):
    write_fla_retnet(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(str(tmp_path))


TO_FLA = {
    "embed_tokens": "embeddings",
    "self_attn": "attn",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "mlp_norm",
}


@pytest.mark.peers
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("layout", ["separate", "fused"])
@pytest.mark.parametrize("rope_theta", [10_000.0, 200_000.0])
def test_transformer_is_llama_under_other_names(tmp_path, layout, rope_theta):
    from tests.checkpoints.test_llama import build

    peer = build(rope_parameters={"rope_theta": rope_theta, "rope_type": "default"})
    weights = dict(peer.state_dict())
    for theirs, name in TO_FLA.items():
        weights = {key.replace(theirs, name): weight for key, weight in weights.items()}
    config = fla_transformer_config(LLAMA) | {"rope_theta": rope_theta}
    save(tmp_path, fuse_mlp(weights) if layout == "fused" else weights, config)
    with torch.inference_mode():
        expected = peer(tokens_for(LLAMA)).logits
    assert relative_error(logits_of(load(tmp_path), tokens_for(LLAMA)), expected) < LIMIT
    change_config(tmp_path, window_size=16)
    with pytest.raises(CheckpointError, match="window_size"):
        read_checkpoint(str(tmp_path))
