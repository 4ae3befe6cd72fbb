"""Our models carry each peer's weights and give its logits; a wrongly mapped weight would be seen."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from benchmarks.peers import equality, fla_retnet, pairs, training
from benchmarks.peers.outcomes import FP32_LIMIT, error_outcome
from retbench.architectures.configs import ModelConfig
from retbench.architectures.mamba2 import mamba2_config
from retbench.architectures.retnet import retnet_config
from retbench.architectures.transformer import transformer_config
from retbench.mixers.latent_attention.config import LatentAttention
from retbench.mixers.mamba2.config import Mamba2
from retbench.mixers.mixer import Mixer
from retbench.mixers.window_attention.config import WindowAttention
from tests.checkpoints.stored import GLA, draw_fla_gla

INSTALL = "is not installed: pip install 'retbench[peers]'"
needs_torchscale = pytest.mark.skipif(find_spec("torchscale") is None, reason=f"torchscale {INSTALL}")
needs_yar = pytest.mark.skipif(
    find_spec("yet_another_retnet") is None, reason=f"yet-another-retnet {INSTALL}"
)
needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason=f"transformers {INSTALL}")

pytestmark = pytest.mark.peers

TORCHSCALE = retnet_config(
    variant="torchscale", d_model=96, num_layers=3, num_heads=3, vocab_size=211, ffn_dim=120, value_dim=120
)
PAPER = retnet_config(
    variant="paper",
    decay="paper",
    d_model=96,
    num_layers=3,
    num_heads=3,
    vocab_size=211,
    ffn_dim=120,
    value_dim=96,
    norm_eps=pairs.TINY_EPS,
)
GPT = transformer_config(
    variant="gpt", d_model=96, num_layers=3, num_heads=6, num_kv_heads=6, vocab_size=211, ffn_dim=136
)
LLAMA = transformer_config(d_model=96, num_layers=3, num_heads=6, num_kv_heads=6, vocab_size=211, ffn_dim=136)
FLA = retnet_config(
    variant="fla", d_model=48, num_layers=2, num_heads=3, vocab_size=97, ffn_dim=40, value_dim=96
)


@needs_torchscale
def test_torchscale_parallel_and_recurrent() -> None:
    outcomes = list(equality.torchscale_equality(TORCHSCALE, 277))
    assert len(outcomes) == 5  # four forms and the decode
    assert all(outcome.holds for outcome in outcomes), outcomes


@needs_torchscale
def test_torchscale_chunkwise_where_its_epsilon_vanishes() -> None:
    from benchmarks.peers import torchscale_retnet

    config = pairs.with_retention(TORCHSCALE, norm_eps=pairs.TINY_EPS)
    peer = torchscale_retnet.build_peer(config, seed=3, chunkwise=True)
    ours = pairs.carry(config, pairs.map_weights("torchscale", config, peer.state_dict()))
    tokens = pairs.random_tokens(config, 1100)  # two of its chunks and a remainder
    with torch.inference_mode():
        assert error_outcome("", ours(tokens), peer(tokens)[0], FP32_LIMIT).holds
        last = torchscale_retnet.last_logits(peer, tokens)
        assert error_outcome("", ours(tokens, last_only=True), last, FP32_LIMIT).holds


@needs_torchscale
def test_torchscale_decoding_returns_to_a_mark() -> None:
    from benchmarks.peers import torchscale_retnet

    decoding = torchscale_retnet.RecurrentDecoding(torchscale_retnet.build_peer(TORCHSCALE, seed=1), 8)
    tokens = pairs.random_tokens(TORCHSCALE, 4)
    with torch.inference_mode():
        decoding.step(tokens[:, :1])
        mark = decoding.mark()
        first = [decoding.step(tokens[:, t : t + 1]) for t in (1, 2)]
        decoding.rewind(mark)
        again = [decoding.step(tokens[:, t : t + 1]) for t in (1, 2)]
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(first[0], first[1])


@needs_transformers
@pytest.mark.parametrize("num_kv_heads", [6, 2, 1])
def test_llama_prefill_and_decode(num_kv_heads: int) -> None:
    config = transformer_config(
        d_model=96, num_layers=3, num_heads=6, num_kv_heads=num_kv_heads, vocab_size=211, ffn_dim=136
    )
    outcomes = list(equality.llama_pair_equality(config, 133, 9))
    assert len(outcomes) == 5  # auto, reference, sdpa, products and the decode
    assert all(outcome.holds for outcome in outcomes), outcomes


@needs_transformers
def test_llama_generate_gives_a_time_for_each_token_but_the_first() -> None:
    from benchmarks.peers import hf_llama

    peer = hf_llama.build_peer(LLAMA, seed=1, max_len=64)
    generated = hf_llama.generate(peer, pairs.random_tokens(LLAMA, 20), 7)
    assert generated.tokens.shape == (1, 7)
    assert len(generated.step_s) == 6
    assert min(generated.step_s) > 0


@pytest.mark.slow
@needs_transformers
@torch.inference_mode()
def test_llama_generate_with_a_static_cache_is_compiled_and_equal() -> None:
    from benchmarks.peers import hf_llama

    block = LLAMA.blocks[0].model_copy(update={"count": 1})  # each layer is compiled
    config = LLAMA.model_copy(update={"blocks": (block,)})
    peer = hf_llama.build_peer(config, seed=1, max_len=64)
    prompt = pairs.random_tokens(config, 20)
    torch.compiler.set_stance("default")
    usual = hf_llama.generate(peer, prompt, 7, with_logits=True)
    assert not hasattr(peer, "_compiled_call")
    static = hf_llama.generate(peer, prompt, 7, with_logits=True, static=True)
    assert hasattr(peer, "_compiled_call")
    assert torch.equal(static.tokens, usual.tokens)
    torch.testing.assert_close(static.logits, usual.logits, rtol=0, atol=1e-4)
    # No later call is compiled anew, whatever its number of tokens.
    torch.compiler.set_stance("fail_on_recompile")
    try:
        assert hf_llama.median_step_s(peer, prompt, warm=2, timed=8, static=True) > 0
    finally:
        torch.compiler.set_stance("default")


@needs_transformers
@pytest.mark.parametrize("window", [1, 2, 31, 200])
@pytest.mark.parametrize("num_kv_heads", [6, 2])
def test_mistral_prefill_and_decode(window: int, num_kv_heads: int) -> None:
    """A window of one token, of two, that wraps often, and that is longer than the text."""
    outcomes = list(
        equality.mistral_equality(
            _with(WindowAttention, num_kv_heads=num_kv_heads, window=window, sinks=0), 133
        )
    )
    assert len(outcomes) == 5  # auto, blocks, products, reference and the decode
    assert all(outcome.holds for outcome in outcomes), outcomes


@needs_transformers
@pytest.mark.parametrize("num_groups", [1, 2])
def test_mamba2_prefill_and_decode(num_groups: int) -> None:
    mixer = Mamba2(d_model=96, num_heads=6, inner_dim=192, state_size=24, num_groups=num_groups)
    config = mamba2_config(mixer, num_layers=3, vocab_size=211)
    outcomes = list(equality.mamba2_equality(config, 300, 9))  # more than one of its chunks
    assert len(outcomes) == 5  # four forms and the decode
    assert all(outcome.holds for outcome in outcomes), outcomes


@needs_transformers
@pytest.mark.parametrize("query_rank", [None, 40])
def test_deepseek_prefill_and_decode(query_rank: int | None) -> None:
    widths = {"kv_rank": 44, "nope_head_dim": 18, "rope_head_dim": 10, "value_head_dim": 14}
    outcomes = list(equality.deepseek_equality(_with(LatentAttention, query_rank=query_rank, **widths), 133))
    assert len(outcomes) == 4  # sdpa, reference, absorbed and the decode
    assert all(outcome.holds for outcome in outcomes), outcomes


def _with(kind: type[Mixer], **fields: object) -> ModelConfig:
    """Return a small model with another mixer in place of its attention."""
    mixer = kind.model_validate({"d_model": LLAMA.d_model, "num_heads": 6, **fields})
    block = LLAMA.blocks[0].model_copy(update={"mixer": mixer})
    return LLAMA.model_copy(update={"blocks": (block,)})


@needs_transformers
@torch.inference_mode()
def test_mamba2_decoding_returns_to_a_mark() -> None:
    from benchmarks.peers import hf_mamba2

    mixer = Mamba2(d_model=48, num_heads=3, inner_dim=96, state_size=8)
    config = mamba2_config(mixer, num_layers=2, vocab_size=97)
    tokens = pairs.random_tokens(config, 9)
    decoding = hf_mamba2.CachedDecoding(hf_mamba2.build_peer(config, seed=1), tokens[:, :7])
    mark = decoding.mark()
    runs = []
    for _ in range(2):
        decoding.rewind(mark)
        runs.append(torch.cat([decoding.step(tokens[:, t : t + 1]) for t in (7, 8)]))
    assert torch.equal(*runs)
    assert not torch.equal(runs[0][0], runs[0][1])


@needs_transformers
def test_gpt_neox() -> None:
    outcomes = list(equality.gpt_neox_equality(GPT, 133))
    assert len(outcomes) == 5
    assert all(outcome.holds for outcome in outcomes), outcomes


@needs_yar
def test_yet_another_retnet() -> None:
    outcomes = list(equality.yar_equality(PAPER, 133))
    assert len(outcomes) == 5
    assert all(outcome.holds for outcome in outcomes), outcomes


def test_fla_formula() -> None:
    outcomes = list(equality.fla_equality(FLA, 37))
    assert len(outcomes) == 5
    assert all(outcome.holds for outcome in outcomes), outcomes


def test_operator_against_the_definition() -> None:
    outcomes = list(equality.loop_equality(149))
    assert [outcome.limit.high for outcome in outcomes] == [1e-12, 1e-12]
    assert all(outcome.holds for outcome in outcomes), outcomes


def _swap(first: str, second: str) -> Callable[[dict[str, Tensor]], None]:
    def swap(weights: dict[str, Tensor]) -> None:
        weights[first], weights[second] = weights[second], weights[first]

    return swap


@pytest.mark.parametrize(
    "fault",
    [
        _swap("model.layers.1.attn.q_proj.weight", "model.layers.1.attn.k_proj.weight"),
        _swap("model.layers.0.attn.v_proj.weight", "model.layers.0.attn.g_proj.weight"),
        _swap("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        _swap("model.layers.0.attn_norm.weight", "model.layers.0.mlp_norm.weight"),
        _swap("model.layers.0.attn.g_norm_swish_gate.weight", "model.layers.1.attn.g_norm_swish_gate.weight"),
        _swap("model.embeddings.weight", "lm_head.weight"),
    ],
)
def test_a_wrongly_mapped_weight_is_seen(fault: Callable[[dict[str, Tensor]], None]) -> None:
    weights = fla_retnet.draw_weights(FLA, seed=1)
    tokens = pairs.random_tokens(FLA, 19)
    expected = fla_retnet.logits(weights, FLA, tokens[0])[None]
    fault(weights)
    ours = pairs.carry(FLA, pairs.map_weights("fla", FLA, weights))
    with torch.inference_mode():
        assert not error_outcome("", ours(tokens), expected, FP32_LIMIT).holds


def test_every_weight_must_be_given() -> None:
    weights = pairs.map_weights("fla", FLA, fla_retnet.draw_weights(FLA, seed=1))
    del weights["blocks.1.ffn_norm.weight"]
    with pytest.raises(RuntimeError, match=r"blocks\.1\.ffn_norm\.weight"):
        pairs.carry(FLA, weights)


def test_weights_whose_format_asks_for_the_shapes_of_the_model_are_mapped() -> None:
    weights = draw_fla_gla(GLA)
    ours = pairs.carry(GLA, pairs.map_weights("fla_gla", GLA, weights), dtype=torch.float64)
    stored = weights["model.layers.1.attn.gk_proj.1.weight"]
    assert torch.equal(ours.get_parameter("blocks.1.mixer.decay_proj.weight"), stored)


@needs_yar
def test_the_operator_is_that_of_yet_another_retnet() -> None:
    assert training.yar_operator_equality().holds
