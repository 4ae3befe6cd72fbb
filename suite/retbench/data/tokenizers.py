"""Tokenizers by name, and the checks that a model can be evaluated with one. Without torch.

bytes                     the UTF-8 bytes, 0 to 255, and 256 as the end-of-text token
PATH, or a name below the data folder
                          a tokenizer.json; GPT-2's vocabulary (vocab.json or encoder.json, with merges.txt or
                          vocab.bpe in the same folder); a SentencePiece .model; llama2.c's tok*.bin; a folder with one
gpt2, neox, mistral       gpt2_tokenizer, neox_tokenizer and mistral_tokenizer below the data folder
hub:REPO[@REVISION]       the tokenizer of a model on the hub
"""

from collections.abc import Sequence
from pathlib import Path

from retbench.data import hub
from retbench.data.places import find
from retbench.data.vocabularies import (
    BYTES,
    ByteTokenizer,
    ScoredPieces,
    SentencePieceTokenizer,
    Tokenizer,
    read_gpt2_files,
    read_tokenizer_json,
)
from retbench.errors import ConfigError, shown

__all__ = [
    "ByteTokenizer",
    "Tokenizer",
    "check_bos_token",
    "check_vocabulary",
    "load_tokenizer",
    "prefix_token",
    "token_ends",
]

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


def load_tokenizer(name: str, *, data_dir: Path | None = None) -> Tokenizer:
    """Return the tokenizer of that name.

    Args:
        name: "bytes", a path, a name below the data folder, or `hub:...`.
        data_dir: The data folder; None for that of RETBENCH_DATA.

    Raises:
        ConfigError: there is no such tokenizer, or its files are damaged.
        UnsupportedError: the hub cannot be reached, or a package is missing.
    """
    if name.startswith(hub.PREFIX):
        return _read_folder(name, hub.download_files(name, hub.parse_name(name), _HUB_FILES))
    if name == BYTES:
        return ByteTokenizer()
    path = find(name, kind="tokenizer", data_dir=data_dir, known=[BYTES], below=_SHORT_NAMES.get(name))
    return _read_folder(name, path) if path.is_dir() else _read_file(name, path)


def _read_file(name: str, path: Path) -> Tokenizer:
    """Read the tokenizer of one file, and the other files of its format in the same folder."""
    if path.name in (*_GPT2_VOCABULARIES, *_GPT2_MERGES):
        return _read_gpt2(name, path.parent)
    if path.suffix == ".json":
        return read_tokenizer_json(name, path)
    if ".model" in path.suffixes:
        return SentencePieceTokenizer(name, path)
    if path.suffix == ".bin":
        return ScoredPieces(name, path)
    raise ConfigError(
        f"{path}: not a tokenizer of a known format. Give a tokenizer.json, GPT-2's vocabulary, a SentencePiece "
        ".model, llama2.c's tok*.bin, or a folder with one of these."
    )


def _read_gpt2(name: str, folder: Path) -> Tokenizer:
    """Read GPT-2's vocabulary from a folder; ConfigError if one of the two files is missing."""
    vocabulary, merges = (
        next((folder / file for file in files if (folder / file).is_file()), None)
        for files in (_GPT2_VOCABULARIES, _GPT2_MERGES)
    )
    if vocabulary is None or merges is None:
        raise ConfigError(
            f"{folder}: GPT-2's vocabulary takes two files, {' or '.join(_GPT2_VOCABULARIES)} and "
            f"{' or '.join(_GPT2_MERGES)}. Put both there."
        )
    return read_gpt2_files(name, vocabulary, merges)


def _read_folder(name: str, folder: Path) -> Tokenizer:
    """Read the only tokenizer of a folder; a tokenizer.json is preferred to other formats."""
    found = sorted(folder.glob("tokenizer.json")) or sorted(folder.glob("*tokenizer.json"))
    if not found and any((folder / file).is_file() for file in _GPT2_VOCABULARIES):
        return _read_gpt2(name, folder)
    found = found or sorted({*folder.glob("*.model"), *folder.glob("*.model.v*"), *folder.glob("tok*.bin")})
    if len(found) != 1:
        several = f"several tokenizers ({', '.join(path.name for path in found)})"
        count = several if found else "no tokenizer"
        raise ConfigError(f"{folder}: {count} in this folder. Give the path of the tokenizer's file.")
    return _read_file(name, found[0])


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise a ConfigError if a tokenizer has more tokens than a model with a vocabulary of that size."""
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            f"tokenizer '{tokenizer.name}' has {tokenizer.vocab_size:,} tokens and the model's vocabulary only "
            f"{vocab_size:,}. Give the tokenizer that the model was trained with."
        )


def prefix_token(tokenizer: Tokenizer) -> int:
    """Return the token before a text without context: begin-of-text, else end-of-text, as in lm-eval's HFLM.

    Raises:
        ConfigError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ConfigError(
        f"tokenizer '{tokenizer.name}' has neither a begin-of-text nor an end-of-text token, and without one the first "
        "token of a text cannot be scored. Use a tokenizer that has one."
    )


def has_own_begin(tokenizer: Tokenizer) -> bool:
    """Return whether a text begins with another token than the one that ends it."""
    return tokenizer.bos_token_id not in (None, tokenizer.eos_token_id)


def check_bos_token(tokenizer: Tokenizer) -> None:
    """Raise a ConfigError if a tokenizer has no begin-of-text token, which `add_bos` needs."""
    if tokenizer.bos_token_id is None:
        raise ConfigError(
            f"tokenizer '{tokenizer.name}' has no begin-of-text token, which add_bos asks for. Set add_bos to false."
        )


_LONGEST_CHARACTER = 8
"""Tokens over which one character may be spread: its bytes, and pieces that stand for nothing."""


def token_ends(tokenizer: Tokenizer, tokens: Sequence[int], text: str) -> list[int]:
    """Return the characters of a text up to the end of each of its tokens.

    A token that ends within a character counts up to the end of that character.

    Raises:
        ConfigError: the tokenizer does not give the text back, so that its tokens have no places in it.
    """
    pieces: dict[tuple[int, ...], str] = {}

    def decode(part: tuple[int, ...]) -> str:
        if part not in pieces:
            pieces[part] = tokenizer.decode(part)
        return pieces[part]

    ends: list[int] = []
    start = place = 0
    for index in range(len(tokens)):
        # After the token before, because decoders drop a space at the beginning.
        before = tuple(tokens[max(0, start - 1) : start])
        piece = decode((*before, *tokens[start : index + 1]))[len(decode(before)) if before else 0 :]
        if text.startswith(piece, place):
            place += len(piece)
            ends += [place] * (index + 1 - start)
            start = index + 1
        elif index + 1 - start > _LONGEST_CHARACTER:
            break
    if len(ends) < len(tokens) or place < len(text.rstrip()):
        raise ConfigError(
            f"tokenizer '{tokenizer.name}' does not give a text back as it was, from {shown(text[place : place + 20])} "
            "on, so the losses of its words are not known. Use a tokenizer that keeps the text."
        )
    return ends
