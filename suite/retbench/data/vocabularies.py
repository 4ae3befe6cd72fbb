"""Tokenizers read from vocabulary files by the libraries that made the formats."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retbench.data.packages import load_package
from retbench.errors import ConfigError

_END_OF_TEXT = "<|endoftext|>"
_WELL_KNOWN = (
    (_END_OF_TEXT, _END_OF_TEXT),
    ("<s>", "</s>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<bos>", "<eos>"),
)
"""Tokens for the begin and the end of a text: GPT-2 and GPT-NeoX, Llama and Mistral, Llama 3, Gemma."""


def content_hash(*parts: bytes) -> str:
    """12 hex digits over the content that a tokenizer is made of."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}\n".encode() + part)
    return digest.hexdigest()[:12]


def check_tokens(tokens: Sequence[int], vocab_size: int, name: str) -> list[int]:
    """`tokens` as a list; ConfigError where one is not in the vocabulary, which libraries pass over in silence."""
    found = list(tokens)
    if found and not 0 <= min(found) <= max(found) < vocab_size:
        wrong = next(token for token in found if not 0 <= token < vocab_size)
        raise ConfigError(
            f"token {wrong} is not in the vocabulary of the tokenizer '{name}', which has {vocab_size:,}. "
            "Use the tokenizer that the model was trained with."
        )
    return found


def read_bytes(path: Path) -> bytes:
    """The content of a file; ConfigError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: the tokenizer cannot be read ({error.strerror}). Check the file."
        ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; ConfigError where it is none."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}. Fetch the file again.") from error


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library.

    Special tokens written out in a text become their token, as everywhere in that library. Truncation and padding that
    a file asks for are turned off.
    """

    def __init__(self, name: str, tokenizer: Any, fingerprint: str, special: tuple[str | None, str | None]):
        self.name = name
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.vocab_size: int = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        """Highest token and one: a vocabulary may have holes."""
        self.bos_token_id, self.eos_token_id = (
            None if token is None else tokenizer.token_to_id(token) for token in special
        )
        self.fingerprint = content_hash(
            fingerprint.encode(), f"{self.bos_token_id} {self.eos_token_id}".encode()
        )

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; none is added."""
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones written out."""
        found = check_tokens(tokens, self.vocab_size, self.name)
        text: str = self._tokenizer.decode(found, skip_special_tokens=False)
        return text


def read_tokenizer_json(name: str, path: Path) -> LibraryTokenizer:
    """A `tokenizer.json`; which tokens begin and end a text, the configuration beside it says, or their usual names.

    Raises:
        ConfigError: it is not such a file.
        UnsupportedError: the package `tokenizers` is not installed.
    """
    library = load_package("tokenizers", "A tokenizer.json")
    content = read_bytes(path)
    try:
        tokenizer = library.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises no class of its own
        raise ConfigError(f"{path}: not a tokenizer.json: {error}. Fetch the file again.") from error
    return LibraryTokenizer(name, tokenizer, content_hash(content), _special_tokens(path.parent, tokenizer))


def _special_tokens(folder: Path, tokenizer: Any) -> tuple[str | None, str | None]:
    """The tokens that begin and end a text."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            content = read_json(folder / file)
            found = [content.get(field) for field in ("bos_token", "eos_token")]
            begin, end = (token.get("content") if isinstance(token, dict) else token for token in found)
            if begin or end:
                return begin, end
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return next((pair for pair in _WELL_KNOWN if special.issuperset(pair)), (None, None))


def read_gpt2_files(name: str, vocabulary: Path, merges: Path) -> LibraryTokenizer:
    """GPT-2's byte-level BPE from its two files, under either pair of names; one fingerprint for both.

    Raises:
        ConfigError: they are not such files.
        UnsupportedError: the package `tokenizers` is not installed.
    """
    library = load_package("tokenizers", "GPT-2's vocabulary")
    tokens = read_json(vocabulary)
    lines = read_bytes(merges).decode("utf-8", "replace").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    _check_merges(tokens, pairs, f"{vocabulary} and {merges.name}")
    tokenizer = library.Tokenizer(library.models.BPE(vocab=tokens, merges=pairs))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    end = _END_OF_TEXT if _END_OF_TEXT in tokens else None
    if end:
        tokenizer.add_special_tokens([end])
    content = content_hash(json.dumps(tokens, sort_keys=True).encode(), json.dumps(pairs).encode())
    return LibraryTokenizer(name, tokenizer, content, (end, end))


def _check_merges(tokens: Any, pairs: Sequence[tuple[str, ...]], where: str) -> None:
    """ConfigError where the two files cannot belong together, of which the library would die."""
    if not isinstance(tokens, dict) or not all(isinstance(token, int) for token in tokens.values()):
        fault = "the first is no object of tokens and their numbers"
    else:
        wrong = next(
            (pair for pair in pairs if len(pair) != 2 or not tokens.keys() >= {*pair, "".join(pair)}), None
        )
        fault = f"the merge '{' '.join(wrong)}' is of pieces that are no tokens" if wrong else ""
    if fault:
        raise ConfigError(f"{where}: not GPT-2's vocabulary: {fault}. Fetch the files again.")


class SentencePieceTokenizer:
    """A SentencePiece model, e.g. the first Mistral's `tokenizer.model.v1`.

    Raises:
        ConfigError: the file is no such model.
        UnsupportedError: the package `sentencepiece` is not installed.
    """

    def __init__(self, name: str, path: Path) -> None:
        library = load_package("sentencepiece", "A SentencePiece model")
        content = read_bytes(path)
        self.name = name
        self.fingerprint = content_hash(content)
        try:
            self._processor = library.SentencePieceProcessor(model_proto=content)
            self.vocab_size: int = self._processor.vocab_size()
        except RuntimeError as error:
            raise ConfigError(f"{path}: not a SentencePiece model: {error}. Fetch the file again.") from error
        begin, end = self._processor.bos_id(), self._processor.eos_id()
        self.bos_token_id: int | None = begin if begin >= 0 else None
        self.eos_token_id: int | None = end if end >= 0 else None

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; none is added but the space that the model itself puts before a text."""
        tokens: list[int] = self._processor.encode(text, add_bos=False, add_eos=False)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; those for begin and end have none."""
        text: str = self._processor.decode(check_tokens(tokens, self.vocab_size, self.name))
        return text
