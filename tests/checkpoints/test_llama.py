"""Checkpoints that transformers' LlamaForCausalLM wrote give its logits."""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file

from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import CheckpointError
from retbench.evaluation.perplexity import streamed_losses
from retbench.models.equivalence import relative_error
from tests.checkpoints.stored import LLAMA, change_config, load, logits_of, tokens_for

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        find_spec("transformers") is None,
        reason="transformers is not installed: pip install 'retbench[peers]'",
    ),
]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
"""One of the four pairs of a head is kept, one interpolated, and two are slowed down."""
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
LIMIT = 1e-4
"""Largest error in float32, divided by the root mean square of the reference."""


def build(**settings):
    """A Llama with norm weights that are not all one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = {
        "vocab_size": LLAMA.vocab_size,
        "hidden_size": LLAMA.d_model,
        "intermediate_size": LLAMA.ffn.ffn_dim,
        "num_hidden_layers": LLAMA.num_layers,
        "num_attention_heads": LLAMA.mixer.num_heads,
        "num_key_value_heads": LLAMA.mixer.num_kv_heads,
        "rms_norm_eps": LLAMA.norm_eps,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
    }
    peer = LlamaForCausalLM(LlamaConfig(**(config | settings))).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return peer


def error_of(folder, peer, **options):
    tokens = tokens_for(LLAMA)
    with torch.inference_mode():
        expected = peer(tokens).logits
    return relative_error(logits_of(load(folder, **options), tokens), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"}},
        {"rms_norm_eps": 1e-2},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": LINEAR},
    ],
    ids=str,
)
def test_logits_are_those_of_transformers(tmp_path, settings):
    peer = build(**settings)
    peer.save_pretrained(tmp_path)
    assert error_of(tmp_path, peer) < LIMIT


@pytest.mark.parametrize("scaling", [LLAMA3, LINEAR], ids=["llama3", "linear"])
def test_scaled_positions_are_decoded_as_by_transformers(tmp_path, scaling):
    peer = build(rope_parameters=scaling)
    peer.save_pretrained(tmp_path)
    model, tokens = load(tmp_path), tokens_for(LLAMA)[:1]
    with torch.inference_mode():
        state = model.init_state(1, tokens.shape[1])
        found = [model.prefill(tokens[:, :7], state)]
        found += [model(tokens[:, t : t + 1], state) for t in range(7, tokens.shape[1])]
        expected = peer(tokens).logits[:, 6:]
        unscaled = build()(tokens).logits[:, 6:]
    assert relative_error(torch.cat(found, dim=1), expected) < LIMIT
    assert relative_error(unscaled, expected) > 100 * LIMIT  # the scaling is not without effect


@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_scaled_positions_of_old_configurations(tmp_path, name):
    peer = build(rope_parameters=LLAMA3)
    peer.save_pretrained(tmp_path)
    scaling = {key: value for key, value in LLAMA3.items() if key not in ("rope_type", "rope_theta")}
    change_config(
        tmp_path,
        rope_parameters=None,
        rope_theta=LLAMA3["rope_theta"],
        rope_scaling={name: "llama3", **scaling},
    )
    assert error_of(tmp_path, peer) < LIMIT


def test_configurations_without_scaling_have_the_same_ids_as_before():
    assert "rotary_scaling" not in LLAMA.model_dump_json()


def test_a_model_in_several_files(tmp_path):
    peer = build()
    peer.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert error_of(tmp_path, peer) < LIMIT


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_stored_head_is_the_embedding_where_the_configuration_says_so(tmp_path, is_equal):
    """transformers computes with the head that is stored; a model here has the embedding's."""
    build().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    if is_equal:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path)
    change_config(tmp_path, tie_word_embeddings=True)
    if is_equal:
        from transformers import LlamaForCausalLM

        assert error_of(tmp_path, LlamaForCausalLM.from_pretrained(tmp_path)) < LIMIT
        return
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' and 'model\.embed_tokens\.weight' differ"):
        load(tmp_path)


def test_a_model_stored_in_bfloat16(tmp_path):
    peer = build()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(parameter.bfloat16())
    weights = {name: weight.bfloat16() for name, weight in peer.state_dict().items()}
    peer.save_pretrained(tmp_path, state_dict=weights)
    assert read_checkpoint(str(tmp_path)).weights_dtype == "bfloat16"
    assert error_of(tmp_path, peer) < LIMIT


def test_the_base_of_old_configurations(tmp_path):
    peer = build(rope_parameters={"rope_theta": 40_000.0, "rope_type": "default"})
    peer.save_pretrained(tmp_path)
    change_config(tmp_path, rope_parameters=None, rope_theta=40_000.0, rope_scaling=None)
    assert error_of(tmp_path, peer) < LIMIT


def test_what_the_checkpoint_says_of_itself(tmp_path):
    build(tie_word_embeddings=True).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    info = read_checkpoint(str(tmp_path))
    assert info.format == "llama"
    assert info.config == LLAMA
    assert info.context_len == 64
    assert info.tied_embeddings
    assert info.weights_dtype == "float32"
    assert info.tokenizer == str(tmp_path / "tokenizer.json")
    assert info.source == str(tmp_path)
    assert info.revision is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "gelu"}, r"hidden_act: give 'silu' or 'swish' \(found 'gelu'\)"),
        ({"attention_bias": True}, r"attention_bias: give False \(found true\)"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rotary positions of the type llama3 need low_freq_factor, high_freq_factor",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 8.0}}, "rope_scaling.type"),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, "must be below high_freq_factor"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_parameters"),
        ({"head_dim": 16}, "head_dim 16 times 6 heads is not hidden_size 48"),
        ({"hidden_size": None}, "hidden_size: give a whole number"),
        ({"num_attention_heads": 16, "head_dim": None}, r"d_model 48 must be a multiple of 2 \* 16 heads"),
        ({"num_key_value_heads": 4}, "num_kv_heads 4 must divide num_heads 6"),
    ],
    ids=str,
)
def test_a_model_that_is_not_ours_is_refused(tmp_path, fields, message):
    build().save_pretrained(tmp_path)
    change_config(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(str(tmp_path))
    assert str(caught.value).startswith(str(tmp_path / "config.json"))


def test_losses_with_a_large_vocabulary_are_those_of_transformers(tmp_path):
    peer = build(vocab_size=49_152, max_position_embeddings=512)
    peer.save_pretrained(tmp_path)
    tokens = torch.randint(49_152, (1, 257), generator=torch.Generator().manual_seed(0))
    found = streamed_losses(load(tmp_path), tokens, segment_len=100)
    with torch.inference_mode():
        logits = peer(tokens[:, :-1]).logits.double()
    expected = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
    assert float(found.double().sum()) == pytest.approx(float(expected.sum()), rel=1e-6)
