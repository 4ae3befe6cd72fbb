"""State dicts of torchscale's RetNetDecoder give its logits, from safetensors and, where asked for, from a pickle."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file

from retbench.architectures.retnet import retnet_config
from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import CheckpointError, ConfigError
from retbench.models.equivalence import relative_error
from tests.checkpoints.stored import load, logits_of, tokens_for

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        find_spec("torchscale") is None, reason="torchscale is not installed: pip install 'retbench[peers]'"
    ),
]
CONFIG = retnet_config(
    variant="torchscale", d_model=48, num_layers=2, num_heads=3, vocab_size=97, ffn_dim=60, value_dim=60
)
FIELDS = {
    "decoder_embed_dim": 48,
    "decoder_value_embed_dim": 60,
    "decoder_retention_heads": 3,
    "decoder_ffn_embed_dim": 60,
    "decoder_layers": 2,
    "vocab_size": 97,
    "activation_fn": "swish",
}
LIMIT = 1e-4


@pytest.fixture(scope="module")
def peer():
    from benchmarks.peers import torchscale_retnet

    return torchscale_retnet.build_peer(CONFIG, seed=3)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIELDS), encoding="utf-8")
    return tmp_path


def error_of(folder, peer, **options):
    tokens = tokens_for(CONFIG)
    with torch.inference_mode():
        expected = peer(tokens)[0]
    return relative_error(logits_of(load(folder, **options), tokens), expected)


def test_logits_are_those_of_torchscale(folder, peer):
    save_file(
        {name: weight.contiguous() for name, weight in peer.state_dict().items()},
        folder / "retnet.safetensors",
    )
    info = read_checkpoint(str(folder))
    assert (info.format, info.config, info.context_len) == ("torchscale", CONFIG, None)
    assert error_of(folder, peer) < LIMIT
    assert error_of(folder, peer, backend="recurrent") < LIMIT


def test_the_file_itself_may_be_named(folder, peer):
    path = folder / "other.safetensors"
    save_file({name: weight.contiguous() for name, weight in peer.state_dict().items()}, path)
    (folder / "model.safetensors").write_bytes(b"not this one")
    assert error_of(path, peer) < LIMIT


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"model": weights},
        lambda weights: {"model": {f"decoder.{name}": weight for name, weight in weights.items()}},
    ],
    ids=["plain", "nested", "fairseq"],
)
def test_a_pickle_is_read_only_where_it_is_asked_for(folder, peer, wrap):
    torch.save(wrap(peer.state_dict()), folder / "retnet.pt")
    with pytest.raises(ConfigError, match=r"retnet\.pt: is a pickle.*--allow-pickle"):
        load(folder)
    assert read_checkpoint(str(folder)).weights_dtype is None
    assert error_of(folder, peer, allow_pickle=True) < LIMIT


def test_tied_embeddings(folder, peer):
    weights = dict(peer.state_dict())
    del weights["output_projection.weight"]
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    fields = FIELDS | {"share_decoder_input_output_embed": True}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    model = load(folder)
    assert torch.equal(model.head.weight, peer.embed_tokens.weight)
    assert torch.equal(model.embedding.weight, peer.embed_tokens.weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_fn": "gelu"}, r"activation_fn: give 'swish' or 'silu' \(found 'gelu'\)"),
        ({"activation_fn": None}, "activation_fn"),
        ({"no_scale_embedding": False}, "no_scale_embedding"),
        ({"subln": True}, "subln"),
        ({"decoder_layers": "many"}, "decoder_layers"),
    ],
    ids=str,
)
def test_a_model_that_is_not_ours_is_refused(folder, peer, fields, message):
    save_file(
        {name: weight.contiguous() for name, weight in peer.state_dict().items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(FIELDS | fields), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(str(folder))


def test_a_wrong_number_of_heads_is_noticed_though_every_shape_fits(folder, peer):
    save_file(
        {name: weight.contiguous() for name, weight in peer.state_dict().items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(FIELDS | {"decoder_retention_heads": 2}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds the logarithms of 3 decays"):
        load(folder)


def test_other_decays_are_noticed(folder, peer):
    weights = {name: weight.contiguous() for name, weight in peer.state_dict().items()}
    weights["retnet_rel_pos.decay"] = weights["retnet_rel_pos.decay"] * 1.1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds the logarithms of 3 decays"):
        load(folder)


@pytest.mark.parametrize("format", ["auto", "torchscale", "hf"])
def test_weights_without_a_configuration_are_not_guessed(tmp_path, peer, format):
    torch.save(peer.state_dict(), tmp_path / "retnet.pt")
    with pytest.raises(CheckpointError, match=r"config\.json: there is no such file.*activation_fn"):
        read_checkpoint(str(tmp_path / "retnet.pt"), format=format)
