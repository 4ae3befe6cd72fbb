"""`retbench generate`: the text that a checkpoint continues a prompt with, as it comes."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import typer

from retbench.architectures.configs import default_backend
from retbench.checkpoints.reading import CheckpointInfo, read_checkpoint
from retbench.cli.memory import require_memory
from retbench.config.experiment import Dtype
from retbench.data.tokenizers import Tokenizer, load_tokenizer
from retbench.errors import ConfigError, UnsupportedError, unknown_name
from retbench.measure.limits import is_out_of_memory
from retbench.run.devices import find_device

if TYPE_CHECKING:
    from retbench.models.decoder import Decoder
    from retbench.models.generation import Sampling

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Request:
    """What to continue, with what, and how; None for the checkpoint's or the machine's own choice."""

    checkpoint: str
    prompt: str
    max_tokens: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    tokenizer: str | None = None
    data_dir: Path | None = None
    revision: str | None = None
    format: str = "auto"
    allow_pickle: bool = False


class TextStream:
    """Text from tokens, whole characters at a time.

    A token may end within a character, and what it decodes to may depend on the tokens before it: a tokenizer that
    falls back on bytes replaces all of a run of them while its last character is not whole. So the last tokens are
    decoded with and without the new ones, never from within a character, and replacement characters at the end are held
    back until what follows shows that they are what the model wrote.

    Args:
        tokenizer: Decodes.
        before: Tokens of the text so far.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(before)
        self._start = 0
        self._shown = 0
        self._go_forward()

    def add(self, token: int) -> str:
        """The text that is certain now, possibly none."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens[self._start :])
        certain = text.rstrip(REPLACEMENT)
        return self._show(certain, is_whole=certain == text)

    def end(self) -> str:
        """What was held back."""
        return self._show(self._tokenizer.decode(self._tokens[self._start :]), is_whole=True)

    def _show(self, text: str, *, is_whole: bool) -> str:
        """What `text` has beyond what was shown; where nothing is held back, later tokens start from the last few."""
        new = text[self._shown :]
        self._shown = max(self._shown, len(text))
        if is_whole and len(self._tokens) - self._start > 32:
            self._go_forward()
        return new

    def _go_forward(self) -> None:
        """Decode from the last few tokens on, all of which are shown: the last eight, or more to begin a character."""
        start = max(self._start, len(self._tokens) - 8)
        while start > self._start and self._decode(start).startswith(REPLACEMENT):
            start -= 1
        self._start, self._shown = start, len(self._decode(start))

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._tokens[start:])


def generate(request: Request) -> None:
    """Print the prompt and its continuation to stdout, token by token, then how fast it was to stderr.

    Raises:
        ConfigError: an unknown checkpoint, tokenizer, format, dtype or device; settings that have no meaning; a
            tokenizer that is not the model's.
        CheckpointError: the checkpoint cannot be read.
        UnsupportedError: the device, the memory or the hub is not here.
    """
    if request.dtype is not None and request.dtype not in get_args(Dtype):
        raise unknown_name("dtype", request.dtype, get_args(Dtype), where="--dtype")
    device = find_device(request.device).name
    info = read_checkpoint(
        request.checkpoint, revision=request.revision, format=request.format, data_dir=request.data_dir
    )
    tokenizer = _find_tokenizer(request, info)
    prompt = _read_prompt(request.prompt)
    tokens = _encode(prompt, tokenizer)
    sampling = _sampling(request)
    model = _load(request, info, device)
    length = len(tokens) + request.max_tokens
    if info.context_len is not None and length > info.context_len:
        typer.echo(
            f"retbench: {length} tokens are more than the {info.context_len} that this model was trained on.",
            err=True,
        )
    try:
        with _without_denormals():
            _print_text(prompt, _stream(model, tokenizer, tokens, sampling, request))
    except BrokenPipeError:
        # The reader has seen enough; nothing may be written to it again, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _find_tokenizer(request: Request, info: CheckpointInfo) -> Tokenizer:
    """The tokenizer asked for, else the checkpoint's own.

    Raises:
        ConfigError: there is none, it is not the one that the model was trained with, or it has tokens that the model
            has not.
    """
    name = request.tokenizer or info.tokenizer
    if name is None:
        raise ConfigError(
            f"'{request.checkpoint}' comes without a tokenizer. Give the one it was trained with by --tokenizer."
        )
    tokenizer = load_tokenizer(name, data_dir=request.data_dir)
    expected = info.tokenizer_fingerprint
    if expected is not None and tokenizer.fingerprint != expected:
        raise ConfigError(
            f"the tokenizer '{name}' has the fingerprint {tokenizer.fingerprint}; '{request.checkpoint}' was trained "
            f"with '{info.tokenizer}', fingerprint {expected}. Give that one by --tokenizer."
        )
    if tokenizer.vocab_size > info.config.vocab_size:
        raise ConfigError(
            f"the tokenizer '{name}' has {tokenizer.vocab_size} tokens, the vocabulary of '{request.checkpoint}' "
            f"{info.config.vocab_size}. Give the tokenizer that it was trained with by --tokenizer."
        )
    return tokenizer


def _read_prompt(given: str) -> str:
    """The prompt; what stdin holds, without the newline at its end, for `-`."""
    if given != "-":
        return given
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt on standard input is not UTF-8: {error}.") from error


def _encode(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Tokens of the prompt, after the one that begins a text where the tokenizer has one."""
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens = [*begin, *tokenizer.encode(prompt)]
    if not tokens:
        raise ConfigError(
            f"an empty prompt, and the tokenizer '{tokenizer.name}' has no token that begins a text. Give a --prompt."
        )
    return tokens


def _sampling(request: Request) -> "Sampling":
    """As asked for; greedy unless something is to be drawn from."""
    from retbench.models.generation import Sampling

    draws = request.top_k is not None or request.top_p is not None
    temperature = request.temperature if request.temperature is not None else 1.0 if draws else 0.0
    return Sampling(temperature, request.top_k, request.top_p)


def _load(request: Request, info: CheckpointInfo, device: str) -> "Decoder":
    """The model; UnsupportedError where it does not fit."""
    import torch

    from retbench.checkpoints.loading import load_checkpoint

    stored = info.weights_dtype if info.weights_dtype in get_args(Dtype) else None  # quantised: refused below
    dtype = request.dtype or ("float32" if device == "cpu" else stored or "float32")
    named = f"'{request.checkpoint}' at {dtype}"
    if device == "cpu":
        require_memory(named, info.config, dtype, "Give another --dtype or --device.")
    else:
        torch.cuda.set_device(device)
    try:
        return load_checkpoint(
            info,
            dtype=getattr(torch, dtype),
            device=device,
            backend=default_backend(info.config),
            allow_pickle=request.allow_pickle,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UnsupportedError(
            f"{named} does not fit in the memory of {device}. Give another --dtype or --device."
        ) from error


def _stream(
    model: "Decoder", tokenizer: Tokenizer, tokens: list[int], sampling: "Sampling", request: Request
) -> Iterator[str]:
    """The continuation in pieces; when it has ended, how fast it was goes to stderr."""
    import torch

    from retbench.models import generation

    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id} - {None}
    stream = TextStream(tokenizer, tokens)
    start = time.perf_counter()
    times = []
    for token in generation.generate(
        model,
        torch.tensor([tokens], device=model.device),
        max_tokens=request.max_tokens,
        sampling=sampling,
        seed=request.seed,
        stop={end for end in ends if end is not None},
        num_tokens=tokenizer.vocab_size,
    ):
        times.append(time.perf_counter())
        yield stream.add(token)
    yield stream.end()
    _print_pace(len(tokens), start, times)


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Within it a CPU takes the smallest numbers, which a retention state decays to and which are slow, for zero."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _print_text(prompt: str, pieces: Iterator[str]) -> None:
    """Everything as UTF-8, whatever the terminal's encoding, each piece as it comes."""
    typer.echo(prompt.encode("utf-8", "replace"), nl=False)
    for piece in pieces:
        if piece:
            typer.echo(piece.encode("utf-8", "replace"), nl=False)
    typer.echo()


def _print_pace(num_prompt: int, start: float, times: list[float]) -> None:
    """Time to the first token, and tokens a second after it."""
    if not times:
        typer.echo(f"prompt {num_prompt} tokens; the text ended at once", err=True)
        return
    line = f"prompt {num_prompt} tokens, first token after {times[0] - start:.3f} s; {len(times)} tokens"
    if len(times) > 1:
        line += f", {(len(times) - 1) / (times[-1] - times[0]):.1f} tokens/s"
    typer.echo(line, err=True)
