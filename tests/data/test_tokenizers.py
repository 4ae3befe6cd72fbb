import json
import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tokenizers as library
from hypothesis import example, given
from hypothesis import strategies as st
from plain_tokenizers import gpt2_encode, llama2c_encode, read_tiktoken

from retbench.data.scored_pieces import ScoredPieces, read_pieces
from retbench.data.tokenizers import find_tokenizer_file, load_tokenizer
from retbench.errors import ConfigError, UnsupportedError

AWKWARD = "Once  upon a time,\n\n  naïve café's 1999 — 日本語 🙂\t'tis don't\r\n <0x0A> \u00a0 end  "
REAL = ["gpt2", "neox", "mistral", "stories260K/tok512.bin"]
BYTE_PIECES = [
    (piece, 0.0) for piece in (b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256)))
]


def write_pieces(path: Path, pieces: Sequence[tuple[bytes, float]]) -> Path:
    """Write pieces and scores as llama2.c's export does."""
    entries = [struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces]
    path.write_bytes(struct.pack("<i", max(len(piece) for piece, _ in pieces)) + b"".join(entries))
    return path


@pytest.fixture
def novel(data_dir: Path) -> str:
    path = data_dir / "litbank" / "original" / "158_emma.txt"
    return path.read_text(encoding="utf-8")[:60_000] + AWKWARD


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_round_trip(text: str) -> None:
    tokenizer = load_tokenizer("bytes")
    tokens = tokenizer.encode(text)
    assert bytes(tokens) == text.encode()
    assert tokenizer.decode(tokens) == text


@given(st.lists(st.integers(0, 256)))
def test_bytes_decode_whatever_a_model_writes(tokens: list[int]) -> None:
    text = load_tokenizer("bytes").decode(tokens)
    assert text == bytes(token for token in tokens if token < 256).decode("utf-8", "replace")


def test_bytes_have_one_token_more_that_begins_and_ends_a_text() -> None:
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id) == (257, 256, 256)
    assert tokenizer.fingerprint == "202cea937973"
    with pytest.raises(ConfigError, match="token 257 is not in the vocabulary of the tokenizer 'bytes'"):
        tokenizer.decode([65, 257])


def test_gpt2_gives_the_tokens_of_its_definition(data_dir: Path, novel: str) -> None:
    ranks = read_tiktoken(data_dir / "gpt2_tokenizer" / "gpt2.tiktoken")
    assert load_tokenizer("gpt2", data_dir=data_dir).encode(novel) == gpt2_encode(novel, ranks)


def test_gpt2_is_one_tokenizer_under_all_names_of_its_files(data_dir: Path, tmp_path: Path) -> None:
    names = ["gpt2", "gpt2_tokenizer", "gpt2_tokenizer/encoder.json", "gpt2_tokenizer/vocab.bpe"]
    found = [load_tokenizer(name, data_dir=data_dir) for name in names]
    shutil.copy(data_dir / "gpt2_tokenizer" / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(data_dir / "gpt2_tokenizer" / "vocab.bpe", tmp_path / "merges.txt")
    found.append(load_tokenizer(str(tmp_path)))
    assert [tokenizer.name for tokenizer in found] == [*names, str(tmp_path)]
    assert len({tokenizer.fingerprint for tokenizer in found}) == 1
    assert found[0].vocab_size == 50257
    assert found[0].bos_token_id == found[0].eos_token_id == 50256


@pytest.mark.parametrize(
    ("name", "vocab_size", "bos", "eos"),
    [("neox", 50277, 0, 0), ("mistral", 32000, 1, 2), ("stories260K", 512, 1, 2)],
)
def test_known_tokenizers_say_what_they_are(
    data_dir: Path, name: str, vocab_size: int, bos: int, eos: int
) -> None:
    tokenizer = load_tokenizer(name, data_dir=data_dir)
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id) == (vocab_size, bos, eos)


@pytest.mark.parametrize("name", REAL)
def test_real_text_round_trips_and_nothing_is_added(data_dir: Path, novel: str, name: str) -> None:
    tokenizer = load_tokenizer(name, data_dir=data_dir)
    tokens = tokenizer.encode(novel)
    assert tokenizer.decode(tokens) == novel
    assert tokenizer.bos_token_id not in tokens
    assert tokenizer.eos_token_id not in tokens
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("name", [*REAL, "bytes"])
def test_tokens_beyond_the_vocabulary_are_refused(data_dir: Path, name: str) -> None:
    tokenizer = load_tokenizer(name, data_dir=data_dir)
    for wrong in (tokenizer.vocab_size, -1):
        with pytest.raises(ConfigError, match=f"token {wrong} is not in the vocabulary"):
            tokenizer.decode([5, wrong])


def test_truncation_and_special_tokens_of_a_file_are_not_in_the_way(data_dir: Path, tmp_path: Path) -> None:
    content = json.loads((data_dir / "neox_tokenizer" / "20B_tokenizer.json").read_bytes())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    plain = load_tokenizer("neox", data_dir=data_dir)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode(AWKWARD) == plain.encode(AWKWARD)
    assert tokenizer.fingerprint != plain.fingerprint


def test_a_configuration_beside_says_what_begins_and_ends_a_text(data_dir: Path, tmp_path: Path) -> None:
    shutil.copy(data_dir / "neox_tokenizer" / "20B_tokenizer.json", tmp_path / "tokenizer.json")
    settings = {"bos_token": None, "eos_token": {"content": "<|padding|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (None, 1)
    assert tokenizer.fingerprint != load_tokenizer("neox", data_dir=data_dir).fingerprint


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_configuration_that_names_no_token_of_the_vocabulary_is_refused(tmp_path: Path, file: str) -> None:
    vocabulary = library.Tokenizer(library.models.WordLevel({"a": 0, "<end>": 1}, unk_token="a"))
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / file).write_text(json.dumps({"bos_token": "<s>", "eos_token": "<end>"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{file}: bos_token is '<s>', which is no token"):
        load_tokenizer(str(tmp_path))
    (tmp_path / file).write_text(json.dumps({"bos_token": None, "eos_token": "<end>"}), encoding="utf-8")
    assert load_tokenizer(str(tmp_path)).eos_token_id == 1


CHARACTERS = st.characters(exclude_categories=["Cs"])
WORDS = st.sampled_from(["the", " was", "  ", "\n\n", "\x00", "\t", "é", "🙂", "<0x0A>", "<unk>", "\n<s>\n"])


@given(text=st.lists(WORDS | CHARACTERS, max_size=40).map("".join))
def test_scored_pieces_merge_as_llama2c_does(
    stories: tuple[ScoredPieces, list[tuple[bytes, float]]], text: str
) -> None:
    tokenizer, pieces = stories
    assert tokenizer.encode(text) == llama2c_encode(text, pieces)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@example(pieces=["ab", "ba"], text="aba bab")
@given(
    pieces=st.lists(st.text("abc ", min_size=2, max_size=4), max_size=12), text=st.text("abc d", max_size=30)
)
def test_scored_pieces_of_equal_scores_merge_as_llama2c_does(pieces: list[str], text: str) -> None:
    """The leftmost of equal pairs is merged first, which no fixed order of merges gives."""
    entries = [*BYTE_PIECES, *((piece.encode(), 0.0) for piece in dict.fromkeys([*"abc ", *pieces]))]
    with TemporaryDirectory() as folder:
        path = write_pieces(Path(folder, "tok9.bin"), entries)
        assert ScoredPieces("tok9", path).encode(text) == llama2c_encode(text, entries)


@pytest.mark.parametrize("wrong", [b"<0x0a>", b"\n"])
def test_scored_pieces_have_every_byte(tmp_path: Path, wrong: bytes) -> None:
    pieces = [(wrong if piece == b"<0x0A>" else piece, score) for piece, score in BYTE_PIECES]
    with pytest.raises(ConfigError, match="tokens 3 to 258 are not the bytes"):
        load_tokenizer(str(write_pieces(tmp_path / "tok9.bin", pieces)))


@pytest.fixture(scope="module")
def stories(data_dir: Path) -> tuple[ScoredPieces, list[tuple[bytes, float]]]:
    path = data_dir / "stories260K" / "tok512.bin"
    return ScoredPieces("tok512", path), read_pieces(path.read_bytes())


def test_scored_pieces_merge_as_llama2c_does_on_real_text(
    stories: tuple[ScoredPieces, list[tuple[bytes, float]]], novel: str
) -> None:
    tokenizer, pieces = stories
    for start in range(0, 4000, 400):
        assert tokenizer.encode(novel[start : start + 400]) == llama2c_encode(
            novel[start : start + 400], pieces
        )


def test_scored_pieces_equal_sentencepiece_on_its_own_model(
    data_dir: Path, tmp_path: Path, novel: str
) -> None:
    """Mistral's model written as llama2.c's export writes it: two implementations of one vocabulary."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = data_dir / "mistral_tokenizer" / "tokenizer.model.v1"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    special = {processor.bos_id(): "\n<s>\n", processor.eos_id(): "\n</s>\n"}
    pieces = [
        (
            special.get(token, processor.id_to_piece(token)).replace("▁", " ").encode(),
            processor.get_score(token),
        )
        for token in range(processor.vocab_size())
    ]
    ours = load_tokenizer(str(write_pieces(tmp_path / "tokenizer.bin", pieces)))
    text = novel.replace("▁", "_")
    assert ours.encode(text) == load_tokenizer("mistral", data_dir=data_dir).encode(text)


def test_a_missing_package_is_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(
        UnsupportedError, match=r"needs the package 'sentencepiece'.*pip install sentencepiece"
    ):
        load_tokenizer("mistral", data_dir=data_dir)


def test_an_unknown_name_is_refused_with_the_nearest(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"unknown tokenizer 'byte'.*Did you mean 'bytes'"):
        load_tokenizer("byte", data_dir=data_dir)
    monkeypatch.delenv("RETBENCH_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"no data folder was named.*RETBENCH_DATA"):
        load_tokenizer("gpt2")
    with pytest.raises(ConfigError, match="empty name"):
        load_tokenizer(" ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "tokenizer.json: not a tokenizer.json"),
        ("a.model.json", b"{", "a.model.json: not a tokenizer.json"),
        ("tokenizer.json", b'{"model": 3}', "tokenizer.json: not a tokenizer.json"),
        ("vocab.json", b"{}", "takes two files, .*merges.txt or vocab.bpe"),
        ("tokenizer.model", b"no model", "not a SentencePiece model"),
        (
            "tok7.bin",
            struct.pack("<ifi", 5, 0.0, 9) + b"abc",
            "not a tokenizer of llama2.c: it ends within token 0",
        ),
        ("tok7.bin", struct.pack("<ifi", 5, 0.0, 3) + b"abc", "tokens 3 to 258 are not the bytes"),
        ("words.csv", b"a,b", "not a tokenizer of a known format"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(str(tmp_path / name))


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ('{"a": 0, "b": 1}', "#version: 0.2\na b\n", "the merge 'a b' is of pieces that are no tokens"),
        ('{"a": 0, "b": 1}', "a b c", "the merge 'a b c'"),
        ('["a"]', "a b", "the first is no object"),
    ],
)
def test_gpt2_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, vocabulary: str, merges: str, message: str
) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"vocab.json and merges.txt: not GPT-2's vocabulary: {message}"):
        load_tokenizer(str(tmp_path))


def test_tokenizers_of_one_folder_have_an_order(tmp_path: Path) -> None:
    names = ["tokenizer.json", "a_tokenizer.json", "vocab.json", "tokenizer.model", "tokenizer.model.v1"]
    for name in [*names, "merges.txt"]:
        (tmp_path / name).touch()
    for name in names:
        assert find_tokenizer_file(tmp_path).name == name
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no tokenizer"),
        (["a.model", "b.model"], r"several tokenizers \(a.model, b.model\)"),
        (["vocab.json", "tokenizer.model"], "takes two files, .*merges.txt or vocab.bpe"),
        (
            ["a_tokenizer.json", "b_tokenizer.json"],
            r"several tokenizers \(a_tokenizer.json, b_tokenizer.json\)",
        ),
    ],
)
def test_a_folder_holds_one_tokenizer(tmp_path: Path, names: Sequence[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(str(tmp_path))
