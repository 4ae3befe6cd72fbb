"""Bar on training: forward and backward of one sequence, compared with the fastest form of the peers."""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import geometric_mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import pairs
from benchmarks.peers.outcomes import FP32_LIMIT, Limit, Outcome, error_outcome, prove, speed_outcome, worst
from benchmarks.peers.rounds import interleave
from retbench.data.text import read_tokens
from retbench.measure.clock import time_call
from retbench.models.decoder import Decoder
from retbench.ops.decay import decay_schedule
from retbench.ops.linear_operator import linear_parallel

LENGTH = 2048
GRADIENT_LIMIT = 1e-3
"""Wider than for logits: only the embedding rows of the text's bytes have a gradient, so that its rms is small."""
WITHIN = 1.3
"""Forms that take longer than this factor times the fastest in a first trial are not timed further."""

Forward = Callable[[Tensor], Tensor]


def training_step(module: nn.Module, forward: Forward, tokens: Tensor) -> Tensor:
    """Compute the cross-entropy of tokens (1, T + 1) with gradients in `.grad`, and return the logits (1, T, N)."""
    module.zero_grad(set_to_none=True)
    logits = forward(tokens[:, :-1])
    F.cross_entropy(logits.flatten(0, 1), tokens[0, 1:]).backward()
    return logits.detach()


def training(rounds: int, limit: float) -> Iterator[Outcome]:
    """Time forward + backward at length 2,048, ours and the fastest form of torchscale and yet-another-retnet.

    All have equal numbers of parameters and so nearly the same matrix products, which take most of a step. No form can
    be much faster without faster products. So `limit` is that of the ratio to the fastest form.
    """
    from benchmarks.peers import torchscale_retnet, yar_retnet

    config = pairs.torchscale_config(norm_eps=pairs.TINY_EPS)
    parallel = torchscale_retnet.build_peer(config, seed=1)
    chunkwise = torchscale_retnet.build_peer(config, seed=1, chunkwise=True)
    yar = yar_retnet.build_matched_peer(config, seed=1)
    model = pairs.carry(config, pairs.map_weights("torchscale", config, parallel.state_dict()))
    tokens = read_tokens(LENGTH + 1)[None]
    if not (yield from prove([*_equality(model, parallel, tokens), yar_operator_equality()])):
        return
    peers = {
        "torchscale parallel": _timer(parallel, lambda x: parallel(x)[0], tokens),
        "torchscale chunkwise": _timer(chunkwise, lambda x: chunkwise(x)[0], tokens),
        "yet-another-retnet parallel": _timer(yar, yar.forward_parallel, tokens),
        "yet-another-retnet chunkwise": _timer(yar, partial(yar_retnet.forward_chunkwise, yar), tokens),
    }
    trial = {name: time_step() for name, time_step in peers.items()}
    kept = {name: peers[name] for name in peers if trial[name] <= WITHIN * min(trial.values())}
    times = interleave({"ours": _timer(model, model, tokens), **kept}, rounds)
    best = min(kept, key=lambda name: geometric_mean(times[name]))
    yield speed_outcome(f"training: {best}", times["ours"], times[best], Limit(high=limit))


def _timer(module: nn.Module, forward: Forward, tokens: Tensor) -> Callable[[], float]:
    """Return a function that times one training step."""
    return lambda: time_call(lambda: training_step(module, forward, tokens))


def _equality(model: Decoder, peer: nn.Module, tokens: Tensor) -> Iterator[Outcome]:
    """Compare logits and the gradient of every weight with torchscale's parallel form."""
    logits = training_step(model, model, tokens)
    expected = training_step(peer, lambda x: peer(x)[0], tokens)
    yield error_outcome("training: equality, logits", logits, expected, FP32_LIMIT)
    mapped = pairs.map_weights("torchscale", model.config, gradients(peer))
    errors = [
        error_outcome(
            f"training: equality, worst gradient, of {name}", gradient, mapped[name], GRADIENT_LIMIT
        )
        for name, gradient in gradients(model).items()
    ]
    yield worst(errors)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Return the gradient of every weight that has one."""
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


def yar_operator_equality() -> Outcome:
    """Compare the operator with yet-another-retnet's, whose weights fit no model of ours, at the paper's decays."""
    from yet_another_retnet.retention import retention_parallel as their_parallel

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 513, 8, 32, generator=generator) for _ in range(3))
    ours = linear_parallel(q, k * 32**-0.5, v, decay_schedule("paper", 8))[0]
    theirs = their_parallel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))[0].transpose(1, 2)
    return error_outcome("training: equality, operator = yet-another-retnet", ours, theirs, FP32_LIMIT)
