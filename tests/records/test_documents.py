import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.errors import RecordError, StorageError
from retbench.records.documents import MAX_BYTES, read_documents, write_documents
from retbench.records.record import Documents

ROWS: list[dict[str, Any]] = [{"name": "Zoë.txt", "nll": 1.5}, {"name": "b", "nll": -0.25}]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    kept = write_documents(tmp_path / "new", "run-cell", ROWS)
    assert kept.num_documents == 2
    assert read_documents(tmp_path / "new", kept) == ROWS
    assert [path.name for path in (tmp_path / "new").iterdir()] == [kept.file]


@given(
    st.lists(
        st.dictionaries(
            st.text(), st.integers(-(2**63), 2**63) | st.text() | st.floats(allow_nan=False), max_size=3
        )
    )
)
def test_any_rows_survive(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("documents")
    assert read_documents(folder, write_documents(folder, "x", rows)) == rows


def test_the_same_rows_are_the_same_file(tmp_path: Path) -> None:
    first, second = (write_documents(tmp_path / name, "x", ROWS) for name in "ab")
    assert first == second
    assert (tmp_path / "a" / first.file).read_bytes() == (tmp_path / "b" / second.file).read_bytes()


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "a pipe", "a link", "lines"])
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
        case "a pipe":
            path.unlink()
            os.mkfifo(path)
        case "a link":
            path.symlink_to(path.rename(tmp_path / "elsewhere"))
        case "lines":
            kept = kept.model_copy(update={"num_documents": 3})
    with pytest.raises(RecordError, match=r"x\.documents\.jsonl\.gz: .* --fresh"):
        read_documents(tmp_path, kept)


@pytest.mark.parametrize("name", ["/dev/zero", "../x.documents.jsonl.gz", "", ".", "a/b", "x\x1b[2J"])
def test_only_a_file_of_the_folder_is_read(tmp_path: Path, name: str) -> None:
    kept = write_documents(tmp_path, "x", ROWS).model_copy(update={"file": name})
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecordError, match="cannot be read") as caught:
        read_documents(tmp_path / "folder", kept)
    assert str(caught.value).isprintable()


# VmHWM, not ru_maxrss: that begins at the memory of the process which started this one.
READER = """
import sys
from pathlib import Path
from retbench.errors import RecordError
from retbench.records.documents import read_documents
from retbench.records.record import Documents
try:
    read_documents(Path(sys.argv[1]), Documents(file="bomb.gz", sha256="", num_documents=1))
except RecordError as error:
    print(error)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""


def test_a_file_that_unpacks_to_gigabytes_is_refused_in_little_memory(tmp_path: Path) -> None:
    piece = gzip.compress(bytes(2**26))
    (tmp_path / "bomb.gz").write_bytes(piece * 64)  # 4 GiB in 4 MiB
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    message, memory_mib = done.stdout.splitlines()
    assert f"more than {MAX_BYTES:,} bytes" in message
    assert int(memory_mib) < 2 * MAX_BYTES // 2**20 + 200


def kept_as(folder: Path, text: bytes) -> Documents:
    """A file of documents with any content, and what a record says of it."""
    (folder / "x.gz").write_bytes(gzip.compress(text))
    return Documents(file="x.gz", sha256=hashlib.sha256(text).hexdigest(), num_documents=text.count(b"\n"))


@pytest.mark.parametrize(
    "text",
    [
        b"not JSON\n",
        b"[" * 5000 + b"\n",
        b'{"a": 1180591620717411303424}\n',
        b'{"a": "\\ud800"}\n',
        b"5\n",
        b"\xff\n",
    ],
)
def test_documents_that_are_no_objects_are_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        read_documents(tmp_path, kept_as(tmp_path, b'{"a": 1}\n' + text))


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
