"""llama2.c's binaries: against its forward pass in numpy, against transformers, and a real model that tells stories."""

import os
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import CheckpointError
from retbench.models.equivalence import relative_error
from retbench.models.generation import generate
from tests.checkpoints import plain_llama2c
from tests.checkpoints.stored import load, logits_of

HEADER = {
    "dim": 48,
    "hidden_dim": 40,
    "n_layers": 2,
    "n_heads": 6,
    "n_kv_heads": 2,
    "vocab_size": 97,
    "seq_len": 32,
}
TOKENS = torch.randint(97, (1, 21), generator=torch.Generator().manual_seed(0))
STORIES = Path(os.environ.get("RETBENCH_DATA", "")) / "stories260K"
needs_stories = pytest.mark.skipif(
    not (os.environ.get("RETBENCH_DATA") and STORIES.is_dir()),
    reason="needs the model stories260K below RETBENCH_DATA",
)
LIMIT = 1e-4


@pytest.fixture(params=[97, -97], ids=["tied", "untied"])
def path(tmp_path, request):
    header = HEADER | {"vocab_size": request.param}
    plain_llama2c.write(tmp_path / "model.bin", header, plain_llama2c.draw(header, seed=1))
    return tmp_path / "model.bin"


def test_logits_are_those_of_its_forward_pass(path):
    header, weights = plain_llama2c.read(path)
    expected = torch.from_numpy(plain_llama2c.logits(header, weights, TOKENS[0].tolist()))[None]
    assert relative_error(logits_of(load(path), TOKENS), expected) < LIMIT
    assert relative_error(logits_of(load(path, dtype=torch.float64), TOKENS), expected) < 1e-12


def test_what_the_file_says_of_itself(path):
    info = read_checkpoint(str(path.parent))
    assert info == read_checkpoint(str(path)).model_copy(update={"source": str(path.parent)})
    assert (info.format, info.context_len, info.weights_dtype, info.path) == ("llama2c", 32, "float32", path)
    assert info.tied_embeddings == (plain_llama2c.read(path)[0]["vocab_size"] > 0)
    assert info.config.mixer.num_kv_heads == 2
    assert info.config.norm_eps == 1e-5


@needs_stories
def test_the_forward_pass_of_a_trained_model():
    header, weights = plain_llama2c.read(STORIES / "stories260K.bin")
    tokens = [1, *range(260, 275)]
    expected = torch.from_numpy(plain_llama2c.logits(header, weights, tokens))[None]
    assert relative_error(logits_of(load(STORIES), torch.tensor([tokens])), expected) < LIMIT


@needs_stories
@pytest.mark.peers
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_a_trained_model_is_transformers_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    header, weights = plain_llama2c.read(STORIES / "stories260K.bin")
    peer = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=header["vocab_size"],
            hidden_size=header["dim"],
            intermediate_size=header["hidden_dim"],
            num_hidden_layers=header["n_layers"],
            num_attention_heads=header["n_heads"],
            num_key_value_heads=header["n_kv_heads"],
            rms_norm_eps=1e-5,
            max_position_embeddings=header["seq_len"],
            tie_word_embeddings=True,
        )
    ).eval()
    peer.load_state_dict(to_transformers(header, weights), strict=False)
    tokens = torch.randint(512, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = peer(tokens).logits
    assert relative_error(logits_of(load(STORIES), tokens), expected) < LIMIT


def to_transformers(header, weights):
    """Convert weights as `convert_llama_weights_to_hf.py` of transformers does."""

    def permute(weight, num_heads):
        return weight.reshape(num_heads, -1, 2, header["dim"]).swapaxes(1, 2).reshape(-1, header["dim"])

    found = {
        "model.embed_tokens.weight": weights["token_embedding_table"],
        "lm_head.weight": weights["token_embedding_table"],
        "model.norm.weight": weights["rms_final_weight"],
    }
    for layer in range(header["n_layers"]):
        found |= {
            f"model.layers.{layer}.{theirs}.weight": weights[name][layer]
            for theirs, name in {
                "input_layernorm": "rms_att_weight",
                "self_attn.v_proj": "wv",
                "self_attn.o_proj": "wo",
                "post_attention_layernorm": "rms_ffn_weight",
                "mlp.gate_proj": "w1",
                "mlp.down_proj": "w2",
                "mlp.up_proj": "w3",
            }.items()
        }
        for letter, heads in (("q", "n_heads"), ("k", "n_kv_heads")):
            found[f"model.layers.{layer}.self_attn.{letter}_proj.weight"] = permute(
                weights[f"w{letter}"][layer], header[heads]
            )
    return {name: torch.from_numpy(weight.astype("float32")) for name, weight in found.items()}


@needs_stories
def test_a_trained_model_tells_a_story():
    model = load(STORIES)
    tokens = list(generate(model, torch.tensor([[1]]), max_tokens=60))
    assert text_of(tokens).startswith(
        " Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )


def text_of(tokens):
    """By the pieces of tok512.bin: a float of score, an int of length, and the bytes, for each."""
    raw, pieces, position = (STORIES / "tok512.bin").read_bytes(), [], 4
    while position < len(raw):
        _, length = struct.unpack_from("<fi", raw, position)
        pieces.append(raw[position + 8 : position + 8 + length])
        position += 8 + length
    return b"".join(pieces[token] for token in tokens).decode()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-4], "has [0-9,]+ bytes where its header means [0-9,]+"),
        (lambda raw: raw + b"0000", "has [0-9,]+ bytes where its header means [0-9,]+"),
        (lambda raw: raw[:20], "has 20 bytes, fewer than the 28"),
        (lambda raw: b"", "has 0 bytes, fewer than the 28"),
        (lambda raw: b"ak42"[::-1] + struct.pack("<i", 1) + raw[8:], "version 1; only the one without"),
        (lambda raw: struct.pack("<i", 47) + raw[4:], "is not a model of llama2.c"),
        (lambda raw: raw[:12] + struct.pack("<i", 0) + raw[16:], "is not a model of llama2.c"),
    ],
)
def test_a_damaged_file_is_named(path, damage, message):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "tok512.bin").write_bytes(struct.pack("<ifi", 7, 0.0, 5) + b"<unk>" + bytes(40))
    with pytest.raises(CheckpointError, match=r"config\.json: there is no such file"):
        read_checkpoint(str(tmp_path))
