"""Tokenizers: bytes, and vocabulary files that are read by their libraries; see also `scored_pieces`."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retbench.errors import ConfigError, UnsupportedError, shown
from retbench.parsing import integer_or_float, parse_json

BYTES = "bytes"
_END_OF_TEXT = "<|endoftext|>"
_WELL_KNOWN = (
    (_END_OF_TEXT, _END_OF_TEXT),
    ("<s>", "</s>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<bos>", "<eos>"),
)
"""Begin-of-text and end-of-text tokens of GPT-2 and GPT-NeoX, of Llama and Mistral, of Llama 3, and of Gemma."""

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
"""Files beside a tokenizer in which transformers names its special tokens."""


@contextmanager
def _refusing(fault: str, remedy: str = "") -> Iterator[None]:
    """Raise a ConfigError with a fault and what to do for anything that a library of tokenizers raises.

    They raise no specific class, and a panic of a library in Rust is no Exception.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"{fault}: {error}.{remedy}") from error


def content_hash(*parts: bytes) -> str:
    """Hash the content of a tokenizer to 12 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}\n".encode() + part)
    return digest.hexdigest()[:12]


def read_bytes(path: Path) -> bytes:
    """Read a file; ConfigError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: the tokenizer cannot be read ({error.strerror}). Check the file."
        ) from error


def _read_json(path: Path, *, integers: Callable[[str], int | float] = int) -> Any:
    """Read a JSON file, its integers by `integers`; ConfigError if it is not valid JSON."""
    try:
        return parse_json(read_bytes(path), integers=integers)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}. Fetch the file again.") from error


class Tokenizer(ABC):
    """A reversible map from text to tokens."""

    name: str
    """The user's name for it."""
    fingerprint: str
    """12 hex digits over its definition; equal only for tokenizers that give the same tokens."""
    vocab_size: int
    """The highest token plus one; a vocabulary may have holes."""
    bos_token_id: int | None
    """The token before a text, if there is one."""
    eos_token_id: int | None
    """The token after a text, if there is one."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without begin-of-text and end-of-text tokens.

        A special token that is spelt out becomes that token; SentencePiece and llama2.c put a space before the text.

        Raises:
            ConfigError: the tokenizer has no token for a part of the text, or it is not Unicode.
        """
        with _refusing(f"the tokenizer {shown(self.name)} cannot encode {shown(text)}"):
            return self._encode(text)

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Return the tokens of a text; any error is translated."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; ConfigError if one is not in the vocabulary, which libraries ignore silently."""
        found = list(tokens)
        if found and not 0 <= min(found) <= max(found) < self.vocab_size:
            wrong = next(token for token in found if not 0 <= token < self.vocab_size)
            raise ConfigError(
                f"token {wrong} is not in the vocabulary of the tokenizer '{self.name}', which has "
                f"{self.vocab_size:,}. Use the tokenizer that the model was trained with."
            )
        return self._decode(found)

    @abstractmethod
    def _decode(self, tokens: list[int]) -> str:
        """Return the text of tokens of the vocabulary."""


class ByteTokenizer(Tokenizer):
    """The UTF-8 bytes of a text, with token 256 before and after it; invalid bytes are decoded as U+FFFD."""

    name = BYTES
    vocab_size = 257
    bos_token_id = 256
    eos_token_id = 256
    fingerprint = hashlib.sha256(b"UTF-8 bytes, 256 begins and ends a text").hexdigest()[:12]

    def _encode(self, text: str) -> list[int]:
        return list(text.encode())

    def _decode(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token != self.eos_token_id).decode("utf-8", "replace")


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, with the truncation and padding of its file turned off."""

    def __init__(self, name: str, tokenizer: Any, fingerprint: str, special: tuple[str | None, str | None]):
        self.name = name
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos_token_id, self.eos_token_id = (
            None if token is None else tokenizer.token_to_id(token) for token in special
        )
        self.fingerprint = content_hash(
            fingerprint.encode(), f"{self.bos_token_id} {self.eos_token_id}".encode()
        )

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text


def read_tokenizer_json(name: str, path: Path) -> LibraryTokenizer:
    """Read a `tokenizer.json`; a configuration in its folder, or a usual name, gives its begin and end tokens.

    Raises:
        ConfigError: the file has another format.
    """
    from tokenizers import Tokenizer as StoredTokenizer

    content = read_bytes(path)
    with _refusing(f"{path}: not a tokenizer.json", " Fetch the file again."):
        tokenizer = StoredTokenizer.from_str(content.decode())
    return LibraryTokenizer(name, tokenizer, content_hash(content), _special_tokens(path.parent, tokenizer))


def _special_tokens(folder: Path, tokenizer: Any) -> tuple[str | None, str | None]:
    """Find the begin-of-text and end-of-text tokens; ConfigError if a file names one that is not in the vocabulary."""
    for file in SETTINGS:
        if (folder / file).is_file():
            content = _read_settings(folder / file)
            begin, end = (_token_text(folder / file, content, field) for field in ("bos_token", "eos_token"))
            for field, text in (("bos_token", begin), ("eos_token", end)):
                if text and tokenizer.token_to_id(text) is None:
                    raise ConfigError(
                        f"{folder / file}: {field} is {shown(text)}, which is no token of the tokenizer beside it. "
                        "Give the token that the model was trained with, or null if there was none."
                    )
            if begin or end:
                return begin, end
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return next((pair for pair in _WELL_KNOWN if special.issuperset(pair)), (None, None))


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the fields of a file in `SETTINGS`; ConfigError if it holds something else."""
    content = _read_json(path, integers=integer_or_float)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {shown(content)}, expected an object. Fetch the file again.")
    return content


def _token_text(path: Path, content: dict[str, Any], field: str) -> str | None:
    """Return the text of a special token, which is stored as a string or in an object; ConfigError if it is neither."""
    token = content.get(field)
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise ConfigError(
            f"{path}: {field} is {shown(token)}, expected the text of a token. Fetch the file again."
        )
    return text


def read_gpt2_files(name: str, vocabulary: Path, merges: Path) -> LibraryTokenizer:
    """Read GPT-2's byte-level BPE from its two files; the fingerprint does not depend on the files' names.

    Raises:
        ConfigError: the files have another format.
    """
    import tokenizers as library

    tokens = _read_json(vocabulary)
    lines = read_bytes(merges).decode("utf-8", "replace").splitlines()
    pairs: list[Any] = [
        tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")
    ]
    _check_merges(tokens, pairs, f"{vocabulary} and {merges.name}")
    tokenizer = library.Tokenizer(library.models.BPE(vocab=tokens, merges=pairs))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    end = _END_OF_TEXT if _END_OF_TEXT in tokens else None
    if end:
        tokenizer.add_special_tokens([end])
    content = content_hash(json.dumps(tokens, sort_keys=True).encode(), json.dumps(pairs).encode())
    return LibraryTokenizer(name, tokenizer, content, (end, end))


def name_gpt2_class(vocabulary: Path) -> None:
    """Name GPT-2's class and special tokens in the settings beside its vocabulary, unless they do so already.

    For a model of another architecture, transformers does not look for GPT-2's two files by itself.

    Raises:
        ConfigError: a file has another format.
    """
    path = vocabulary.with_name(SETTINGS[0])
    end = _END_OF_TEXT if _END_OF_TEXT in _read_json(vocabulary) else None
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": end, "eos_token": end, "unk_token": end}
    if path.is_file():
        settings |= _read_settings(path)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _check_merges(tokens: Any, pairs: Sequence[tuple[str, ...]], where: str) -> None:
    """Raise a ConfigError for files that do not belong together, which would crash the library."""
    if not isinstance(tokens, dict) or not all(
        type(token) is int and 0 <= token < 2**32 for token in tokens.values()
    ):
        fault = "the first is no object of tokens and their numbers"
    else:
        wrong = next(
            (pair for pair in pairs if len(pair) != 2 or not tokens.keys() >= {*pair, "".join(pair)}), None
        )
        fault = f"the merge '{' '.join(wrong)}' is of pieces that are no tokens" if wrong else ""
    if fault:
        raise ConfigError(f"{where}: not GPT-2's vocabulary: {fault}. Fetch the files again.")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, e.g. the first Mistral's `tokenizer.model.v1`.

    Raises:
        ConfigError: the file has another format.
        UnsupportedError: the package `sentencepiece` is not installed.
    """

    def __init__(self, name: str, path: Path) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise UnsupportedError(
                f"{path}: a SentencePiece model needs the package 'sentencepiece', which cannot be imported here "
                f"({error}). Install it: pip install sentencepiece"
            ) from error
        content = read_bytes(path)
        self.name = name
        self.fingerprint = content_hash(content)
        with _refusing(f"{path}: not a SentencePiece model", " Fetch the file again."):
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
            self.vocab_size = self._processor.vocab_size()
        begin, end = self._processor.bos_id(), self._processor.eos_id()
        self.bos_token_id = begin if begin >= 0 else None
        self.eos_token_id = end if end >= 0 else None

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._processor.encode(text, add_bos=False, add_eos=False)
        return tokens

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._processor.decode(tokens)
        return text
