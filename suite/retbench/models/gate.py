"""The equality gate: before a model is timed, its forms are shown to be one function, on this machine, at this dtype.

The reference is one whole pass of the form or backend that will be timed; by causality its first tokens are the
reference for every shorter prompt. In float32 and wider logits are compared, and errors are max |difference| over the
root mean square of the reference. In two bytes mixers are, each from the same inputs: `same_inputs` says why.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from retbench.errors import ConfigError
from retbench.models.decoder import Decoder
from retbench.models.same_inputs import MixerComparison
from retbench.models.state import DecoderState
from retbench.records.record import Gate, GateCheck

LENGTHS = (1, 17, 127, 513, 2047)
"""Odd prompt lengths up to 2K: one token, parts of a chunk, and several chunks with a remainder."""

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.05}
"""By dtype, for the logits of a whole model. Wider than what the operator alone is held to by the tests (1e-12 in
float64, 1e-4 in float32): every norm divides by what may be small, and so amplifies the rounding before it. In two
bytes not even these hold between forms of many layers, and the gate has others."""

DECODED_TOKENS = 16
UNEVEN_SEGMENT = 509
SHORT_PROMPT, SHORT_SEGMENT = 7, 3
"""Decoding is tried near the beginning too: in two bytes one key more or less is lost among thousands."""


class _Comparison(Protocol):
    """One whole pass, and how far others are from it."""

    limit: float

    def error(self, run: Callable[[], Tensor], start: int, end: int) -> float:
        """How far a run over the tokens start .. end - 1 is off; it gives the logits of the last of them."""
        ...

    def state_error(self, found: DecoderState, reference: DecoderState) -> float:
        """Largest error of any tensor of a state."""
        ...


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
    longest = max(*lengths, SHORT_PROMPT + DECODED_TOKENS)
    total = max(depth, longest)
    if tokens.shape[1] < total:
        raise ConfigError(f"the gate needs {total} tokens of text and got {tokens.shape[1]}.")
    tokens, whole = tokens[:, :total], model.init_state(1, total)
    reference: _Comparison
    if model.dtype.itemsize == 2:
        reference = MixerComparison(model, tokens, whole, longest)
    else:
        reference = _LogitComparison(model, tokens, whole)
    checks = _check_prompts(model, tokens, lengths, reference)
    checks += _check_backends(model, tokens[:, :longest], reference)
    checks += _check_streaming(model, tokens, longest, reference, whole)
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


class _LogitComparison:
    """By logits, of the whole pass over `tokens` (1, T) that advances `state`, an empty one."""

    def __init__(self, model: Decoder, tokens: Tensor, state: DecoderState) -> None:
        self.limit = LIMITS[model.dtype]
        self._logits = model(tokens, state)  # (1, T, N)

    def error(self, run: Callable[[], Tensor], start: int, end: int) -> float:
        """By `relative_error`; start is where it is."""
        found = run()
        return relative_error(found, self._logits[:, end - found.shape[1] : end])

    def state_error(self, found: DecoderState, reference: DecoderState) -> float:
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


def _check_prompts(
    model: Decoder, tokens: Tensor, lengths: tuple[int, ...], reference: _Comparison
) -> list[GateCheck]:
    """Shorter prompts against the beginning of the whole pass."""
    name, checks = f"{model.backend}, short = long", []
    for length in lengths:
        error = reference.error(partial(model, tokens[:, :length]), 0, length)
        checks.append(GateCheck(name=name, length=length, error=error, limit=reference.limit))
    return checks


def _check_backends(model: Decoder, prompt: Tensor, reference: _Comparison) -> list[GateCheck]:
    """Every other backend that can be used here, over a prompt (1, T)."""
    own, length, checks = model.backend, prompt.shape[1], []
    try:
        for name, reason in model.backends().items():
            if reason is None and name != own:
                model.set_backend(name)
                error = reference.error(partial(model, prompt), 0, length)
                checks.append(
                    GateCheck(name=f"{name} = {own}", length=length, error=error, limit=reference.limit)
                )
    finally:
        model.set_backend(own)
    return checks


def _check_streaming(
    model: Decoder, tokens: Tensor, prompt_len: int, reference: _Comparison, whole: DecoderState
) -> list[GateCheck]:
    """Prefill in uneven segments, decode some tokens, go on in segments to the end: against the one whole pass."""
    total, limit, short = tokens.shape[1], reference.limit, SHORT_PROMPT + DECODED_TOKENS
    state = model.init_state(1, total)
    decode_early = partial(_decode, model, tokens[:, :short], model.init_state(1, short), SHORT_SEGMENT)
    decode = partial(_decode, model, tokens[:, :prompt_len], state, UNEVEN_SEGMENT)
    decoded = max(reference.error(decode_early, 0, short), reference.error(decode, 0, prompt_len))
    if total > prompt_len:
        go_on = partial(model.prefill, tokens[:, prompt_len:], state, segment_len=UNEVEN_SEGMENT)
        reference.error(go_on, prompt_len, total)  # what the state comes to is compared
    error = reference.state_error(state, whole)
    return [
        GateCheck(name=f"decode = {model.backend}", length=prompt_len, error=decoded, limit=limit),
        GateCheck(name="streamed state = whole", length=total, error=error, limit=limit),
    ]


def _decode(model: Decoder, tokens: Tensor, state: DecoderState, segment_len: int) -> Tensor:
    """Logits (1, 1 + DECODED_TOKENS, N) of the end of the prompt that is prefilled, and of each token decoded then."""
    start = tokens.shape[1] - DECODED_TOKENS
    logits = [model.prefill(tokens[:, :start], state, segment_len=segment_len)]
    logits += [model(tokens[:, t : t + 1], state) for t in range(start, tokens.shape[1])]
    return torch.cat(logits, dim=1)
