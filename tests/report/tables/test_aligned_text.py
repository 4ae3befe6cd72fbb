"""Tables in aligned columns: whatever the width, everything is there and nothing is wider."""

from hypothesis import given
from hypothesis import strategies as st

from retbench.report.tables.aligned_text import align_columns, is_numeric

WORDS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=7)
CELLS = st.lists(WORDS, min_size=1, max_size=9).map(" ".join)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table with one to eight columns."""
    count = draw(st.integers(1, 8))
    row = st.lists(CELLS, min_size=count, max_size=count)
    return draw(row), draw(st.lists(row, min_size=1, max_size=4))


@given(tables(), st.integers(60, 140), st.integers(1, 3))
def test_a_table_fits_its_width_and_lacks_no_word(
    table: tuple[list[str], list[list[str]]], width: int, keys: int
) -> None:
    header, rows = table
    lines = align_columns(header, rows, width, keys=keys)
    assert max(map(len, lines)) <= width
    printed = " ".join(lines).split()
    for cell in [*header, *(cell for row in rows for cell in row)]:
        assert {*cell.split()} <= {*printed}


@given(tables())
def test_without_a_width_every_row_is_one_line(table: tuple[list[str], list[list[str]]]) -> None:
    header, rows = table
    lines = align_columns(header, rows)
    assert len(lines) == 1 + len(rows)
    assert lines[0].split() == " ".join(header).split()


def test_numbers_are_flush_right_and_names_flush_left() -> None:
    assert align_columns(("model", "ms"), [("retnet", "3.6"), ("transformer", "34.1"), ("linear", "–")]) == [
        "model          ms",
        "retnet        3.6",
        "transformer  34.1",
        "linear          –",
    ]


def test_an_interval_with_a_unit_at_each_end_is_a_number() -> None:
    assert is_numeric(["1.05 ms [987 µs, 1.12 ms]", "33.4 [31.0, 36.0] ms", "–"])
    assert not is_numeric(["3.4x at batch 8, 8K; 6.7B, one A100-80GB"])


def test_the_first_columns_are_repeated_where_the_others_need_several_blocks() -> None:
    lines = align_columns(("model", "time", "memory"), [("retnet", "3.6 seconds", "110 mebibytes")], 24)
    assert lines == [
        "model          time",
        "retnet  3.6 seconds",
        "",
        "model          memory",
        "retnet  110 mebibytes",
    ]


def test_an_empty_table_has_no_lines() -> None:
    assert align_columns(("model",), [], 60) == []


def test_long_columns_share_a_line_so_that_rows_are_short() -> None:
    words = " ".join(["nine-char"] * 10)
    lines = align_columns(("claim", "here", "verdict"), [(words, words, "reproduced")], 120)
    assert len(lines) == 1 + 2
    assert lines[1].endswith("reproduced")
