"""Files of tokenizers that anybody may have written: each is read, or refused by one of our errors."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from retbench.data.tokenizers import load_tokenizer
from retbench.errors import ConfigError
from tests.fuzzing import EXAMPLES, fuzz, read_or_refused, texts

LETTERS = {letter: number for number, letter in enumerate("abcdefgh <>|xyz")}


def encode_with(folder: Path) -> None:
    """Read the tokenizer of a folder and use it, or be refused."""
    with read_or_refused():
        tokenizer = load_tokenizer(str(folder))
        tokenizer.decode(tokenizer.encode("a bad cab\n🙂"))


def library_file() -> dict[str, Any]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={**LETTERS, "ab": 20}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


@EXAMPLES
def test_any_tokenizer_json(tmp_path: Path, examples: int) -> None:
    def check(content: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        encode_with(tmp_path)

    fuzz(texts(library_file()), check, examples)


def test_a_file_that_makes_the_library_panic_is_refused(tmp_path: Path) -> None:
    content = library_file()
    content["model"]["continuing_subword_prefix"] = "longer than a piece"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match="not a tokenizer"):
        load_tokenizer(str(tmp_path))


@EXAMPLES
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_any_settings_beside_it(tmp_path: Path, name: str, examples: int) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(library_file()), encoding="utf-8")

    def check(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        encode_with(tmp_path)

    fuzz(texts({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}), check, examples)


@pytest.mark.parametrize("settings", [[], 5, {"bos_token": 5}, {"eos_token": {"content": ["x"]}}])
def test_settings_of_another_type_are_named(tmp_path: Path, settings: object) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(library_file()), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer_config.json: .*expected"):
        load_tokenizer(str(tmp_path))


@EXAMPLES
def test_any_gpt2_files(tmp_path: Path, examples: int) -> None:
    def check(files: tuple[bytes, str]) -> None:
        (tmp_path / "vocab.json").write_bytes(files[0])
        (tmp_path / "merges.txt").write_text(files[1], encoding="utf-8")
        encode_with(tmp_path)

    merges = st.sampled_from(["a b", "#version: 0.2\na b\n", "", "a", "a b c", "ab a"]) | st.text(
        st.characters(exclude_categories=["Cs"])
    )
    fuzz(st.tuples(texts({**LETTERS, "ab": 20}), merges), check, examples)


def pieces(number: int = 259) -> bytes:
    content = struct.pack("<i", 7)
    for token in range(number):
        piece = f"<0x{token - 3:02X}>".encode() if token >= 3 else b"<s>"
        content += struct.pack("<fi", float(token), len(piece)) + piece
    return content


@EXAMPLES
@pytest.mark.parametrize(("name", "make"), [("tok9.bin", pieces), ("tokenizer.model", lambda: b"")])
def test_any_binary_tokenizer(tmp_path: Path, name: str, make: Callable[[], bytes], examples: int) -> None:
    whole = make()

    def check(change: tuple[int, bytes, int]) -> None:
        start, put, length = change
        (tmp_path / name).write_bytes(whole[:start] + put + whole[start + length :])
        encode_with(tmp_path)

    fuzz(st.tuples(st.integers(0, len(whole)), st.binary(max_size=40), st.integers(0, 9)), check, examples)


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_a_text_that_is_not_unicode_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="the tokenizer 'bytes' cannot encode"):
        load_tokenizer("bytes").encode(text)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "stories260K"])
def test_no_format_encodes_a_text_that_is_not_unicode(data_dir: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"the tokenizer '{name}' cannot encode"):
        load_tokenizer(name, data_dir=data_dir).encode("a\ud800")
