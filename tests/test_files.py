"""Folders are on the disk, all of them, before they are at their place."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retbench import files
from retbench.errors import ConfigError, StorageError
from retbench.files import atomic_folder, check_writable, inside, own_path, write_atomic


def test_all_of_a_folder_is_flushed_before_it_is_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(files, "flush", lambda path: flushed.append(path.name))
    with atomic_folder(tmp_path / "run") as draft:
        (draft / "final").mkdir()
        (draft / "final/weights").write_bytes(b"1")
        (draft / "record").write_bytes(b"2")
    assert set(flushed[:2]) == {
        "weights",
        "record",
    }  # a folder's entries are worth nothing without what they name
    assert flushed[2:] == ["final", draft.name, tmp_path.name]
    assert (tmp_path / "run/final/weights").read_bytes() == b"1"


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/x"])
def test_a_folder_that_cannot_hold_files_is_refused_with_its_option(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=rf"{place}: cannot be written to: .*\. Give another folder with --folder"
    ):
        check_writable(tmp_path / place, "--folder")


def test_a_link_to_a_folder_that_is_missing_is_named_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "results").symlink_to(tmp_path / "unmounted/results")
    with pytest.raises(ConfigError, match=r"/results: is a link to .*/unmounted/results, .* --out"):
        check_writable(tmp_path / "results/machine", "--out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["results"]


def test_looking_whether_a_folder_can_hold_files_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "new/below", "--out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    check_writable(tmp_path / "old", "--out")
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2J", "\ud800", "a" * 256],
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a file or folder"):
        inside(tmp_path, "good", name)


def test_a_plain_name_is_joined(tmp_path: Path) -> None:
    assert inside(tmp_path, "retnet", "25m+x.y_z-1") == tmp_path / "retnet/25m+x.y_z-1"


def test_a_draft_that_is_a_link_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / "precious").write_text("kept", encoding="utf-8")
    (tmp_path / f"{files.DRAFT}record.guessed").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError):
        write_atomic(tmp_path / "record", b"new")
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "kept"


def test_of_two_writers_at_once_no_reader_sees_half_a_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "record", [b"1" * (1 << 20), b"2" * (1 << 20)]
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(lambda c: [write_atomic(path, c) for _ in range(20)], one) for one in contents]
        while not all(writer.done() for writer in writers):
            assert not path.exists() or path.read_bytes() in contents
    for writer in writers:
        writer.result()
    assert path.read_bytes() in contents
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_that_cannot_be_replaced_keeps_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_folder(tmp_path / "run") as draft:
        (draft / "record").write_bytes(b"1")
    rename = Path.rename

    def fails_once(path: Path, target: Path) -> Path:
        if path.name == f"{files.DRAFT}run":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(StorageError), atomic_folder(tmp_path / "run") as draft:
        (draft / "record").write_bytes(b"2")
    monkeypatch.undo()
    assert (tmp_path / "run/record").read_bytes() == b"1"
    with atomic_folder(tmp_path / "run") as draft:
        (draft / "record").write_bytes(b"2")
    assert (tmp_path / "run/record").read_bytes() == b"2"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("link", ["a", "a/b"])
def test_a_link_below_the_folder_is_refused_and_the_folder_may_be_one(tmp_path: Path, link: str) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / link).parent.mkdir(parents=True)
    elsewhere.mkdir()
    (tmp_path / "other").symlink_to(root)
    assert own_path(tmp_path / "other", "a", "b") == tmp_path / "other/a/b"
    (root / link).symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="a link leads to"):
        own_path(root, "a", "b")
