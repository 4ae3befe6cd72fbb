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
from typing import Literal

from retbench.data import hub
from retbench.data.data_folder import find
from retbench.data.scored_pieces import ScoredPieces
from retbench.data.vocabularies import (
    BYTES,
    SETTINGS,
    ByteTokenizer,
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
    "find_tokenizer_file",
    "load_tokenizer",
    "locate_tokenizer",
    "prefix_token",
    "token_ends",
    "tokenizer_files",
]

_SHORT_NAMES = {"gpt2": "gpt2_tokenizer", "neox": "neox_tokenizer", "mistral": "mistral_tokenizer"}
_GPT2_VOCABULARIES = ("vocab.json", "encoder.json")
_GPT2_MERGES = ("merges.txt", "vocab.bpe")
_HUB_FILES = ("tokenizer.json", *SETTINGS, *_GPT2_VOCABULARIES, *_GPT2_MERGES, "tokenizer.model")
_PREFERENCE = (
    ("tokenizer.json",),
    ("*tokenizer.json",),
    *((name,) for name in _GPT2_VOCABULARIES),
    ("tokenizer.model",),
    ("*.model", "*.model.v*", "tok*.bin"),
)
"""Patterns of a folder's tokenizer; the first ones that match anything decide."""


def load_tokenizer(name: str, *, data_dir: Path | None = None) -> Tokenizer:
    """Return the tokenizer of that name.

    Args:
        name: "bytes", a path, a name below the data folder, or `hub:...`.
        data_dir: The data folder; None for that of RETBENCH_DATA.

    Raises:
        ConfigError: there is no such tokenizer, or its files are damaged.
        UnsupportedError: the hub cannot be reached, or a package is missing.
    """
    if name == BYTES:
        return ByteTokenizer()
    path = _file_of(locate_tokenizer(name, data_dir=data_dir))
    match _format_of(path):
        case "gpt2":
            return read_gpt2_files(name, *_gpt2_files(path.parent))
        case ".json":
            return read_tokenizer_json(name, path)
        case ".model":
            return SentencePieceTokenizer(name, path)
        case _:
            return ScoredPieces(name, path)


def locate_tokenizer(name: str, *, data_dir: Path | None = None) -> Path:
    """Return the file or folder of a tokenizer that is not `bytes`; arguments and errors as of `load_tokenizer`."""
    if name.startswith(hub.PREFIX):
        return hub.download_files(name, hub.parse_name(name), _HUB_FILES)
    return find(name, kind="tokenizer", data_dir=data_dir, known=[BYTES], below=_SHORT_NAMES.get(name))


def tokenizer_files(path: Path) -> dict[str, Path]:
    """Return every file of the tokenizer at a path, by the names under which other libraries look for them.

    They are those that `load_tokenizer` reads, and the settings beside any tokenizer that transformers reads.

    Args:
        path: A tokenizer's file or folder.

    Raises:
        ConfigError: the folder holds none or several, a file is missing, or its format is unknown.
    """
    path = _file_of(path)
    kind = _format_of(path)
    if kind == "gpt2":
        files = dict(zip((_GPT2_VOCABULARIES[0], _GPT2_MERGES[0]), _gpt2_files(path.parent), strict=True))
    else:
        files = {f"tokenizer{kind}": path}
    return files | {name: path.parent / name for name in SETTINGS if (path.parent / name).is_file()}


def _file_of(path: Path) -> Path:
    """Return a tokenizer's file: `path`, or the one in the folder `path`."""
    return find_tokenizer_file(path) if path.is_dir() else path


def _format_of(path: Path) -> Literal["gpt2", ".json", ".model", ".bin"]:
    """Return the format of a tokenizer's file; ConfigError if it is unknown."""
    if path.name in (*_GPT2_VOCABULARIES, *_GPT2_MERGES):
        return "gpt2"
    if path.suffix == ".json":
        return ".json"
    if ".model" in path.suffixes:
        return ".model"
    if path.suffix == ".bin":
        return ".bin"
    raise ConfigError(
        f"{path}: not a tokenizer of a known format. Give a tokenizer.json, GPT-2's vocabulary, a SentencePiece "
        ".model, llama2.c's tok*.bin, or a folder with one of these."
    )


def _gpt2_files(folder: Path) -> tuple[Path, Path]:
    """Return GPT-2's vocabulary and merges in a folder; ConfigError if one of the two files is missing."""
    vocabulary, merges = (
        next((folder / file for file in files if (folder / file).is_file()), None)
        for files in (_GPT2_VOCABULARIES, _GPT2_MERGES)
    )
    if vocabulary is None or merges is None:
        raise ConfigError(
            f"{folder}: GPT-2's vocabulary takes two files, {' or '.join(_GPT2_VOCABULARIES)} and "
            f"{' or '.join(_GPT2_MERGES)}. Put both there."
        )
    return vocabulary, merges


def find_tokenizer_file(folder: Path) -> Path:
    """Return the file of a folder's only tokenizer, which is GPT-2's vocabulary for its two files.

    A tokenizer.json is preferred to other formats, and a tokenizer.model to others after GPT-2's.

    Raises:
        ConfigError: there is none, or several, or one of GPT-2's files is missing.
    """
    found: list[Path] = []
    for patterns in _PREFERENCE:
        found = sorted({path for each in patterns for path in folder.glob(each) if path.is_file()})
        if found:
            break
    if len(found) != 1:
        several = f"several tokenizers ({', '.join(path.name for path in found)})"
        count = several if found else "no tokenizer"
        raise ConfigError(f"{folder}: {count} in this folder. Give the path of the tokenizer's file.")
    if _format_of(found[0]) == "gpt2":
        _gpt2_files(folder)
    return found[0]


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
