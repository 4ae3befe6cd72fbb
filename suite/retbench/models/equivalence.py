"""Equivalence check: all execution modes of a model agree, on this machine and at this dtype, before it is timed.

The reference is a single pass over all tokens with the backend to be timed. By causality its first tokens are the
reference for every shorter prompt. In float32 and wider the check compares logits; an error is max |difference| over
the root mean square of the reference. In 16-bit dtypes it compares mixers on equal inputs, for the reason that
`mixer_comparison` gives; the logits of a model whose mixers are not known here are compared at every dtype. Records
keep the result as `gate`.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from retbench.errors import ConfigError
from retbench.mixers.module import MixerModule
from retbench.models.decoder import Decoder
from retbench.models.language_model import LanguageModel
from retbench.models.mixer_comparison import MixerComparison
from retbench.models.state import DecoderState
from retbench.records.record import Gate, GateCheck

LENGTHS = (1, 17, 127, 513, 2047)
"""Odd prompt lengths up to 2K: one token, less than a chunk, and several chunks with a remainder."""

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.05}
"""Largest error of a model's logits by dtype. The tests' limits for the operator alone are lower (1e-12 in float64,
1e-4 in float32), because every norm divides by a value that may be small and so amplifies earlier rounding. In 16-bit
dtypes forms of many layers exceed even these limits, so `mixer_comparison` has others."""

DECODED_TOKENS = 16
UNEVEN_SEGMENT = 509
SHORT_PROMPT, SHORT_SEGMENT = 7, 3
"""Decoding is checked near the beginning too: one extra or missing key among thousands is lost in 16-bit rounding."""
BATCHED_STEPS = 4
"""Tokens decoded by a batch: what passes from one sequence to another does so at every step."""


class _PassComparison(Protocol):
    """Errors of other passes relative to one pass over all tokens."""

    limit: float

    def error(self, run: Callable[[], Tensor], start: int, end: int) -> float:
        """Return the error of a run over tokens start .. end - 1 that returns the logits of the last of them."""
        ...

    def state_error(self, found: DecoderState, reference: DecoderState) -> float:
        """Return the largest error of any tensor of a state."""
        ...


@torch.no_grad()
def check_equivalence(
    model: LanguageModel, tokens: Tensor, *, depth: int, lengths: tuple[int, ...] = LENGTHS
) -> Gate:
    """Check that all backends, decoding after prefill, and a state built in segments agree with a single pass.

    Args:
        model: The model as it will be timed; its backend is unchanged afterwards, even if a pass fails.
        tokens: Real text, (1, L) int64, with L at least `depth` and the longest of `lengths`.
        depth: Tokens over which a state built in uneven segments is compared with one built in a single pass.
        lengths: Odd prompt lengths; other backends are compared at the longest.

    Returns:
        Every check with its error and limit; `passed` if no error exceeds its limit.

    Raises:
        ConfigError: too few tokens, or a mixer does not note the executed backend, returns another kind of tensor than
            it gets, or leaves a tensor of its state unwritten.
    """
    longest = max(*lengths, SHORT_PROMPT + DECODED_TOKENS)
    total = max(depth, longest)
    if tokens.shape[1] < total:
        raise ConfigError(f"the equivalence check needs {total} tokens of text and got {tokens.shape[1]}.")
    if isinstance(model, Decoder):
        _check_modules(model, tokens[:, :2])
    tokens, whole = tokens[:, :total], model.init_state(1, total)
    reference: _PassComparison
    if model.dtype.itemsize == 2 and isinstance(model, Decoder):
        reference = MixerComparison(model, tokens, whole, longest)
    else:
        reference = _LogitComparison(model, tokens, whole)
    if isinstance(model, Decoder):
        _check_state(model, whole)
    checks = _check_prompts(model, tokens, lengths, reference)
    checks += _check_backends(model, tokens[:, :longest], reference)
    checks += _check_streaming(model, tokens, longest, reference, whole)
    checks += _check_mixing(model, tokens, reference.limit) + _check_batch(model, tokens)
    return Gate(
        passed=all(check.passed for check in checks),
        dtype=str(model.dtype).removeprefix("torch."),
        checks=tuple(checks),
    )


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Return max |found - reference| over the root mean square of the reference; infinity if either is not finite."""
    # In float32 the difference of close values is exact, and copies of all logits in float64 took a tenth of the check.
    wide = torch.promote_types(torch.promote_types(found.dtype, reference.dtype), torch.float32)
    largest = (found.to(wide) - reference.to(wide)).abs().max().double()
    norm = torch.linalg.vector_norm(reference.to(wide), dtype=torch.float64)
    error = float(largest / (norm / reference.numel() ** 0.5).clamp_min(1e-300))
    return error if error == error else float("inf")


def step_error(found: Tensor, eager: Tensor) -> float:
    """Return the distance of decoded logits (B, T, N) from those of an eager pass; `LIMITS` has the largest allowed.

    It is their `relative_error`. In 16-bit dtypes it is the largest root mean square of a sequence's differences over
    that of its logits: compiled code rounds less often than eager operators, and of many logits of an untrained model
    one differs by more than half from that alone. Logits of another token differ by 1.4 on average.
    """
    if eager.dtype.itemsize > 2:
        return relative_error(found, eager)
    differences = torch.linalg.vector_norm(found.float() - eager.float(), dim=(1, 2))
    norms = torch.linalg.vector_norm(eager.float(), dim=(1, 2)).clamp_min(1e-30)
    error = float((differences / norms).max())
    return error if error == error else float("inf")


@torch.no_grad()
def decoding_error(model: LanguageModel, tokens: Tensor) -> float:
    """Return the `step_error` of the logits of the last tokens of (1, T), decoded, to a pass without a state."""
    length = tokens.shape[1]
    start, state = max(1, length - DECODED_TOKENS), model.init_state(1, length)
    logits = [model.prefill(tokens[:, :start], state)]
    logits += [model(tokens[:, index : index + 1], state) for index in range(start, length)]
    return step_error(torch.cat(logits, dim=1), model.logits_of(model.features(tokens)[:, start - 1 :]))


class _LogitComparison:
    """Comparison of logits with those of one pass over `tokens` (1, T), which advances the empty `state`."""

    def __init__(self, model: LanguageModel, tokens: Tensor, state: DecoderState) -> None:
        self.limit = LIMITS[model.dtype]
        self._logits = model(tokens, state)  # (1, T, N)

    def error(self, run: Callable[[], Tensor], start: int, end: int) -> float:
        """Return the `relative_error` of the logits of the last tokens before `end`."""
        found = run()
        return relative_error(found, self._logits[:, end - found.shape[1] : end])

    def state_error(self, found: DecoderState, reference: DecoderState) -> float:
        """Return the largest error of any tensor of a state, each relative to its own root mean square.

        Tensors are converted one by one: all in float64 would take four times the memory of a large key-value cache.
        """
        expected = reference.tensors()
        errors = [
            relative_error(tensor, expected[name])
            for name, tensor in found.tensors().items()
            if name != "position"
        ]
        return max(errors)


def _check_prompts(
    model: LanguageModel, tokens: Tensor, lengths: tuple[int, ...], reference: _PassComparison
) -> list[GateCheck]:
    """Compare shorter prompts with the beginning of the reference pass."""
    name, checks = f"{model.backend}, short = long", []
    for length in lengths:
        error = reference.error(partial(model, tokens[:, :length]), 0, length)
        checks.append(GateCheck(name=name, length=length, error=error, limit=reference.limit))
    return checks


def _check_backends(model: LanguageModel, prompt: Tensor, reference: _PassComparison) -> list[GateCheck]:
    """Compare every other backend that is available here over a prompt (1, T)."""
    own, length, checks = model.backend, prompt.shape[1], []
    try:
        for name in model.other_backends():
            model.set_backend(name)
            error = reference.error(partial(model, prompt), 0, length)
            checks.append(
                GateCheck(name=f"{name} = {own}", length=length, error=error, limit=reference.limit)
            )
    finally:
        model.set_backend(own)
    return checks


def _check_streaming(
    model: LanguageModel, tokens: Tensor, prompt_len: int, reference: _PassComparison, whole: DecoderState
) -> list[GateCheck]:
    """Prefill in uneven segments, decode some tokens, and prefill the rest; compare with the reference pass."""
    total, limit, short = tokens.shape[1], reference.limit, SHORT_PROMPT + DECODED_TOKENS
    state = model.init_state(1, total)
    early, steps = model.init_state(1, short), DECODED_TOKENS
    decode_early = partial(_decode, model, tokens[:, :short], early, SHORT_SEGMENT, steps)
    decode = partial(_decode, model, tokens[:, :prompt_len], state, UNEVEN_SEGMENT, steps)
    decoded = max(reference.error(decode_early, 0, short), reference.error(decode, 0, prompt_len))
    if total > prompt_len:
        go_on = partial(model.prefill, tokens[:, prompt_len:], state, segment_len=UNEVEN_SEGMENT)
        reference.error(go_on, prompt_len, total)  # the state afterwards is compared below
    error = reference.state_error(state, whole)
    return [
        GateCheck(name=f"decode = {model.backend}", length=prompt_len, error=decoded, limit=limit),
        GateCheck(name="streamed state = whole", length=total, error=error, limit=limit),
    ]


def _check_modules(model: Decoder, tokens: Tensor) -> None:
    """Read two tokens (1, 2), and raise a ConfigError for the first mixer that breaks the contract of its module.

    Every mixer returns a tensor like its input, and notes the executed backend of decode steps, which records state. A
    sum with the residual would hide a tensor of another shape or dtype.
    """

    def compare(mixer: MixerModule, args: tuple[Tensor, ...], out: object) -> None:
        expected, found = (
            f"{tuple(one.shape)} in {one.dtype}" if isinstance(one, Tensor) else type(one).__name__
            for one in (args[0], out)
        )
        if found != expected:
            raise ConfigError(
                f"{mixer.config.title}: the forward of its module returns {found} for an input of {expected}. Let it "
                "return a tensor of the input's shape and dtype."
            )

    handles = [mixer.register_forward_hook(compare) for mixer in model.mixers]
    try:
        state = model.init_state(1, 3)
        model(tokens, state)
        model(tokens[:, :1], state)
    finally:
        for handle in handles:
            handle.remove()
    for mixer in model.mixers:
        if "decode" not in mixer.executed:
            raise ConfigError(
                f"{mixer.config.title}: its module does not note the executed backend. Let its forward set "
                "self.executed['prefill'] and self.executed['decode'] to the name of the form or kernel."
            )


def _check_state(model: Decoder, state: DecoderState) -> None:
    """Raise a ConfigError for a tensor of a state after the reference pass that is zero, as it was allocated.

    Forms agree about a tensor that none writes, and its bytes would be measured as those of the model.
    """
    for block, layer in zip(model.config.layers, state.layers, strict=True):
        for name, tensor in layer.used(state.position).items():
            if not tensor.any():
                raise ConfigError(
                    f"{block.mixer.title}: after {state.position:,} tokens its state tensor '{name}' is still zero. "
                    "Let the forward of its module write it, or leave it out of the state of its configuration, "
                    "whose bytes are counted."
                )


def _check_mixing(model: LanguageModel, tokens: Tensor, limit: float) -> list[GateCheck]:
    """Return a failed check if a token has no effect on the next one: then nothing is mixed, and all forms agree.

    The error is 1, as of outputs that have nothing in common with those they should be.
    """
    other = tokens[tokens != tokens[0, 0]][:1]
    if not len(other):
        return []
    one, two = (model(torch.cat([first, tokens[0, 1:2]])[None])[:, -1] for first in (tokens[0, :1], other))
    if not torch.equal(one, two):
        return []
    return [GateCheck(name="a changed token changes the next output", length=2, error=1.0, limit=limit)]


def _check_batch(model: LanguageModel, tokens: Tensor) -> list[GateCheck]:
    """Return a failed check if the logits of a sequence depend on the other one of its batch.

    Both batches have one shape and so one rounding, so that logits can be compared in 16-bit dtypes too.
    """
    length, limit = SHORT_PROMPT + DECODED_TOKENS, LIMITS[model.dtype]
    pair = torch.cat([tokens[:, :length], tokens[:, -length:]])

    def run(rows: list[int]) -> Tensor:
        return _decode(model, pair[rows], model.init_state(2, length), SHORT_PROMPT, BATCHED_STEPS)

    together = run([0, 1])
    error = max(relative_error(together[row], run([row, row])[row]) for row in (0, 1))
    name = "a sequence does not depend on the others of its batch"
    return [] if error <= limit else [GateCheck(name=name, length=length, error=error, limit=limit)]


def _decode(
    model: LanguageModel, tokens: Tensor, state: DecoderState, segment_len: int, steps: int
) -> Tensor:
    """Prefill all but the last `steps` tokens and decode those; return logits (B, 1 + steps, N)."""
    start = tokens.shape[1] - steps
    logits = [model.prefill(tokens[:, :start], state, segment_len=segment_len)]
    logits += [model(tokens[:, t : t + 1], state) for t in range(start, tokens.shape[1])]
    return torch.cat(logits, dim=1)
