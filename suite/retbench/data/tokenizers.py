"""Tokenizers by name.

bytes                     the UTF-8 bytes, 0 to 255, and 256 for the end of a text
PATH, or a name below the data folder
                          a tokenizer.json; GPT-2's vocabulary (vocab.json or encoder.json, with merges.txt or
                          vocab.bpe beside it); a SentencePiece .model; llama2.c's tok*.bin; a folder with one
gpt2, neox, mistral       gpt2_tokenizer, neox_tokenizer and mistral_tokenizer below the data folder
hub:REPO[@REVISION]       the tokenizer of a model on the hub
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from retbench.data import hub
from retbench.data.places import find
from retbench.data.scored_pieces import ScoredPieces
from retbench.data.vocabularies import (
    SentencePieceTokenizer,
    check_tokens,
    read_gpt2_files,
    read_tokenizer_json,
)
from retbench.errors import ConfigError

BYTES = "bytes"
_SHORT_NAMES = {"gpt2": "gpt2_tokenizer", "neox": "neox_tokenizer", "mistral": "mistral_tokenizer"}
_GPT2_VOCABULARIES = ("vocab.json", "encoder.json")
_GPT2_MERGES = ("merges.txt", "vocab.bpe")
_HUB_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    *_GPT2_VOCABULARIES,
    *_GPT2_MERGES,
    "tokenizer.model",
)


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def fingerprint(self) -> str:
        """12 hex digits over what it does: one fingerprint, the same tokens."""

    @property
    def vocab_size(self) -> int:
        """The highest token and one."""

    @property
    def bos_token_id(self) -> int | None:
        """The token before a text; None where there is none."""

    @property
    def eos_token_id(self) -> int | None:
        """The token after a text; None where there is none."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; those for begin and end are never added."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; ConfigError where one is not in the vocabulary."""


class ByteTokenizer:
    """The UTF-8 bytes of a text; token 256 stands before it and after it."""

    name = BYTES
    vocab_size = 257
    bos_token_id = 256
    eos_token_id = 256
    fingerprint = hashlib.sha256(b"UTF-8 bytes, 256 begins and ends a text").hexdigest()[:12]

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of bytes, U+FFFD where they are not UTF-8; token 256 has none."""
        found = check_tokens(tokens, self.vocab_size, self.name)
        return bytes(token for token in found if token != self.eos_token_id).decode("utf-8", "replace")


def load_tokenizer(name: str, *, data_dir: Path | None = None, revision: str | None = None) -> Tokenizer:
    """The tokenizer of that name; see the module for what a name may be.

    Args:
        name: "bytes", a path, a name below the data folder, or `hub:...`.
        data_dir: The data folder; that of RETBENCH_DATA when None.
        revision: Of a hub repository; its newest commit when None.

    Raises:
        ConfigError: there is no such tokenizer, or its files are damaged.
        UnsupportedError: the hub cannot be reached, or a package is missing.
    """
    if name.startswith(hub.PREFIX):
        return _read_folder(name, hub.download_files(name, hub.parse_name(name, revision), _HUB_FILES))
    if revision is not None:
        raise ConfigError(f"the tokenizer '{name}' has no revisions; only one of the hub has. Leave it out.")
    if name == BYTES:
        return ByteTokenizer()
    path = find(name, kind="tokenizer", data_dir=data_dir, known=[BYTES], below=_SHORT_NAMES.get(name))
    return _read_folder(name, path) if path.is_dir() else _read_file(name, path)


def _read_file(name: str, path: Path) -> Tokenizer:
    """The tokenizer of one file, and of what belongs to it in the same folder."""
    if ".model" in path.suffixes:
        return SentencePieceTokenizer(name, path)
    if path.suffix == ".bin":
        return ScoredPieces(name, path)
    if path.name in (*_GPT2_VOCABULARIES, *_GPT2_MERGES):
        return _read_gpt2(name, path.parent)
    if path.suffix == ".json":
        return read_tokenizer_json(name, path)
    raise ConfigError(
        f"{path}: not a tokenizer of a known format. Give a tokenizer.json, GPT-2's vocabulary, a SentencePiece "
        ".model, llama2.c's tok*.bin, or a folder with one of these."
    )


def _read_gpt2(name: str, folder: Path) -> Tokenizer:
    """GPT-2's vocabulary in a folder; ConfigError where a file of the two is missing."""
    found = [
        next((folder / file for file in files if (folder / file).is_file()), None)
        for files in (_GPT2_VOCABULARIES, _GPT2_MERGES)
    ]
    if found[0] is None or found[1] is None:
        raise ConfigError(
            f"{folder}: GPT-2's vocabulary takes two files, {' or '.join(_GPT2_VOCABULARIES)} and "
            f"{' or '.join(_GPT2_MERGES)}. Put both there."
        )
    return read_gpt2_files(name, found[0], found[1])


def _read_folder(name: str, folder: Path) -> Tokenizer:
    """The one tokenizer of a folder; its tokenizer.json where it has one beside other forms."""
    for pattern in ("tokenizer.json", "*tokenizer.json"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return read_tokenizer_json(name, found[0])
    if any((folder / file).is_file() for file in _GPT2_VOCABULARIES):
        return _read_gpt2(name, folder)
    others = sorted({*folder.glob("*.model"), *folder.glob("*.model.v*"), *folder.glob("tok*.bin")})
    if len(others) != 1:
        what = (
            "no tokenizer"
            if not others
            else f"several tokenizers ({', '.join(path.name for path in others)})"
        )
        raise ConfigError(f"{folder}: {what} in this folder. Give the path of the tokenizer's file.")
    return _read_file(name, others[0])
