import sysconfig
from pathlib import Path

import pytest
import torch

from retbench.data import text
from retbench.data.text_files import library_files
from retbench.errors import UnsupportedError


def test_tokens_are_the_bytes_of_pythons_own_library() -> None:
    reference = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py").read_bytes()
    tokens = text.read_tokens(5000)
    assert tokens.dtype == torch.int64
    assert bytes(tokens.tolist()) == reference[:5000]


def test_more_tokens_begin_with_the_same_ones() -> None:
    longer = text.read_tokens(1_200_000)  # beyond the first file
    assert longer.shape == (1_200_000,)
    assert torch.equal(longer[:70_000], text.read_tokens(70_000))
    assert int(longer.max()) < 256


def test_rows_differ_and_do_not_depend_on_the_batch_size() -> None:
    rows = text.read_rows(3, 400)
    assert rows.shape == (3, 400)
    assert len({tuple(row.tolist()) for row in rows}) == 3
    assert torch.equal(rows[:2, :100], text.read_rows(2, 100))


def test_rows_longer_than_the_stride_do_not_overlap() -> None:
    length = text.ROW_STRIDE + 10
    rows = text.read_rows(2, length)
    assert torch.equal(rows.flatten(), text.read_tokens(2 * length))


def test_more_rows_than_there_is_text_for_lie_closer_together_and_still_do_not_overlap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text, "_num_tokens", lambda: 10_000)
    tokens, rows = text.read_tokens(10_000), text.read_rows(500, 12)
    assert torch.equal(rows, torch.stack([tokens[20 * row : 20 * row + 12] for row in range(500)]))
    with pytest.raises(UnsupportedError, match="tokens of text are needed"):
        text.read_rows(10**6, 100)


def test_as_many_rows_as_a_throughput_sweep_wants() -> None:
    rows = text.read_rows(1024, 2, start=8191)
    assert rows.shape == (1024, 2)
    assert len({tuple(row.tolist()) for row in rows}) > 300  # pairs of bytes, of which few are frequent


def test_a_part_of_each_row_is_what_the_whole_row_has_there() -> None:
    assert torch.equal(text.read_rows(3, 2, start=98), text.read_rows(3, 100)[:, -2:])


def test_too_much_text_is_refused_not_repeated() -> None:
    with pytest.raises(UnsupportedError, match=r"1,000,000,000,000 tokens of text are needed.*smaller batch"):
        text.read_tokens(10**12)


def test_fingerprint_follows_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = text.fingerprint()
    assert len(here) == 12
    (tmp_path / "one.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("left out\n", encoding="utf-8")
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    library_files.cache_clear()
    text.fingerprint.cache_clear()
    try:
        assert text.fingerprint() != here
        assert bytes(text.read_tokens(6).tolist()) == b"x = 1\n"
        with pytest.raises(UnsupportedError, match="has 6 bytes"):
            text.read_tokens(7)
    finally:
        monkeypatch.undo()
        library_files.cache_clear()
        text.fingerprint.cache_clear()
