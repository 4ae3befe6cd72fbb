"""Folders are on the disk, all of them, before they are at their place."""

from pathlib import Path

import pytest

from retbench import files
from retbench.files import atomic_folder


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
