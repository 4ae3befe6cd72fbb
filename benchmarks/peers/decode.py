"""Bars on the time per decoded token: compared with torchscale and transformers, and with bandwidth."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from scipy import stats

from benchmarks.peers import pairs
from benchmarks.peers.equality import decode_logits
from benchmarks.peers.outcomes import (
    CONFIDENCE,
    FP32_LIMIT,
    Limit,
    Outcome,
    error_outcome,
    prove,
    speed_outcome,
)
from benchmarks.peers.rounds import TIMED_STEPS, WARM_STEPS, OurDecoding, interleave, time_greedy
from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.data.text import read_tokens
from retbench.measure.ceilings import measure_read_rate

STEPS = WARM_STEPS + TIMED_STEPS
SHALLOW = 1024
MEDIAN_DEPTH = SHALLOW + WARM_STEPS + TIMED_STEPS // 2
"""Depth of the median step of those timed from 1K on, up to one token."""
PROVEN_TOKENS = 16
"""Tokens decoded at depth on both sides, whose logits are compared before anything is timed."""


@torch.inference_mode()
def decode_torchscale(rounds: int, eager: float, compiled: float) -> Iterator[Outcome]:
    """Time RetNet's decoding and torchscale's recurrent form at depth 1K, from the same weights and text.

    torchscale has no prefill into a state: its state is built by its own recurrent form, outside the clock.

    Args:
        rounds: Rounds of the timing.
        eager: Largest ratio of our eager time.
        compiled: Largest ratio of our compiled time.
    """
    from benchmarks.peers import torchscale_retnet

    config = pairs.torchscale_config()
    peer = torchscale_retnet.build_peer(config, seed=1)
    weights = pairs.map_weights("torchscale", config, peer.state_dict())
    tokens = read_tokens(SHALLOW + PROVEN_TOKENS)[None]
    theirs = torchscale_retnet.RecurrentDecoding(peer, SHALLOW + STEPS)
    for t in range(SHALLOW):
        logits = theirs.step(tokens[:, t : t + 1])
    first, start = logits.argmax(dim=-1), theirs.mark()

    expected = [logits] + [theirs.step(tokens[:, t : t + 1]) for t in range(SHALLOW, tokens.shape[1])]
    found = decode_logits(pairs.carry(config, weights), tokens, SHALLOW)
    proof = error_outcome("decode-torchscale: equality", found, torch.cat(expected, dim=1), FP32_LIMIT)
    if not (yield from prove([proof])):
        return

    def time_peer() -> float:
        theirs.rewind(start)
        return time_greedy(theirs.step, first)

    limits = {"eager": eager, "compiled": compiled}
    prompt, continuation = tokens[:, :SHALLOW], tokens[:, SHALLOW:]
    ours = {
        name: OurDecoding(pairs.carry(config, weights), prompt, compiled=name == "compiled")
        for name in limits
    }
    found, reference = (ours[name].logits_of(continuation) for name in ("compiled", "eager"))
    yield error_outcome("decode-torchscale: equality, compiled", found, reference, FP32_LIMIT)
    times = interleave({**ours, "theirs": time_peer}, rounds)
    for name, limit in limits.items():
        yield speed_outcome(f"decode-torchscale: {name}", times[name], times["theirs"], Limit(high=limit))


@torch.inference_mode()
def decode_llama(rounds: int, depth: int, limit: float, static_limit: float) -> Iterator[Outcome]:
    """Time the Transformer's compiled decoding and transformers' Llama `generate` after a prompt of `depth` tokens.

    `generate` is a peer twice: with its default cache, and with its static cache and compiled steps. Each round calls
    it on the whole prompt, and a streamer records when each new token is known. Only the time from one new token to the
    next counts: it excludes prefill and includes all work of `generate` per token.

    Args:
        rounds: Rounds of the timing.
        depth: Tokens of the prompt.
        limit: Largest ratio of our time and that with the default cache.
        static_limit: Largest ratio of our time and that with the static cache, where both sides are compiled.
    """
    from benchmarks.peers import hf_llama

    bar = f"decode-llama-{depth // 1024}k"
    config = pairs.llama_config()
    peer = hf_llama.build_peer(config, seed=1, max_len=depth + STEPS + 1)
    model = pairs.carry(config, pairs.map_weights("llama", config, peer.state_dict()))
    prompt = read_tokens(depth)[None]
    # The compiled step of an earlier bar forbids all compilation.
    torch.compiler.set_stance("default")

    def equality(topic: str, *, static: bool) -> Outcome:
        generated = hf_llama.generate(peer, prompt, PROVEN_TOKENS, with_logits=True, static=static)
        found = decode_logits(model, torch.cat([prompt, generated.tokens[:, :-1]], dim=1), depth)
        return error_outcome(f"{bar}: {topic}", found, generated.logits, FP32_LIMIT)

    topics = {"equality": False, "equality, static cache": True}
    if not (yield from prove(equality(topic, static=static) for topic, static in topics.items())):
        return

    step = partial(hf_llama.median_step_s, peer, prompt, warm=WARM_STEPS, timed=TIMED_STEPS)
    ours = OurDecoding(model, prompt, compiled=True)
    times = interleave({"ours": ours, "theirs": step, "static": partial(step, static=True)}, rounds)
    yield speed_outcome(bar, times["ours"], times["theirs"], Limit(high=limit))
    yield speed_outcome(f"{bar}: static cache", times["ours"], times["static"], Limit(high=static_limit))


@torch.inference_mode()
def decode_mamba2(rounds: int, limit: float) -> Iterator[Outcome]:
    """Time our Mamba-2's eager decoding and that of transformers' Mamba2ForCausalLM at depth 1K, from equal weights.

    Both have the published inner width and 12 layers (29M parameters), and start from the state of their own prefill.
    """
    from benchmarks.peers import hf_mamba2

    config = pairs.mamba2_config(published=True)
    peer = hf_mamba2.build_peer(config, seed=1)
    model = pairs.carry(config, pairs.map_weights("mamba2", config, peer.state_dict()))
    tokens = read_tokens(SHALLOW + PROVEN_TOKENS)[None]
    prompt = tokens[:, :SHALLOW]
    theirs = hf_mamba2.CachedDecoding(peer, prompt)
    first, start = theirs.logits.argmax(dim=-1), theirs.mark()

    expected = [theirs.logits] + [theirs.step(tokens[:, t : t + 1]) for t in range(SHALLOW, tokens.shape[1])]
    found = decode_logits(model, tokens, SHALLOW)
    proof = error_outcome("decode-mamba2: equality", found, torch.cat(expected, dim=1), FP32_LIMIT)
    if not (yield from prove([proof])):
        return

    def time_peer() -> float:
        theirs.rewind(start)
        return time_greedy(theirs.step, first)

    times = interleave({"ours": OurDecoding(model, prompt), "theirs": time_peer}, rounds)
    yield speed_outcome("decode-mamba2", times["ours"], times["theirs"], Limit(high=limit))


@torch.inference_mode()
def decode_hf(
    rounds: int, depth: int, limit: float, fields: dict[str, Any] | None = None
) -> Iterator[Outcome]:
    """Time a model that transformers computes through retbench, and in transformers' own loop with a static cache.

    Both sides run the same module and the same weights, eagerly, with caches of the same capacity.

    Args:
        rounds: Rounds of the timing.
        depth: Tokens of the prompt.
        limit: Largest ratio of the time through retbench, which adds little.
        fields: Fields of LlamaConfig; SmolLM2-135M's when None.
    """
    from benchmarks.peers import hf_static

    bar = f"decode-hf-{depth // 1024}k"
    tokens = read_tokens(depth + PROVEN_TOKENS)[None]
    prompt = tokens[:, :depth]
    with hf_static.saved_model(fields or hf_static.SMOLLM2) as model:
        theirs = hf_static.StaticDecoding(model.inner, prompt, depth + STEPS + 1)
        first = theirs.logits.argmax(dim=-1)
        expected = [theirs.logits]
        expected += [theirs.step(tokens[:, t : t + 1]) for t in range(depth, tokens.shape[1])]
        proof = error_outcome(
            f"{bar}: equality", decode_logits(model, tokens, depth), torch.cat(expected, dim=1), FP32_LIMIT
        )
        if not (yield from prove([proof])):
            return

        def time_peer() -> float:
            theirs.rewind()
            return time_greedy(theirs.step, first)

        times = interleave({"ours": OurDecoding(model, prompt), "theirs": time_peer}, rounds)
        yield speed_outcome(bar, times["ours"], times["theirs"], Limit(high=limit))


@torch.inference_mode()
def bandwidth(rounds: int, size: str, limit: float) -> Iterator[Outcome]:
    """Measure bytes per second of a compiled step (ours) over the read bandwidth at its footprint (theirs).

    Each model reaches at least the share `limit`. The last line compares the two models: its `ratio` is the difference
    of their two ratios.
    """
    configs: dict[str, ModelConfig] = {
        "retnet": pairs.fla_config(size),
        "transformer": pairs.llama_config(size),
    }
    prompt = read_tokens(SHALLOW)[None]
    step_bytes = {
        name: costs.decode_bytes(config, "float32", 1, MEDIAN_DEPTH) for name, config in configs.items()
    }
    sides: dict[str, Callable[[], float]] = {}
    for name, config in configs.items():
        sides[name] = OurDecoding(pairs.plain(config), prompt, compiled=True)
        sides[f"read {name}"] = partial(read_bytes_per_s, step_bytes[name])
    values = interleave(sides, rounds)
    shares = {}
    for name in configs:
        rates, ceilings = [step_bytes[name] / seconds for seconds in values[name]], values[f"read {name}"]
        shares[name] = [rate / ceiling for rate, ceiling in zip(rates, ceilings, strict=True)]
        yield speed_outcome(f"bandwidth-{size}: {name}", rates, ceilings, Limit(low=limit, high=1.0))
    yield _difference(f"bandwidth-{size}: retnet - transformer", shares["retnet"], shares["transformer"])


def read_bytes_per_s(footprint_bytes: int) -> float:
    """Measure the read bandwidth over a footprint."""
    return measure_read_rate(torch.device("cpu"), footprint_bytes).bytes_per_s


def _difference(bar: str, ours: Sequence[float], theirs: Sequence[float]) -> Outcome:
    """Return the mean difference of two shares paired by round, with Student's t interval; the limit is 8 points."""
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    count = len(differences)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(differences) / count**0.5
    mean = fmean(differences)
    return Outcome(bar, fmean(ours), fmean(theirs), mean, mean - half, mean + half, Limit(-0.08, 0.08))
