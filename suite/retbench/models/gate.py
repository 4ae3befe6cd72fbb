"""The equality gate: before a model is timed, its forms are shown to be one function, on this machine, at this dtype.

Errors are max |difference| over the root mean square of the reference. The reference is one whole pass of the form or
backend that will be timed; by causality its first tokens are the reference for every shorter prompt.
"""

import torch
from torch import Tensor

from retbench.errors import ConfigError
from retbench.models.decoder import Decoder
from retbench.models.state import DecoderState
from retbench.records import Gate, GateCheck

LENGTHS = (1, 17, 127, 513, 2047)
"""Odd prompt lengths up to 2K: one token, parts of a chunk, and several chunks with a remainder."""

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.05}
"""By dtype, for the logits of a whole model. Wider than what the operator alone is held to by the tests (1e-12 in
float64, 1e-4 in float32): every norm divides by what may be small, and so amplifies the rounding before it."""

DECODED_TOKENS = 16
UNEVEN_SEGMENT = 509


@torch.no_grad()
def run_gate(model: Decoder, tokens: Tensor, *, depth: int, lengths: tuple[int, ...] = LENGTHS) -> Gate:
    """Compare a model's backends with each other, its decoding with its prefill, and a streamed state with a whole one.

    Args:
        model: The model as it will be timed; its backend is the same afterwards, even where a pass fails.
        tokens: Real text, (1, L) int64, with L at least `depth` and the longest of `lengths`.
        depth: Tokens over which a state streamed in uneven segments is compared with one built in a single pass.
        lengths: Odd prompt lengths; the other backends are compared at the longest.

    Returns:
        Every check with its error and limit; `passed` only when all are within.

    Raises:
        ConfigError: too few tokens.
    """
    longest = max(*lengths, DECODED_TOKENS + 1)
    if tokens.shape[1] < max(depth, longest):
        raise ConfigError(f"the gate needs {max(depth, longest)} tokens of text and got {tokens.shape[1]}.")
    total = max(depth, longest)
    own, whole = model.backend, model.init_state(1, total)
    reference = model(tokens[:, :total], whole)  # (1, total, N)
    checks = [
        _check(model, f"{own}, short = long", length, model(tokens[:, :length]), reference[:, :length])
        for length in lengths
    ]
    try:
        for name, reason in model.backends().items():
            if reason is None and name != own:
                model.set_backend(name)
                found = model(tokens[:, :longest])
                checks.append(_check(model, f"{name} = {own}", longest, found, reference[:, :longest]))
    finally:
        model.set_backend(own)
    checks += _check_streaming(model, tokens[:, :total], longest, reference, whole)
    return Gate(
        passed=all(check.passed for check in checks),
        dtype=str(model.dtype).removeprefix("torch."),
        checks=tuple(checks),
    )


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Largest |found - reference| over the root mean square of the reference; infinite where either is not finite."""
    found, reference = found.double(), reference.double()
    error = float((found - reference).abs().max() / reference.square().mean().sqrt().clamp_min(1e-300))
    return error if error == error else float("inf")


def _check(model: Decoder, name: str, length: int, found: Tensor, reference: Tensor) -> GateCheck:
    """One comparison at the limit of the model's dtype."""
    error = relative_error(found, reference)
    return GateCheck(name=name, length=length, error=error, limit=LIMITS[model.dtype])


def _check_streaming(
    model: Decoder, tokens: Tensor, prompt_len: int, reference: Tensor, whole: DecoderState
) -> list[GateCheck]:
    """Prefill in uneven segments, decode some tokens, go on in segments to the end: against the one whole pass."""
    own, total = model.backend, tokens.shape[1]
    start = prompt_len - DECODED_TOKENS
    state = model.init_state(1, total)
    logits = [model.prefill(tokens[:, :start], state, segment_len=UNEVEN_SEGMENT)]
    logits += [model(tokens[:, t : t + 1], state) for t in range(start, prompt_len)]
    decoded = _check(
        model, f"decode = {own}", prompt_len, torch.cat(logits, dim=1), reference[:, start - 1 : prompt_len]
    )
    if total > prompt_len:
        model.prefill(tokens[:, prompt_len:], state, segment_len=UNEVEN_SEGMENT)
    error = _state_error(state, whole)
    return [
        decoded,
        GateCheck(name="streamed state = whole", length=total, error=error, limit=LIMITS[model.dtype]),
    ]


def _state_error(found: DecoderState, reference: DecoderState) -> float:
    """Largest error of any tensor of a state, each by its own root mean square, so that every layer counts.

    One tensor after the other: all of them in float64 would be four times a key-value cache of many gigabytes.
    """
    expected = reference.tensors()
    errors = [
        relative_error(tensor, expected[name])
        for name, tensor in found.tensors().items()
        if name != "position"
    ]
    return max(errors)
