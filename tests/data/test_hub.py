"""Names of the hub, with folders in place of its repositories: the libraries are real, the network is not there."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retbench.data import hub
from retbench.data.corpora import load_corpus
from retbench.data.packing import pack
from retbench.data.tokenizers import load_tokenizer
from retbench.errors import ConfigError, RetbenchError, StorageError, UnsupportedError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Publish = Callable[..., None]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub:gpt2", ("gpt2", None, None)),
        ("hub:owner/name", ("owner/name", None, None)),
        ("hub:owner/name@v1.0", ("owner/name", None, "v1.0")),
        ("hub:owner/name/config-v1", ("owner/name", "config-v1", None)),
        ("hub:owner/name/config@main", ("owner/name", "config", "main")),
        ("hub:owner/name@refs/pr/1", ("owner/name", None, "refs/pr/1")),
    ],
)
def test_names_are_taken_apart(name: str, expected: tuple[str, str | None, str | None]) -> None:
    assert hub.parse_name(name) == expected


@pytest.mark.parametrize("name", ["hub:", "hub:/name", "hub:a/b/c/d", "hub:a b", "hub:a@"])
def test_a_name_of_no_known_form_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"not a name on the hub. Write hub:OWNER/NAME"):
        load_tokenizer(name)


def test_two_revisions_are_refused() -> None:
    assert hub.parse_name("hub:a/b@x", "x").revision == "x"
    assert hub.parse_name("hub:a/b", "x").revision == "x"
    with pytest.raises(ConfigError, match="names the revision x, the option y"):
        hub.parse_name("hub:a/b@x", "y")


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Puts rows of splits at owner/name, where `datasets` then finds them at one commit."""
    datasets = pytest.importorskip("datasets")
    library = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "hub"
    folder.mkdir()
    load_dataset, split_names = datasets.load_dataset, datasets.get_dataset_split_names

    def local(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(repo: str, config: str | None, *, revision: str, **settings: Any) -> Any:
            assert (repo, config, revision) == ("owner/name", None, COMMIT)
            return function(str(folder), **settings)

        return call

    def repo_info(_self: object, repo: str, *, revision: str | None, repo_type: str) -> SimpleNamespace:
        assert (repo, revision, repo_type) == ("owner/name", "v1", "dataset")
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(datasets, "load_dataset", local(load_dataset))
    monkeypatch.setattr(datasets, "get_dataset_split_names", local(split_names))
    monkeypatch.setattr(library.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def write(**splits: list[dict[str, str | None]]) -> None:
        for split, rows in splits.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")

    return write


def rows(*texts: str) -> list[dict[str, str | None]]:
    return [{"text": text} for text in texts]


def test_a_data_set_is_streamed_at_its_commit(publish: Publish) -> None:
    publish(train=rows("one", "", "three"), validation=rows("four ü"))
    corpus = load_corpus("hub:owner/name@v1")
    assert (corpus.name, corpus.revision) == ("hub:owner/name@v1", COMMIT)
    assert corpus.splits == ("train", "validation", "all")
    assert list(corpus.documents("train")) == [("train/0", "one"), ("train/2", "three")]
    assert [text for _, text in corpus.documents("all")] == ["one", "three", "four ü"]
    packed = pack(corpus, "train", load_tokenizer("bytes"), max_tokens=2)
    assert len(packed) == len("one") + 1
    with pytest.raises(ConfigError, match="no split 'test'"):
        corpus.documents("test")


def test_rows_for_training_alone_are_split_by_hash(publish: Publish) -> None:
    publish(train=rows(*(f"text {number}" for number in range(300))))
    corpus = load_corpus("hub:owner/name@v1")
    assert corpus.splits == ("train", "validation", "test", "all")
    parts = {split: {item.name for item in corpus.documents(split)} for split in corpus.splits}
    assert parts["train"] | parts["validation"] | parts["test"] == parts["all"]
    assert sum(len(parts[split]) for split in ("train", "validation", "test")) == 300
    assert len(parts["train"]) > 240
    assert min(map(len, parts.values())) > 0


def test_a_data_set_of_pages_is_read(publish: Publish) -> None:
    publish(train=[{"page": "one"}, {"page": "two"}], test=[{"page": "three"}])
    corpus = load_corpus("hub:owner/name@v1")
    assert list(corpus.documents("train")) == [("train/0", "one"), ("train/1", "two")]
    assert list(corpus.documents("test")) == [("test/0", "three")]


def test_a_data_set_without_texts_is_refused_when_it_is_loaded(publish: Publish) -> None:
    publish(train=[{"content": "x", "id": "1"}])
    with pytest.raises(
        ConfigError, match="its columns are content, id, and texts are read from the column text or page"
    ):
        load_corpus("hub:owner/name@v1")


def test_a_row_without_text_is_refused(publish: Publish) -> None:
    publish(train=[{"text": "x"}, {"text": None}])
    with pytest.raises(ConfigError, match="row 1 of 'train' has no text in the column 'text'"):
        list(load_corpus("hub:owner/name@v1").documents("all"))


def test_the_message_of_datasets_reaches_the_user(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def missing(*_args: object, **_settings: object) -> None:
        raise ValueError("Config name is missing. Please pick one among the available configs: ['a', 'b']")

    monkeypatch.setattr(datasets, "get_dataset_split_names", missing)
    with pytest.raises(
        ConfigError, match=r"pick one among .*\['a', 'b'\] A configuration is named by hub:OWNER"
    ):
        load_corpus("hub:owner/name@v1")


def test_a_data_set_without_splits_is_refused(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    publish(train=[{"text": "x"}])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_args, **_settings: [])
    with pytest.raises(ConfigError, match="'hub:owner/name@v1': the hub's data set has no splits"):
        load_corpus("hub:owner/name@v1")


def hub_errors() -> list[tuple[Callable[[Any], Exception], type[RetbenchError], str]]:
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    return [
        (
            lambda e: e.GatedRepoError("gated", response=response),
            UnsupportedError,
            "access has to be granted",
        ),
        (lambda e: e.RevisionNotFoundError("no", response=response), ConfigError, "no such revision"),
        (lambda e: e.RepositoryNotFoundError("no", response=response), ConfigError, "nothing of that name"),
        (lambda e: e.HFValidationError("bad"), ConfigError, "nothing of that name"),
        (
            lambda e: e.OfflineModeIsEnabled("offline mode"),
            UnsupportedError,
            r"cannot be reached \(offline mode\)",
        ),
        (
            lambda e: e.LocalEntryNotFoundError("not cached"),
            UnsupportedError,
            "give the path of a local copy",
        ),
        (lambda e: ConnectionError(), UnsupportedError, r"cannot be reached \(ConnectionError\)"),
        (lambda e: ConnectionError("\n"), UnsupportedError, r"cannot be reached \(ConnectionError\)"),
        (
            lambda e: OSError(errno.ENOSPC, "No space left on device"),
            StorageError,
            r"cannot be stored \(No space left on device\)",
        ),
    ]


@pytest.mark.parametrize(("make", "kind", "message"), hub_errors())
def test_what_goes_wrong_on_the_hub_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Any], Exception], kind: type[RetbenchError], message: str
) -> None:
    library = pytest.importorskip("huggingface_hub")
    error = make(pytest.importorskip("huggingface_hub.errors"))

    def fail(*_args: object, **_settings: object) -> None:
        raise error

    monkeypatch.setattr(library, "snapshot_download", fail)
    with pytest.raises(kind, match=f"'hub:owner/name': .*{message}"):
        load_tokenizer("hub:owner/name")


def test_a_tokenizer_of_the_hub_is_that_of_its_files(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("huggingface_hub")
    shutil.copy(data_dir / "neox_tokenizer" / "20B_tokenizer.json", tmp_path / "tokenizer.json")

    def download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repo, revision) == ("owner/name", "v1")
        assert "tokenizer.json" in allow_patterns
        assert not any("safetensors" in pattern for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(library, "snapshot_download", download)
    tokenizer = load_tokenizer("hub:owner/name@v1")
    assert tokenizer.name == "hub:owner/name@v1"
    assert tokenizer.fingerprint == load_tokenizer("neox", data_dir=data_dir).fingerprint
    with pytest.raises(ConfigError, match="only a data set has a third part"):
        load_tokenizer("hub:owner/name/config")


@pytest.mark.parametrize("setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network_the_libraries_themselves_are_understood(
    tmp_path: Path, setting: dict[str, str]
) -> None:
    pytest.importorskip("datasets")
    code = (
        "from retbench.data.corpora import load_corpus\n"
        "from retbench.data.tokenizers import load_tokenizer\n"
        "from retbench.errors import UnsupportedError\n"
        "for load in (load_corpus, load_tokenizer):\n"
        "    try:\n"
        "        load('hub:owner/name')\n"
        "    except UnsupportedError as error:\n"
        "        print(error)\n"
    )
    environment = {**os.environ, **setting, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all(line.startswith("'hub:owner/name': the hub cannot be reached (") for line in lines)
