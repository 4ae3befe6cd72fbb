from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.errors import RecordError, StorageError
from retbench.records.documents import read_documents, write_documents

ROWS: list[dict[str, Any]] = [{"name": "Zoë.txt", "nll": 1.5}, {"name": "b", "nll": -0.25}]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    kept = write_documents(tmp_path / "new", "run-cell", ROWS)
    assert kept.num_documents == 2
    assert read_documents(tmp_path / "new", kept) == ROWS
    assert [path.name for path in (tmp_path / "new").iterdir()] == [kept.file]


@given(
    st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False), max_size=3))
)
def test_any_rows_survive(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("documents")
    assert read_documents(folder, write_documents(folder, "x", rows)) == rows


def test_the_same_rows_are_the_same_file(tmp_path: Path) -> None:
    first, second = (write_documents(tmp_path / name, "x", ROWS) for name in "ab")
    assert first == second
    assert (tmp_path / "a" / first.file).read_bytes() == (tmp_path / "b" / second.file).read_bytes()


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    kept = write_documents(tmp_path, "x", ROWS)
    path = tmp_path / kept.file
    match damage:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-9])
        case "other":
            write_documents(tmp_path, "x", ROWS[:1])
    with pytest.raises(RecordError, match=r"x\.documents\.jsonl\.gz: .* --fresh"):
        read_documents(tmp_path, kept)


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    kept = write_documents(tmp_path, "x", ROWS * 20)
    path = tmp_path / kept.file
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert (
                read_documents(tmp_path, kept) == ROWS * 20
            )  # a flag or a date that says nothing of the rows
        except RecordError as error:
            assert "--fresh" in str(error)  # noqa: PT017 - some bits may not matter


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"x\.documents\.jsonl\.gz: cannot be written: .* another folder"):
        write_documents(tmp_path / "file", "x", ROWS)
