"""Bars on prefill: a prompt, chunk by chunk, to the logits of its last token."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.peers import pairs
from benchmarks.peers.outcomes import FP32_LIMIT, Limit, Outcome, error_outcome, prove, speed_outcome
from benchmarks.peers.rounds import interleave, time_median
from retbench.data.text import read_tokens

PROMPT_LEN = 8192
PROVEN_LEN = 2047
MAMBA2_PROMPT_LEN = 1024


@torch.inference_mode()
def prefill_torchscale(rounds: int, limit: float) -> Iterator[Outcome]:
    """Time our prefill of 8,192 tokens and torchscale's chunkwise form (chunk 512, its default) on equal weights.

    Both return the logits of the last token; torchscale computes its features and projects the last one. Ours also
    returns the state from which decoding continues, which torchscale's chunkwise form cannot.
    """
    from benchmarks.peers import torchscale_retnet

    config = pairs.torchscale_config(norm_eps=pairs.TINY_EPS)
    peer = torchscale_retnet.build_peer(config, seed=1, chunkwise=True)
    model = pairs.carry(config, pairs.map_weights("torchscale", config, peer.state_dict()))
    tokens = read_tokens(PROMPT_LEN)[None]
    part = tokens[:, :PROVEN_LEN]
    whole = model.prefill(tokens, model.init_state(1, PROMPT_LEN))
    proofs = [
        error_outcome("prefill-torchscale: equality, 2,047 tokens", model(part), peer(part)[0], FP32_LIMIT),
        error_outcome(
            "prefill-torchscale: equality, last of 8,192",
            whole,
            torchscale_retnet.last_logits(peer, tokens),
            FP32_LIMIT,
        ),
    ]
    if not (yield from prove(proofs)):
        return
    sides = {
        "ours": lambda: time_median(lambda: model.prefill(tokens, model.init_state(1, PROMPT_LEN))),
        "theirs": lambda: time_median(lambda: torchscale_retnet.last_logits(peer, tokens)),
    }
    times = interleave(sides, rounds)
    yield speed_outcome("prefill-torchscale", times["ours"], times["theirs"], Limit(high=limit))


@torch.inference_mode()
def prefill_mamba2(rounds: int, limit: float) -> Iterator[Outcome]:
    """Time our Mamba-2's prefill of 1,024 tokens and that of transformers' Mamba2ForCausalLM from equal weights.

    Both have the published inner width and 12 layers (29M parameters), return the logits of the last token, and keep
    the state from which decoding continues.
    """
    from benchmarks.peers import hf_mamba2

    config = pairs.mamba2_config(published=True)
    peer = hf_mamba2.build_peer(config, seed=1)
    model = pairs.carry(config, pairs.map_weights("mamba2", config, peer.state_dict()))
    tokens = read_tokens(MAMBA2_PROMPT_LEN)[None]

    def prefill() -> Tensor:
        return model.prefill(tokens, model.init_state(1, MAMBA2_PROMPT_LEN))

    expected = hf_mamba2.last_logits(peer, tokens)
    proof = error_outcome("prefill-mamba2: equality", prefill(), expected, FP32_LIMIT)
    if not (yield from prove([proof])):
        return
    sides = {
        "ours": lambda: time_median(prefill),
        "theirs": lambda: time_median(lambda: hf_mamba2.last_logits(peer, tokens)),
    }
    times = interleave(sides, rounds)
    yield speed_outcome("prefill-mamba2", times["ours"], times["theirs"], Limit(high=limit))
