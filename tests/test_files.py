"""Folders are on the disk, all of them, before they are at their place."""

from pathlib import Path

import pytest

from retbench import files
from retbench.errors import ConfigError
from retbench.files import atomic_folder, check_writable


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


def test_looking_whether_a_folder_can_hold_files_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "new/below", "--out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    check_writable(tmp_path / "old", "--out")
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]
