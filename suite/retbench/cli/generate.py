"""`retbench generate`: continue a prompt with a checkpoint, printing the text token by token."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from retbench.cli.options import DataDir, DeviceName, dtype_option, new_app, not_empty, read_count
from retbench.cli.streams import has_reader
from retbench.errors import ConfigError, GateError, shown

if TYPE_CHECKING:
    from retbench.checkpoints.reading import CheckpointInfo
    from retbench.data.tokenizers import Tokenizer
    from retbench.models.generation import Sampling
    from retbench.models.language_model import LanguageModel

app = new_app()
FORMATS = "auto, retbench, fla, fla_gla, fla_rwkv6, llama, llama2c, mamba2, mistral, rwkv6, torchscale or hf"
"""`auto` and the names in `checkpoints.reading.FORMATS`, which imports too much for the help."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A folder or file, a path in the data folder, or OWNER/REPOSITORY on the Hugging Face hub.",
    ),
]
Prompt = Annotated[
    str,
    typer.Option(
        metavar="TEXT", help="Text to continue; - reads it from standard input. Empty begins a new text."
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T", help="0 takes the likeliest token; by default 1 with --top-k or --top-p, else 0."
    ),
]
TopP = Annotated[
    float | None, typer.Option(metavar="P", help="Sample from the fewest tokens with this total probability.")
]
DtypeName = Annotated[
    str | None, dtype_option("By default float32 on a CPU, else that of the stored weights.")
]
TokenizerName = Annotated[
    str | None,
    typer.Option(metavar="NAME", callback=not_empty, help="By default the checkpoint's own, if it has one."),
]
HubRevision = Annotated[
    str | None,
    typer.Option(
        metavar="REVISION",
        callback=not_empty,
        help="Commit, branch or tag on the hub; by default the pinned one, else main.",
    ),
]
CheckpointFormat = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help=f"Of the checkpoint: {FORMATS}.",
    ),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read weights written by torch.save, as tensors only.")
]


@app.command(
    epilog='Example: retbench generate fla-hub/retnet-1.3B-100B --prompt "The sea was" --tokenizer mistral'
)
def generate(
    checkpoint: Checkpoint,
    prompt: Prompt = "",
    max_tokens: Annotated[
        int, typer.Option(parser=read_count, metavar="TOKENS", help="Largest number of new tokens.")
    ] = 256,
    temperature: Temperature = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="Sample from the K likeliest tokens.")
    ] = None,
    top_p: TopP = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, metavar="N", help="Seed of the sampling; by default 0."),
    ] = None,
    device: DeviceName = None,
    dtype: DtypeName = None,
    tokenizer: TokenizerName = None,
    data_dir: DataDir = None,
    revision: HubRevision = None,
    form: CheckpointFormat = "auto",
    allow_pickle: AllowPickle = False,
) -> None:
    """Continue a text with any checkpoint, printing tokens as they come.

    The prompt and its continuation go to stdout, until the model ends the text or --max-tokens are reached; the time
    to the first token and the tokens per second go to stderr. A model of transformers or of your own package whose
    decoding differs from one pass over all tokens writes nothing (exit code 1).
    """
    from retbench.architectures.blame import blaming_package
    from retbench.checkpoints.reading import read_checkpoint
    from retbench.config.dtypes import find_dtype
    from retbench.measure.devices import find_device
    from retbench.models.generation import Sampling

    dtype = None if dtype is None else find_dtype(dtype)
    device = find_device(device).name
    text = _read_prompt(prompt)
    info = read_checkpoint(checkpoint, revision=revision, format=form, data_dir=data_dir)
    reader = _find_tokenizer(checkpoint, info, tokenizer, data_dir)
    tokens = _encode(text, reader)
    if temperature is None:
        temperature = 0.0 if top_k is None and top_p is None else 1.0
    sampling = Sampling(temperature, top_k, top_p)
    if seed is not None and temperature == 0:
        raise ConfigError(
            f"--seed {seed}: at temperature 0 nothing is drawn. Give --temperature, --top-k or --top-p, or no --seed."
        )
    model = _load(checkpoint, info, device, dtype, allow_pickle=allow_pickle)
    length = len(tokens) + max_tokens
    if info.context_len is not None and length > info.context_len:
        typer.echo(
            f"retbench: {length} tokens are more than the {info.context_len} that this model was trained on.",
            err=True,
        )
    with _without_denormals(), blaming_package(info.config):
        _check_decoding(checkpoint, model, length)
        _print_text(text, _stream(model, reader, tokens, sampling, max_tokens, seed or 0))


def _find_tokenizer(
    checkpoint: str, info: "CheckpointInfo", requested: str | None, data_dir: Path | None
) -> "Tokenizer":
    """Return the requested tokenizer, or the checkpoint's own.

    Raises:
        ConfigError: there is none, it is not the one that the model was trained with, or it has more tokens than the
            model.
    """
    from retbench.data.tokenizers import load_tokenizer

    name = requested or info.tokenizer
    if name is None:
        raise ConfigError(
            f"{shown(checkpoint)} comes without a tokenizer. Give the one it was trained with by --tokenizer."
        )
    tokenizer = load_tokenizer(name, data_dir=data_dir)
    expected = info.tokenizer_fingerprint
    if expected is not None and tokenizer.fingerprint != expected:
        raise ConfigError(
            f"the tokenizer {shown(name)} has the fingerprint {tokenizer.fingerprint}; {shown(checkpoint)} was trained "
            f"with {shown(info.tokenizer)}, fingerprint {expected}. Give that one by --tokenizer."
        )
    if tokenizer.vocab_size > info.config.vocab_size:
        raise ConfigError(
            f"the tokenizer {shown(name)} has {tokenizer.vocab_size} tokens, the vocabulary of {shown(checkpoint)} "
            f"{info.config.vocab_size}. Give the tokenizer that it was trained with by --tokenizer."
        )
    return tokenizer


def _read_prompt(given: str) -> str:
    """Return the prompt; for `-`, the content of stdin without the newline at its end."""
    # What is not UTF-8 in the words of a command reaches Python as halves of surrogate pairs.
    try:
        content = sys.stdin.buffer.read() if given == "-" else given.encode("utf-8", "surrogateescape")
        text = content.decode("utf-8")
    except UnicodeError as error:
        where = "on standard input" if given == "-" else "of --prompt"
        raise ConfigError(f"the prompt {where} is not UTF-8: {error}.") from error
    return text.removesuffix("\n") if given == "-" else text


def _encode(prompt: str, tokenizer: "Tokenizer") -> list[int]:
    """Return the tokens of the prompt, after the tokenizer's token that begins a text, if it has one."""
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens = [*begin, *tokenizer.encode(prompt)]
    if not tokens:
        raise ConfigError(
            f"an empty prompt, and the tokenizer {shown(tokenizer.name)} has no token that begins a text. Give a "
            "--prompt."
        )
    return tokens


def _load(
    checkpoint: str, info: "CheckpointInfo", device: str, dtype: str | None, *, allow_pickle: bool
) -> "LanguageModel":
    """Load the model; raise UnsupportedError if it does not fit in memory."""
    import torch

    from retbench.architectures.configs import default_backend
    from retbench.checkpoints.loading import load_model
    from retbench.cli.in_process import within_memory
    from retbench.config.dtypes import Dtype
    from retbench.measure.environment import use_device
    from retbench.models.build import set_up_steps

    stored = info.weights_dtype if info.weights_dtype in get_args(Dtype) else None  # quantised: refused below
    dtype = dtype or ("float32" if device == "cpu" else stored or "float32")
    use_device(device)
    named = f"{shown(checkpoint)} at {dtype}"
    with within_memory(named, info.config, dtype, device, "Give another --dtype or --device."):
        model = load_model(
            info,
            dtype=getattr(torch, dtype),
            device=device,
            backend=default_backend(info.config),
            allow_pickle=allow_pickle,
        )
        if device == "cpu":  # on a GPU the comparison would take longer than most texts
            set_up_steps(model, compiled=False)
        return model


def _check_decoding(checkpoint: str, model: "LanguageModel", length: int) -> None:
    """Raise GateError if another library or a user's package decodes a text of `length` tokens wrongly.

    The tests of retbench check its own models.
    """
    from retbench.architectures.blame import users_packages
    from retbench.data import text
    from retbench.models.decoder import Decoder
    from retbench.models.equivalence import LIMITS, decoding_error
    from retbench.running.gates import QUADRATIC_GATE_DEPTH

    if isinstance(model, Decoder) and not users_packages(model.config):
        return
    # Tokens of a synthetic vocabulary may be fewer than there are bytes.
    tokens = text.read_rows(1, min(length, QUADRATIC_GATE_DEPTH)) % model.config.vocab_size
    error, limit = decoding_error(model, tokens.to(model.device)), LIMITS[model.dtype]
    if limit < error < math.inf:  # logits that are not finite end the text with their own message
        raise GateError(
            f"{shown(checkpoint)}: after {tokens.shape[1]:,} tokens the logits of decoding differ from those of one "
            f"pass over all tokens (error {error:.2g}, limit {limit:g}), so its text would be wrong. Its cache may "
            "compute fewer --max-tokens rightly."
        )


def _stream(
    model: "LanguageModel",
    tokenizer: "Tokenizer",
    tokens: list[int],
    sampling: "Sampling",
    max_tokens: int,
    seed: int,
) -> Iterator[str]:
    """Yield the continuation in pieces and a newline; then print the speed to stderr."""
    import torch

    from retbench.models import generation

    stream = TextStream(tokenizer, tokens)
    start = time.perf_counter()
    times = []
    for token in generation.generate(
        model,
        torch.tensor([tokens], device=model.device),
        max_tokens=max_tokens,
        sampling=sampling,
        seed=seed,
        stop={end for end in (tokenizer.eos_token_id, tokenizer.bos_token_id) if end is not None},
        num_tokens=tokenizer.vocab_size,
    ):
        times.append(time.perf_counter())
        yield stream.add(token)
    yield stream.end()
    yield "\n"  # on a terminal the speed would otherwise stand in the last line of the text
    _print_pace(len(tokens), start, times)


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero on a CPU: a retention state decays to them, and they are slow."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _print_text(prompt: str, pieces: Iterator[str]) -> None:
    """Print the prompt and each piece at once, as UTF-8 whatever the terminal's encoding."""
    typer.echo(prompt.encode("utf-8", "replace"), nl=False)
    for piece in pieces:
        if not has_reader():
            return
        if piece:
            typer.echo(piece.encode("utf-8", "replace"), nl=False)


def _print_pace(num_prompt: int, start: float, times: list[float]) -> None:
    """Print the time to the first token, and the tokens per second after it."""
    if not times:
        typer.echo(f"prompt {num_prompt} tokens; the text ended at once", err=True)
        return
    line = f"prompt {num_prompt} tokens, first token after {times[0] - start:.3f} s; {len(times)} tokens"
    if len(times) > 1:
        line += f", {(len(times) - 1) / (times[-1] - times[0]):.1f} tokens/s"
    typer.echo(line, err=True)


class TextStream:
    """Text from tokens, whole characters at a time.

    A token may end within a character, and its text may depend on the tokens before it: a tokenizer that falls back
    on bytes replaces a whole run of them while its last character is incomplete. So the last tokens are decoded with
    and without the new ones, never starting within a character. Replacement characters at the end are held back until
    the next tokens show that the model wrote them.

    Args:
        tokenizer: Decodes the tokens.
        before: Tokens of the text so far.
    """

    def __init__(self, tokenizer: "Tokenizer", before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(before)
        self._start = 0
        self._shown = 0
        self._advance()

    def add(self, token: int) -> str:
        """Return the text that is certain now, possibly none."""
        self._tokens.append(token)
        text = self._decode(self._start)
        certain = text.rstrip(REPLACEMENT)
        return self._show(certain, is_whole=certain == text)

    def end(self) -> str:
        """Return the text that was held back."""
        return self._show(self._decode(self._start), is_whole=True)

    def _show(self, text: str, *, is_whole: bool) -> str:
        """Return the part of `text` that is new; if nothing is held back, advance the start of decoding."""
        new = text[self._shown :]
        self._shown = max(self._shown, len(text))
        if is_whole and len(self._tokens) - self._start > 32:
            self._advance()
        return new

    def _advance(self) -> None:
        """Decode from now on from the last eight tokens, or from more to begin at a character; all are shown."""
        start = max(self._start, len(self._tokens) - 8)
        while start > self._start and self._decode(start).startswith(REPLACEMENT):
            start -= 1
        self._start, self._shown = start, len(self._decode(start))

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._tokens[start:])
