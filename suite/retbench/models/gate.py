"""The equality gate: before a model is timed, its forms are shown to be one function, on this machine, at this dtype.

Errors are max |difference| over the root mean square of the reference. The reference is the architecture's most
direct form (retention: parallel; attention: reference), which the tests hold against outside implementations.
"""

import torch
from torch import Tensor

from retbench.models.decoder import Decoder
from retbench.models.state import DecoderState
from retbench.records import Gate, GateCheck

LENGTHS = (1, 17, 127, 513, 2047)
"""Odd lengths up to 2K: one token, less than a chunk, a chunk less one, and several chunks with a remainder."""

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""By dtype, for the logits of a whole model. Twenty layers of norms amplify rounding: a retention near zero is blown up
by the norm of its head, so these are wider than what the operator itself is held to (1e-12 and 1e-4)."""

DECODED_TOKENS = 16
UNEVEN_SEGMENT = 509


@torch.no_grad()
def run_gate(model: Decoder, tokens: Tensor, *, depth: int, lengths: tuple[int, ...] = LENGTHS) -> Gate:
    """Compare every usable backend of a model, its decoding, and its streamed state.

    Args:
        model: The model as it will be timed; its backend is the same afterwards.
        tokens: Real text, (1, L) int64; lengths beyond L are left out.
        depth: Tokens over which a state streamed in uneven segments is compared with one built in whole; at most L.
        lengths: Prompt lengths at which backends are compared.

    Returns:
        Every check with its error and limit; `passed` only when all are within.
    """
    asked = model.backend
    checks = [*_compare_backends(model, tokens, lengths), _compare_decode(model, tokens, max(lengths))]
    model.set_backend(asked)
    checks += _compare_streamed(model, tokens[:, :depth])
    model.set_backend(asked)
    return Gate(
        passed=all(check.passed for check in checks),
        dtype=str(model.dtype).removeprefix("torch."),
        checks=tuple(checks),
    )


def relative_error(found: Tensor, reference: Tensor) -> float:
    """max |found - reference| over the root mean square of the reference; infinite where either is not finite."""
    found, reference = found.double(), reference.double()
    error = float((found - reference).abs().max() / reference.square().mean().sqrt().clamp_min(1e-300))
    return error if error == error else float("inf")


def _check(model: Decoder, name: str, length: int, found: Tensor, reference: Tensor) -> GateCheck:
    """One comparison at the limit of the model's dtype."""
    error = relative_error(found, reference)
    return GateCheck(name=name, length=length, error=error, limit=LIMITS[model.dtype])


def _compare_backends(model: Decoder, tokens: Tensor, lengths: tuple[int, ...]) -> list[GateCheck]:
    """Logits of each usable backend against the reference backend, at each length."""
    reference, *others = [name for name, reason in model.backends().items() if reason is None]
    checks = []
    for length in (length for length in lengths if length <= tokens.shape[1]):
        prompt = tokens[:, :length]
        model.set_backend(reference)
        expected = model(prompt)
        for name in others:
            model.set_backend(name)
            checks.append(_check(model, f"{name} = {reference}", length, model(prompt), expected))
    return checks


def _compare_decode(model: Decoder, tokens: Tensor, length: int) -> GateCheck:
    """Token-by-token decoding from a prefilled state against one pass of the reference backend."""
    reference = next(iter(model.backends()))
    length = min(length, tokens.shape[1])
    start = max(1, length - DECODED_TOKENS)
    model.set_backend(reference)
    expected = model(tokens[:, :length])[:, start - 1 :]
    state = model.init_state(1, length)
    logits = [model.prefill(tokens[:, :start], state)]
    logits += [model(tokens[:, t : t + 1], state) for t in range(start, length)]
    return _check(model, f"decode = {reference}", length, torch.cat(logits, dim=1), expected)


def _compare_streamed(model: Decoder, tokens: Tensor) -> list[GateCheck]:
    """State and logits after streaming in uneven segments against one whole pass, both in the model's own backend."""
    depth = tokens.shape[1]
    whole, streamed = model.init_state(1, depth), model.init_state(1, depth)
    expected = model.prefill(tokens, whole, segment_len=depth)
    found = model.prefill(tokens, streamed, segment_len=UNEVEN_SEGMENT)
    return [
        _check(model, "streamed = whole, logits", depth, found, expected),
        _check(model, "streamed = whole, state", depth, _flat(streamed), _flat(whole)),
    ]


def _flat(state: DecoderState) -> Tensor:
    """All values of a state, each layer divided by its root mean square so that every layer counts."""
    layers = [
        tensor.double().flatten() / tensor.double().square().mean().sqrt().clamp_min(1e-300)
        for name, tensor in state.tensors().items()
        if name != "position"
    ]
    return torch.cat(layers)
