"""Bars on the operator: its three forms agree in outputs, states and gradients; the error of bfloat16 decoding."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.peers import pairs
from benchmarks.peers.outcomes import Limit, Outcome, error_outcome, worst
from retbench.architectures.gla import GlaSpec
from retbench.architectures.matching import resolve_model
from retbench.architectures.rwkv6 import RwkvSpec
from retbench.data.text import read_tokens
from retbench.mixers.module import LinearOperatorModule
from retbench.models.decoder import Decoder
from retbench.ops.linear_operator import (
    INCLUSIVE,
    Readout,
    linear_chunkwise,
    linear_parallel,
    linear_recurrent,
    linear_step_,
)

LIMITS = {"float64": 1e-12, "float32": 1e-4}
CASES = ((257, 19, 100), (1023, 64, 511), (4095, 127, 2049))
"""Number of tokens, chunk size, and position at which the sequence is cut and resumed."""
KINDS = ("none", "fixed", "varying", "strong", "channel", "bonus", "normalised")
"""No decay; one per head; one per head and token, near 1 or down to e^-20; one per channel down to e^-20, read out with
the own token or before it with a bonus; and sums of positive weights, divided by their total."""
Form = Callable[..., tuple[Tensor, Tensor]]
"""A form of the operator, with its read-out."""
HEADS, KEY_DIM, VALUE_DIM = 2, 16, 32
BF16_DEPTH = 32768
BF16_TOKENS = 256
"""Tokens at the end of the sequence over which the bfloat16 errors are taken."""


def forms(dtype: str) -> Iterator[Outcome]:
    """Compare chunkwise and parallel with recurrent, whole and resumed, for every kind of decay; yield the worst."""
    bar, kind_of_float = f"forms-{dtype}", getattr(torch, dtype)
    found: dict[str, list[Outcome]] = {"output": [], "state": [], "gradient": []}
    for length, chunk_size, cut in CASES:
        chunkwise: Form = partial(linear_chunkwise, chunk_size=chunk_size)
        for kind in KINDS:
            expected = _run(linear_recurrent, kind_of_float, length, kind, 0)
            for name, form, start in (
                ("chunkwise", chunkwise, 0),
                ("chunkwise, resumed", chunkwise, cut),
                ("parallel", linear_parallel, 0),
                ("parallel, resumed", linear_parallel, cut),
            ):
                ours = _run(form, kind_of_float, length, kind, start)
                for part, outcomes in found.items():
                    label = (
                        f"{bar}: {part}, worst at {length} tokens, chunk {chunk_size}, {kind} decay, {name}"
                    )
                    outcomes += [
                        error_outcome(label, mine, reference, LIMITS[dtype])
                        for mine, reference in zip(ours[part], expected[part], strict=True)
                    ]
    for outcomes in found.values():
        yield worst(outcomes)


def _run(form: Form, dtype: torch.dtype, length: int, kind: str, cut: int) -> dict[str, list[Tensor]]:
    """Return outputs, last state and gradients of one form from a state; the sequence is cut at `cut` (0: whole)."""
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k, v = (draw(1, length, HEADS, width) for width in (KEY_DIM, KEY_DIM, VALUE_DIM))
    k = k * KEY_DIM**-0.5
    columns = VALUE_DIM
    if kind == "normalised":  # whose state has a column more, the sum of the keys
        q, k, columns = q.exp(), k.exp(), VALUE_DIM + 1
    state = draw(1, HEADS, KEY_DIM, columns)
    inputs = [q, k, v, state.abs() if kind == "normalised" else state]
    if (decay := _log_decay(kind, length, generator)) is not None:
        inputs.append(decay)
    if kind == "bonus":
        inputs.append(draw(HEADS, KEY_DIM))
    inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    q, k, v, state = inputs[:4]
    log_decay = inputs[4] if decay is not None else None
    readout = Readout(
        bonus=inputs[5] if kind == "bonus" else None, eps=1e-6 if kind == "normalised" else None
    )
    weights = draw(1, length, HEADS, VALUE_DIM).to(dtype), draw(1, HEADS, KEY_DIM, columns).to(dtype)

    outs, last = [], state
    for part in (slice(0, cut), slice(cut, length)):
        if part.stop > part.start:
            part_decay = log_decay
            if log_decay is not None and log_decay.dim() > 1:
                part_decay = log_decay[:, part]
            out, last = form(q[:, part], k[:, part], v[:, part], part_decay, last, readout=readout)
            outs.append(out)
    whole = torch.cat(outs, dim=1)
    gradients = torch.autograd.grad((whole * weights[0]).sum() + (last * weights[1]).sum(), inputs)
    return {"output": [whole.detach()], "state": [last.detach()], "gradient": list(gradients)}


def _log_decay(kind: str, length: int, generator: torch.Generator) -> Tensor | None:
    """Return the logs of decays of a kind, in float64; None without decay."""
    fixed = torch.log1p(-(2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64))))
    if kind in ("none", "normalised"):
        return None
    if kind == "fixed":
        return fixed
    channels = (KEY_DIM,) if kind in ("channel", "bonus") else ()
    shares = torch.rand(1, length, HEADS, *channels, generator=generator, dtype=torch.float64)
    return (
        fixed * (0.5 + shares) if kind == "varying" else -20 * shares**4
    )  # most are mild, and some forget all


@torch.inference_mode()
def forms_bfloat16() -> Iterator[Outcome]:
    """Compare errors of bfloat16 decoding at depth 32K (ours) and of the bfloat16 chunkwise form (theirs), from fp64.

    For the operators, queries, keys and values of the first layer of a model on real text go through 32,768 recurrent
    steps and through the chunkwise form with products in float32; errors are over the last 256 tokens. For each whole
    model, with the same text, its state is prefilled, those tokens are decoded, and the result is compared with one
    chunkwise pass.
    """
    model = pairs.plain(pairs.fla_config("1m"), dtype=torch.bfloat16)
    tokens = read_tokens(BF16_DEPTH)[None]
    yield _operator_error_ratio("forms-bfloat16: operator", model, tokens)
    rwkv = pairs.plain(resolve_model(RwkvSpec(architecture="rwkv6"), "1m"), dtype=torch.bfloat16)
    yield _operator_error_ratio("forms-bfloat16: operator of RWKV-6", rwkv, tokens)

    yield _model_error_ratio("forms-bfloat16: model", model, tokens)
    mamba2 = pairs.plain(pairs.mamba2_config("1m"), dtype=torch.bfloat16)
    yield _model_error_ratio("forms-bfloat16: Mamba-2", mamba2, tokens)
    gla = pairs.plain(resolve_model(GlaSpec(architecture="gla"), "1m"), dtype=torch.bfloat16)
    yield _model_error_ratio("forms-bfloat16: GLA", gla, tokens)


def _model_error_ratio(bar: str, model: Decoder, tokens: Tensor) -> Outcome:
    """Return the error of decoding the last tokens over that of one chunkwise pass, from the model in float64."""
    end, start = slice(-BF16_TOKENS, None), tokens.shape[1] - BF16_TOKENS
    whole = model(tokens)[:, end]
    carried = model.init_state(1, tokens.shape[1])
    model.prefill(tokens[:, :start], carried)
    decoded = torch.cat([model(tokens[:, t : t + 1], carried) for t in range(start, tokens.shape[1])], dim=1)
    wide = {name: weight.double() for name, weight in model.state_dict().items()}
    expected = pairs.carry(model.config, wide, dtype=torch.float64)(tokens)[:, end]
    return _error_ratio(bar, decoded, whole, expected)


class _Inputs(NamedTuple):
    """Inputs of an operator."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    readout: Readout = INCLUSIVE


def _operator_error_ratio(bar: str, model: Decoder, tokens: Tensor) -> Outcome:
    """Return the error of recurrent steps of a model's first operator over that of its chunkwise form."""
    q, k, v, log_decay, readout = _operator_inputs(model, tokens)
    bonus = None if readout.bonus is None else readout.bonus.double()
    wide = (one.double() for one in (q, k, v, log_decay))
    exact = linear_chunkwise(*wide, readout=readout._replace(bonus=bonus))[0]
    state = torch.zeros(1, v.shape[2], q.shape[3], v.shape[3])
    steps = []
    for t in range(tokens.shape[1]):
        part = slice(t, t + 1)
        decay = log_decay if log_decay.dim() == 1 else log_decay[:, part]
        steps.append(linear_step_(q[:, part], k[:, part], v[:, part], decay, state, readout=readout))
    chunkwise = linear_chunkwise(q, k, v, log_decay, readout=readout, wide_products=True)[0]
    end = slice(-BF16_TOKENS, None)
    return _error_ratio(bar, torch.cat(steps[end], dim=1), chunkwise[:, end], exact[:, end])


def _operator_inputs(model: Decoder, tokens: Tensor) -> _Inputs:
    """Return the inputs of the operator in the first layer of a chunkwise model."""
    mixer = model.mixers[0]
    assert isinstance(mixer, LinearOperatorModule)
    seen: list[_Inputs] = []
    form = mixer.forms["chunkwise"]

    def note(
        q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, **options: Readout
    ) -> tuple[Tensor, Tensor]:
        seen.append(_Inputs(q, k, v, log_decay, **options))
        return form(q, k, v, log_decay, state, **options)

    mixer.forms["chunkwise"] = note
    model(tokens, last_only=True)
    mixer.forms["chunkwise"] = form
    return seen[0]


def _error_ratio(bar: str, decoded: Tensor, chunkwise: Tensor, exact: Tensor) -> Outcome:
    """Return the error of decoding over the error of the chunkwise form, at most 2."""
    ours, theirs = (error_outcome(bar, found, exact, 1.0).ratio for found in (decoded, chunkwise))
    ratio = ours / theirs
    return Outcome(bar, ours, theirs, ratio, ratio, ratio, Limit(high=2.0))
