import errno
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from retbench.data import text_files
from retbench.data.corpora import load_corpus
from retbench.errors import ConfigError, RetbenchError

Write = Callable[[dict[str, str]], Path]
LONG_AGO_NS = 10**18


def names(corpus_name: Path | str, split: str = "all") -> list[str]:
    return [document.name for document in load_corpus(str(corpus_name)).documents(split)]


def texts(corpus_name: Path | str, split: str = "all") -> list[str]:
    return [document.text for document in load_corpus(str(corpus_name)).documents(split)]


def test_python_is_its_own_library() -> None:
    corpus = load_corpus("python")
    root = Path(sysconfig.get_path("stdlib"))
    documents = list(corpus.documents("all"))
    assert documents[0].name == "pydoc_data/topics.py"
    assert next(item for item in documents if item.name == "json/decoder.py").text == (
        root / "json" / "decoder.py"
    ).read_text(encoding="utf-8")
    assert corpus.splits == ("train", "validation", "test", "all")
    parts = [{item.name for item in corpus.documents(split)} for split in ("train", "validation", "test")]
    assert set.union(*parts) == {item.name for item in documents}
    assert sum(map(len, parts)) == len(documents)
    assert corpus.fingerprint == load_corpus("python").fingerprint
    assert len(corpus.fingerprint) == 12


def test_a_folder_is_read_in_the_order_of_its_names(write_folder: Write) -> None:
    root = write_folder(
        {
            "b/two.md": "two",
            "a.txt": "one",
            "c.TOKENS": "three",
            "README.md": "no",
            "LICENSE.txt": "no",
            "x.bin": "no",
            ".git/x.txt": "no",
            ".hidden.txt": "no",
            "d.txt": " \n",
        }
    )
    assert names(root) == ["a.txt", "b/two.md", "c.TOKENS"]
    assert texts(root) == ["one", "two", "three"]


def test_each_line_of_json_is_a_document(write_folder: Write) -> None:
    lines = [
        '\ufeff{"text": "one\\r\\ntwo \u2028 \\u00e9", "meta": {"source": 1}}',
        "",
        '{"id": 7, "page": "three"}',
        '{"text": " "}',
    ]
    root = write_folder({"b.jsonl": "\r\n".join(lines), "a.txt": "zero"})
    assert names(root) == ["a.txt", "b.jsonl/1", "b.jsonl/3"]
    assert texts(root) == ["zero", "one\ntwo \u2028 é", "three"]
    assert names(root / "b.jsonl") == ["b.jsonl/1", "b.jsonl/3"]


def test_json_lines_are_split_as_files_are(write_folder: Write) -> None:
    root = write_folder({f"{name}.jsonl": f'{{"text": "{name}"}}\n' * 2 for name in ("train", "valid")})
    assert (texts(root, "train"), names(root, "validation")) == (
        ["train"] * 2,
        ["valid.jsonl/1", "valid.jsonl/2"],
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "torn', "is not JSON: Invalid control character at column 15"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"content": "elsewhere"}', "has no text"),
        ('{"text": 3}', "has no text"),
        ('"text"', "has no text"),
    ],
)
def test_a_line_of_json_without_a_text_is_named(write_folder: Write, line: str, message: str) -> None:
    root = write_folder({"a.jsonl": f'{{"text": "one"}}\n{line}\n'})
    with pytest.raises(ConfigError, match=rf"a\.jsonl:2: .*{message}"):
        load_corpus(str(root))


def test_text_is_read_as_python_reads_text(write_folder: Write) -> None:
    root = write_folder({"a.txt": "\ufeff# Title: Émile\r\n\r\nold\rmac\n"})
    assert texts(root) == ["# Title: Émile\n\nold\nmac\n"]


def test_a_python_source_is_read_as_it_declares_itself(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_bytes("# coding: latin-1\nname = 'é'\n".encode("latin-1"))
    assert texts(path) == ["# coding: latin-1\nname = 'é'\n"]
    path.write_bytes(b"# coding: klingon\n")


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "undefined", "punycode", "hex", "idna"])
def test_a_source_in_an_encoding_that_is_none_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "old.py"
    path.write_bytes(f"# coding: {encoding}\nx = 1\n".encode() + bytes([0xFF, 0xC3]))
    with pytest.raises(ConfigError, match=r"old.py: is not text: .*"):
        load_corpus(str(path))


def test_half_of_a_surrogate_pair_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_bytes(rb"# coding: raw_unicode_escape" + b"\n" + rb"x = '\ud800'")
    with pytest.raises(ConfigError, match=r"old.py: is not text: .*surrogates"):
        load_corpus(str(path))


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_not_a_regular_file_is_never_opened(tmp_path: Path, beside: bool) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match=r"a.txt: is not a regular file"):
        load_corpus(str(tmp_path if beside else tmp_path / "a.txt"))


def test_names_are_looked_up_below_the_data_folder(
    write_folder: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = write_folder({"books/a.txt": "text"})
    monkeypatch.setenv("RETBENCH_DATA", str(root))
    corpus = load_corpus("books")
    assert (corpus.name, corpus.revision) == ("books", None)
    monkeypatch.delenv("RETBENCH_DATA")
    assert load_corpus("books", data_dir=root).fingerprint == corpus.fingerprint
    assert load_corpus(str(root / "books")).fingerprint == corpus.fingerprint
    with pytest.raises(
        ConfigError, match=r"unknown corpus 'bokks'.*Did you mean 'books'\? Built in: python\."
    ):
        load_corpus("bokks", data_dir=root)
    with pytest.raises(ConfigError, match=r"--data-dir: '.*nowhere' is not a folder"):
        load_corpus("books", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("RETBENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"RETBENCH_DATA: '.*nowhere' is not a folder"):
        load_corpus("books")


def test_the_fingerprint_is_of_content_and_names_not_of_the_place(
    write_folder: Write, tmp_path: Path
) -> None:
    root = write_folder({"a.txt": "one", "b.txt": "two", "c.txt": "three"})
    before = load_corpus(str(root)).fingerprint
    moved = root.rename(tmp_path / "elsewhere")
    assert load_corpus(str(moved)).fingerprint == before
    (moved / "b.txt").write_text("owt", encoding="utf-8")  # same size, within the clock's tick of being read
    changed = load_corpus(str(moved)).fingerprint
    (moved / "b.txt").rename(moved / "d.txt")
    assert len({before, changed, load_corpus(str(moved)).fingerprint}) == 3


def names_in_splits(root: Path) -> list[str]:
    return sorted(name for split in ("train", "validation", "test") for name in names(root, split))


def age(root: Path) -> None:
    """Give every file a time long ago, so that its index is cached."""
    for path in root.rglob("*.*"):
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def test_a_folder_and_its_only_subfolder_are_two_corpora_in_the_cache(write_folder: Write) -> None:
    root = write_folder({f"books/{number}.txt": f"text {number}" for number in range(5)})
    age(root)
    for folder, prefix in ((root, "books/"), (root / "books", ""), (root, "books/")):
        assert names_in_splits(folder) == [f"{prefix}{number}.txt" for number in range(5)]


def test_two_names_of_one_file_are_two_documents(write_folder: Write) -> None:
    root = write_folder({"a.txt": "one", "b.txt": "two"})
    (root / "c.txt").symlink_to(root / "a.txt")
    assert names_in_splits(root) == ["a.txt", "b.txt", "c.txt"]


def test_linked_folders_are_read_and_one_that_contains_itself_is_refused(write_folder: Write) -> None:
    root = write_folder({"books/a.txt": "one", "books/b.txt": "two", "corpus/c.txt": "three"})
    (root / "corpus/linked").symlink_to(root / "books")
    assert names_in_splits(root / "corpus") == ["c.txt", "linked/a.txt", "linked/b.txt"]
    (root / "books/back").symlink_to(root / "corpus")
    with pytest.raises(ConfigError, match=r"linked/back: the link leads to a folder that it is in"):
        load_corpus(str(root / "corpus"))


def test_a_file_is_cached_by_its_time_when_reading_began(
    write_folder: Write, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the other files takes longer than the two seconds in which a file counts as being modified."""
    root = write_folder({"a.txt": "one", "b.txt": "two"})
    age(root)
    now = LONG_AGO_NS + 10**9

    def tick() -> int:
        nonlocal now
        now += 10**10
        return now - 10**10

    monkeypatch.setattr(text_files.time, "time_ns", tick)
    load_corpus(str(root))
    assert [path.read_text(encoding="utf-8") for path in (cache / "catalogues").iterdir()] == ["{}"]


def test_a_folder_that_cannot_be_read_is_named(write_folder: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder({"a.txt": "one", "closed/b.txt": "two"})
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"closed: the folder cannot be read \(Permission denied\)"):
        load_corpus(str(root))


def test_what_was_read_is_known_by_size_and_time(write_folder: Write, cache: Path) -> None:
    root = write_folder({"a.txt": "one", "b.txt": "two", "c.txt": "three"})
    age(root)
    before = load_corpus(str(root))
    (root / "a.txt").write_text("eno", encoding="utf-8")
    os.utime(root / "a.txt", ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert load_corpus(str(root)).fingerprint == before.fingerprint
    for path in cache.rglob("*.json"):
        path.write_text("torn", encoding="utf-8")
    assert load_corpus(str(root)).fingerprint != before.fingerprint


def test_a_file_that_changes_under_a_corpus_is_noticed(write_folder: Write) -> None:
    root = write_folder({"a.txt": "one"})
    corpus = load_corpus(str(root))
    (root / "a.txt").write_text("longer", encoding="utf-8")
    with pytest.raises(RetbenchError, match=r"a.txt: the file has changed since"):
        list(corpus.documents("all"))
    (root / "a.txt").unlink()
    with pytest.raises(ConfigError, match=r"a.txt: cannot be read"):
        list(corpus.documents("all"))


def test_three_files_give_three_splits(write_folder: Write) -> None:
    root = write_folder({"a.txt": "one", "b.txt": "two", "c.txt": "three"})
    found = [names(root, split) for split in ("train", "validation", "test")]
    assert sorted(map(len, found)) == [1, 1, 1]
    assert sorted(name for part in found for name in part) == ["a.txt", "b.txt", "c.txt"]


def test_the_files_own_splits_are_kept(write_folder: Write) -> None:
    root = write_folder(
        {"wiki.valid.tokens": "valid", "wiki.test.tokens": "test", "wiki.train.tokens": "train"}
    )
    corpus = load_corpus(str(root))
    assert corpus.splits == ("train", "validation", "test", "all")
    assert texts(root, "validation") == ["valid"]
    only_test = load_corpus(str(root / "wiki.test.tokens"))
    assert only_test.splits == ("test", "all")
    with pytest.raises(ConfigError, match="has no split 'train'; it has test, all"):
        only_test.documents("train")


def test_one_file_is_cut_into_contiguous_parts(write_folder: Write) -> None:
    text = "".join(f"Zeile {number} ü\n" for number in range(100))
    corpus = load_corpus(str(write_folder({"input.txt": text}) / "input.txt"))
    parts = [list(corpus.documents(split)) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert "".join(part[0].text for part in parts) == text
    assert names(corpus.name, "train") == ["input.txt"]


def test_too_little_to_cut_is_only_all(write_folder: Write) -> None:
    root = write_folder({"a.txt": "short"})
    assert load_corpus(str(root)).splits == ("all",)
    with pytest.raises(ConfigError, match="no split 'train'; it has all"):
        load_corpus(str(root)).documents("train")


WIKITEXT = (
    " \n = One = \n \n First . \n = 1 rad / s , k = \n more \n \n = = Part = = \n \n x \n \n"
    " = Two words = \n \n Second . \n \n = One = \n \n Third . \n"
)


def test_wikitext_is_split_into_articles(write_folder: Write) -> None:
    root = write_folder({"wiki.tokens": WIKITEXT})
    assert names(root) == ["wiki.tokens/One", "wiki.tokens/Two words", "wiki.tokens/One (2)"]
    assert "".join(texts(root)) == WIKITEXT
    assert [text.lstrip().splitlines()[0] for text in texts(root)] == [
        "= One = ",
        "= Two words = ",
        "= One = ",
    ]
    assert load_corpus(str(root)).splits == ("train", "validation", "test", "all")


def test_a_heading_without_a_blank_line_makes_no_wikitext(write_folder: Write) -> None:
    assert names(write_folder({"a.txt": " = One = \nx\n"})) == ["a.txt"]


@pytest.mark.parametrize("name", ["wikitext-103", "wikitext-2"])
def test_wikitext_has_sixty_articles_for_validation_and_for_the_test(data_dir: Path, name: str) -> None:
    corpus = load_corpus(name, data_dir=data_dir)
    assert corpus.splits == ("validation", "test", "all")
    assert [len(list(corpus.documents(split))) for split in corpus.splits] == [60, 60, 120]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("classic_books", [75, 4, 4, 83]),
        ("litbank/original", [90, 5, 5, 100]),
        ("tinyshakespeare", [1, 1, 1, 1]),
    ],
)
def test_real_corpora_are_split(data_dir: Path, name: str, counts: list[int]) -> None:
    corpus = load_corpus(name, data_dir=data_dir)
    assert [len(list(corpus.documents(split))) for split in corpus.splits] == counts
    *parts, whole = (sum(len(text) for text in texts(data_dir / name, split)) for split in corpus.splits)
    assert sum(parts) == whole
    assert 0.85 < parts[0] / whole < 0.95


def test_the_header_of_a_book_is_part_of_it(data_dir: Path) -> None:
    corpus = load_corpus("classic_books", data_dir=data_dir)
    first = next(item for item in corpus.documents("all") if item.name == "Jane Austen/Lady Susan.md")
    assert first.text.startswith("# Title: Lady Susan\n\n## Author: Jane Austen\n\n## Year: 1871\n\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\xe9 au lait".encode("latin-1"), r"a.txt: is not text: 'utf-8' codec can't decode byte 0xe9"),
        (b"", "has one file, and it is empty"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_corpus(str(tmp_path / "a.txt"))


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about", encoding="utf-8")
    with pytest.raises(ConfigError, match="no text in this folder"):
        load_corpus(str(tmp_path))
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"gone.txt: cannot be read"):
        load_corpus(str(tmp_path))


def test_a_compressed_text_is_refused_where_it_would_be_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    for name in ("packages.tar.gz", "README.md.gz", ".hidden.txt.gz"):
        (tmp_path / name).touch()
    assert texts(tmp_path) == ["text"]
    (tmp_path / "b.txt.gz").touch()
    with pytest.raises(ConfigError, match=r"b\.txt\.gz: is a compressed text"):
        load_corpus(str(tmp_path))


def test_what_a_killed_process_left_in_the_cache_is_removed(write_folder: Write, cache: Path) -> None:
    root = write_folder({"a.txt": "one"})
    os.utime(root / "a.txt", ns=(LONG_AGO_NS, LONG_AGO_NS))
    load_corpus(str(root))
    (stored,) = (cache / "catalogues").iterdir()
    draft = stored.rename(stored.with_name(f".draft-{stored.name}.0a1b2c3d"))
    os.utime(draft, ns=(LONG_AGO_NS, LONG_AGO_NS))
    load_corpus(str(root))
    assert list((cache / "catalogues").iterdir()) == [stored]


def test_a_file_whose_name_is_not_unicode_is_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text", encoding="utf-8")
    age(tmp_path)  # it would be cached now, and JSON cannot hold its name
    assert texts(tmp_path) == ["text"]
    assert load_corpus(str(tmp_path)).fingerprint == load_corpus(str(tmp_path)).fingerprint


def test_a_cache_that_cannot_be_written_costs_only_time(
    write_folder: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "file"))
    assert texts(write_folder({"a.txt": "text"})) == ["text"]


def test_reading_data_takes_no_heavy_library() -> None:
    code = (
        "import sys, retbench.data.corpora, retbench.data.tokenizers, retbench.data.packing;"
        "print({'torch', 'tokenizers', 'datasets', 'huggingface_hub', 'sentencepiece'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
