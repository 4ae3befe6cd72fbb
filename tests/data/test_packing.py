import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from retbench.data.corpora import Corpus, Document, load_corpus
from retbench.data.packing import PackedTokens, pack
from retbench.data.tokenizers import load_tokenizer, prefix_token
from retbench.errors import ConfigError, RetbenchError, StorageError

Write = Callable[[dict[str, str]], Path]
FILES = ["tokens.bin", "header.json"]
BYTES = load_tokenizer("bytes")


class Words:
    """A tokenizer with many tokens and none that ends a text: each character is its code point."""

    name = "characters"
    fingerprint = "characters"
    vocab_size = 0x110000
    bos_token_id = None
    eos_token_id = None

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))


@pytest.fixture
def corpus(write_folder: Write) -> Corpus:
    return load_corpus(str(write_folder({"a.txt": "One.", "b.txt": "Zwei ü 🙂", "c.txt": "Three three."})))


def packed_folder(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "packed").iterdir() if path.is_dir())
    return folder


def test_documents_follow_one_another_each_ended(corpus: Corpus) -> None:
    packed = pack(corpus, "all", BYTES)
    texts = [item.text.encode() for item in corpus.documents("all")]
    assert packed.tokens.dtype == np.uint16
    assert packed.tokens.tolist() == [token for text in texts for token in [*text, 256]]
    assert len(packed) == sum(map(len, texts)) + 3
    assert (packed.split, packed.header.vocab_size, packed.header.eos_token_id) == ("all", 257, 256)


def test_many_tokens_take_four_bytes_and_nothing_is_added_without_an_end(corpus: Corpus) -> None:
    packed = pack(corpus, "all", Words())
    assert packed.tokens.dtype == np.uint32
    assert Words().decode(packed.tokens.tolist()) == "".join(item.text for item in corpus.documents("all"))
    assert packed.header.eos_token_id is None


def test_a_text_has_the_begin_that_evaluation_gives_it(corpus: Corpus) -> None:
    class Begun(Words):
        fingerprint = "begun"
        bos_token_id = 1
        eos_token_id = 2

    class Ended(Words):
        fingerprint = "ended"
        bos_token_id = eos_token_id = 2

    texts = [Words().encode(item.text) for item in corpus.documents("all")]
    assert prefix_token(Begun()) == 1
    assert pack(corpus, "all", Begun()).tokens.tolist() == [
        token for text in texts for token in [1, *text, 2]
    ]
    assert pack(corpus, "all", Ended()).tokens.tolist() == [token for text in texts for token in [*text, 2]]


def test_text_is_packed_once(corpus: Corpus, cache: Path) -> None:
    calls: list[tuple[int, int]] = []
    first = pack(corpus, "all", BYTES, report=lambda done, size: calls.append((done, size)))
    assert calls == [(1, 4), (2, 16), (3, 28)]
    times = {path.name: path.stat().st_mtime_ns for path in packed_folder(cache).iterdir()}
    again = pack(corpus, "all", BYTES, report=lambda done, size: calls.append((done, size)))
    assert len(calls) == 3
    assert again.header == first.header
    assert {path.name: path.stat().st_mtime_ns for path in packed_folder(cache).iterdir()} == times
    assert sorted(times) == sorted(FILES)


def test_each_corpus_split_and_tokenizer_has_its_own(
    corpus: Corpus, write_folder: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "packed"
    found = [
        pack(corpus, "all", BYTES, folder),
        pack(corpus, "train", BYTES, folder),
        pack(corpus, "all", Words(), folder),
        pack(corpus, "all", BYTES, folder, max_tokens=5),
    ]
    other = load_corpus(str(write_folder({"a.txt": "Two."})))
    found.append(pack(other, "all", BYTES, folder))
    assert len({tuple(packed.tokens.tolist()) for packed in found}) == len(found)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == len(found)


def test_a_limit_stops_after_the_document_that_reaches_it(corpus: Corpus) -> None:
    ends = {most: len(pack(corpus, "all", BYTES, max_tokens=most)) for most in (5, 6, 10**9)}
    assert ends == {5: 5, 6: 18, 10**9: 31}
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        pack(corpus, "all", BYTES, max_tokens=0)


def test_an_unknown_split_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="has no split 'dev'; it has train, validation, test, all"):
        pack(corpus, "dev", BYTES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_tokens_are_packed_again_and_it_is_said(
    corpus: Corpus, cache: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    expected = pack(corpus, "all", BYTES)
    copy = np.array(expected.tokens)
    path = packed_folder(cache) / name
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-3 if name == "tokens.bin" else 0] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-2])
    else:
        path.unlink()
    with pytest.raises(RetbenchError, match="the packed tokens are damaged"):
        PackedTokens(packed_folder(cache))
    with caplog.at_level(logging.WARNING):
        packed = pack(corpus, "all", BYTES)
    assert "the packed tokens are damaged; they are packed again" in caplog.text
    assert packed.tokens.tolist() == copy.tolist()
    caplog.clear()
    assert pack(corpus, "all", BYTES).header == expected.header
    assert not caplog.text


def test_a_corpus_that_fails_leaves_nothing(corpus: Corpus, cache: Path) -> None:
    class Failing:
        name, fingerprint, revision, splits = "failing", "0", None, ("all",)

        def documents(self, split: str) -> Iterator[Document]:
            yield from corpus.documents(split)
            raise ConfigError("row 4 is no text")

    with pytest.raises(ConfigError, match="row 4"):
        pack(Failing(), "all", BYTES)
    assert [path.suffix for path in (cache / "packed").iterdir()] in ([], [".lock"])


def test_tokens_beyond_the_vocabulary_are_refused(corpus: Corpus) -> None:
    class Small(Words):
        vocab_size = 120

    with pytest.raises(ConfigError, match=r"has 120 tokens and gives 128,578 in document 'b.txt'"):
        pack(corpus, "all", Small())


def test_a_folder_that_cannot_be_written_is_named(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/.*cannot be written: .*RETBENCH_CACHE"):
        pack(corpus, "all", BYTES, tmp_path / "file")


PACK = """
import os, resource, signal, sys, time
from retbench.data.corpora import load_corpus
from retbench.data.packing import pack
from retbench.data.tokenizers import ByteTokenizer
from retbench.errors import StorageError

class Tokenizer(ByteTokenizer):
    def encode(self, text):
        {encode}
        return super().encode(text)

try:
    print(pack(load_corpus(sys.argv[1]), "all", Tokenizer()).header.sha256)
except StorageError as error:
    print(error)
"""


def start(root: Path, encode: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", PACK.format(encode=encode), str(root)]
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_of_two_processes_one_packs(write_folder: Write, tmp_path: Path) -> None:
    root = write_folder({"a.txt": "One.", "b.txt": "Two."})
    log = tmp_path / "log"
    both = [start(root, f"open({str(log)!r}, 'a').write('x'); time.sleep(0.4)") for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in both]
    assert answers[0][0] == answers[1][0] == pack(load_corpus(str(root)), "all", BYTES).header.sha256 + "\n"
    assert log.read_text(encoding="ascii") == "xx"  # two documents, encoded once
    assert [process.returncode for process in both] == [0, 0]
    assert sum("another process packs these tokens" in talk for _, talk in answers) <= 1


def test_a_process_that_was_killed_leaves_nothing_in_the_way(write_folder: Write, cache: Path) -> None:
    root = write_folder({"a.txt": "One.", "b.txt": "Two."})
    killed = start(root, "text == 'Two.' and os.kill(os.getpid(), signal.SIGKILL)")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert list((cache / "packed").glob(".draft-*"))
    other = write_folder({"a.txt": "One.", "b.txt": "Three."})
    assert len(pack(load_corpus(str(other)), "all", BYTES)) == len("One.Three.") + 2
    assert not list((cache / "packed").glob(".draft-*"))  # of another corpus, and nobody is packing it


def test_a_draft_that_another_process_is_writing_is_left_alone(write_folder: Write, cache: Path) -> None:
    root = write_folder({"a.txt": "One.", "b.txt": "Two."})
    slow = start(root, "print(flush=True); sys.stdin.read()")
    assert slow.stdout is not None
    slow.stdout.readline()
    (draft,) = (cache / "packed").glob(".draft-*")
    pack(load_corpus(str(root)), "all", BYTES, max_tokens=5)
    assert draft.is_dir()
    answer, talk = slow.communicate(timeout=60)
    assert slow.returncode == 0, talk
    assert answer.strip().split()[-1] == pack(load_corpus(str(root)), "all", BYTES).header.sha256


def test_a_full_disk_is_said_and_leaves_nothing(write_folder: Write, cache: Path) -> None:
    root = write_folder({"a.txt": "One.", "b.txt": "Two " * 50_000})
    limited = start(root, "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))")
    answer, talk = limited.communicate(timeout=60)
    assert "cannot be written: File too large" in answer, talk
    assert "RETBENCH_CACHE" in answer
    assert [path.suffix for path in (cache / "packed").iterdir()] == [".lock"]


def test_real_text_comes_back(data_dir: Path) -> None:
    corpus, tokenizer = (
        load_corpus("wikitext-103", data_dir=data_dir),
        load_tokenizer("gpt2", data_dir=data_dir),
    )
    packed = pack(corpus, "validation", tokenizer)
    documents = list(corpus.documents("validation"))
    (end,) = tokenizer.encode("<|endoftext|>")
    ends = [-1, *np.flatnonzero(packed.tokens == end).tolist()]
    assert [tokenizer.decode(packed.tokens[start + 1 : stop].tolist()) for start, stop in pairwise(ends)] == [
        item.text for item in documents
    ]
