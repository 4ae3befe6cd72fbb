"""Bars on the time per decoded token: compared with torchscale and transformers, over depth, and with bandwidth."""

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

import torch
from scipy import stats

from benchmarks.peers import pairs
from benchmarks.peers.equality import decode_logits
from benchmarks.peers.outcomes import CONFIDENCE, FP32_LIMIT, Limit, Outcome, error_outcome, speed_outcome
from benchmarks.peers.rounds import TIMED_STEPS, WARM_STEPS, OurDecoding, interleave, time_greedy
from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.checkpoints.loading import map_weights
from retbench.data.text import read_tokens
from retbench.measure.ceilings import measure_ceilings

STEPS = WARM_STEPS + TIMED_STEPS
SHALLOW, DEEP = 1024, 32768
LLAMA_LIMITS = {1024: 0.70, 4096: 0.60, 8192: 0.55}
BANDWIDTH_SIZE = "125m"
PROVEN_TOKENS = 16
"""Tokens decoded at depth on both sides, whose logits are compared before anything is timed."""


@torch.inference_mode()
def decode_torchscale(rounds: int) -> Iterator[Outcome]:
    """Time RetNet's decoding and torchscale's recurrent form at depth 1K, from the same weights and text.

    torchscale has no prefill into a state: its state is built by its own recurrent form, outside the clock.
    """
    from benchmarks.peers import torchscale_retnet

    config = pairs.torchscale_config()
    peer = torchscale_retnet.build_peer(config, seed=1)
    model = pairs.carry(config, map_weights("torchscale", config, peer.state_dict()))
    tokens = read_tokens(SHALLOW + PROVEN_TOKENS)[None]
    theirs = torchscale_retnet.RecurrentDecoding(peer, SHALLOW + STEPS)
    for t in range(SHALLOW):
        logits = theirs.step(tokens[:, t : t + 1])
    first, start = logits.argmax(dim=-1), theirs.mark()

    expected = [logits] + [theirs.step(tokens[:, t : t + 1]) for t in range(SHALLOW, tokens.shape[1])]
    found = decode_logits(model, tokens, SHALLOW)
    proof = error_outcome("decode-torchscale: equality", found, torch.cat(expected, dim=1), FP32_LIMIT)
    yield proof
    if not proof.holds:
        return

    def time_peer() -> float:
        theirs.rewind(start)
        return time_greedy(theirs.step, first)

    times = interleave({"ours": OurDecoding(model, tokens[:, :SHALLOW]), "theirs": time_peer}, rounds)
    yield speed_outcome("decode-torchscale", times["ours"], times["theirs"], Limit(high=0.70))


@torch.inference_mode()
def decode_llama(rounds: int, depth: int) -> Iterator[Outcome]:
    """Time the Transformer's decoding and transformers' Llama `generate` after a prompt of `depth` tokens.

    Each round calls `generate` on the whole prompt, and a streamer records when each new token is known. Only the time
    from one new token to the next counts: it excludes prefill and includes all work of `generate` per token.
    """
    from benchmarks.peers import hf_llama

    bar = f"decode-llama-{depth // 1024}k"
    config = pairs.llama_config()
    peer = hf_llama.build_peer(config, seed=1, max_len=depth + STEPS + 1)
    model = pairs.carry(config, map_weights("llama", config, peer.state_dict()))
    prompt = read_tokens(depth)[None]
    generated = hf_llama.generate(peer, prompt, PROVEN_TOKENS, with_logits=True)
    found = decode_logits(model, torch.cat([prompt, generated.tokens[:, :-1]], dim=1), depth)
    proof = error_outcome(f"{bar}: equality", found, generated.logits, FP32_LIMIT)
    yield proof
    if not proof.holds:
        return

    def time_peer() -> float:
        return hf_llama.median_step_s(peer, prompt, warm=WARM_STEPS, timed=TIMED_STEPS)

    times = interleave({"ours": OurDecoding(model, prompt), "theirs": time_peer}, rounds)
    yield speed_outcome(bar, times["ours"], times["theirs"], Limit(high=LLAMA_LIMITS[depth]))


@torch.inference_mode()
def depth_retnet(rounds: int) -> Iterator[Outcome]:
    """Compare RetNet's time per token and state bytes at depth 32K (ours) with those at depth 1K (theirs)."""
    model = pairs.plain(pairs.fla_config())
    prompt = read_tokens(DEEP)[None]
    deep, shallow = OurDecoding(model, prompt), OurDecoding(model, prompt[:, :SHALLOW])
    sizes = deep.state.num_bytes, shallow.state.num_bytes
    ratio = sizes[0] / sizes[1]
    yield Outcome("depth-retnet: state bytes", *sizes, ratio, ratio, ratio, Limit(1.0, 1.0))
    # The sides do equal work: only many rounds separate noise from a difference, and a round is short.
    times = interleave({"32K": deep, "1K": shallow}, 5 * rounds)
    yield speed_outcome("depth-retnet", times["32K"], times["1K"], Limit(0.95, 1.05))


@torch.inference_mode()
def bandwidth(rounds: int) -> Iterator[Outcome]:
    """Measure bytes per second of a decode step (ours) over the read bandwidth of the same round (theirs).

    The last line compares the two models: its `ratio` is the difference of their two ratios.
    """
    configs: dict[str, ModelConfig] = {
        "retnet": pairs.fla_config(BANDWIDTH_SIZE),
        "transformer": pairs.llama_config(BANDWIDTH_SIZE),
    }
    prompt = read_tokens(SHALLOW)[None]
    sides = {name: OurDecoding(pairs.plain(config), prompt) for name, config in configs.items()}
    read = {"read": lambda: measure_ceilings(torch.device("cpu"), torch.float32).read_bandwidth_bytes_per_s}
    values = interleave({**sides, **read}, rounds)
    middle = SHALLOW + WARM_STEPS + TIMED_STEPS // 2  # depth of the median step, up to one token
    shares = {}
    for name, config in configs.items():
        step_bytes = costs.decode_bytes(config, "float32", 1, middle)
        rates = [step_bytes / seconds for seconds in values[name]]
        shares[name] = [rate / ceiling for rate, ceiling in zip(rates, values["read"], strict=True)]
        yield speed_outcome(f"bandwidth-125m: {name}", rates, values["read"], Limit(low=0.50))
    yield _difference("bandwidth-125m: retnet - transformer", shares["retnet"], shares["transformer"])


def _difference(bar: str, ours: Sequence[float], theirs: Sequence[float]) -> Outcome:
    """Return the mean difference of two shares paired by round, with Student's t interval; the limit is 10 points."""
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    count = len(differences)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(differences) / count**0.5
    mean = fmean(differences)
    return Outcome(bar, fmean(ours), fmean(theirs), mean, mean - half, mean + half, Limit(-0.10, 0.10))
