import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.data import splits

NAMES = st.lists(st.text(min_size=1), min_size=3, max_size=120, unique=True)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("wiki.train.tokens", "train"),
        ("wiki.valid.tokens", "validation"),
        ("wikitext-test.txt", "test"),
        ("dev/1.txt", "validation"),
        ("Val.txt", "validation"),
        ("trainer.txt", None),
        ("Vanity Fair.md", None),
        ("test/training.txt", None),
    ],
)
def test_a_name_says_its_split(name: str, split: str | None) -> None:
    assert splits.own_split(name) == split


def test_the_sources_own_splits_count_where_every_file_has_one() -> None:
    assert splits.own_splits(["a.train.txt", "a.test.txt"]) == ["train", "test"]
    assert splits.own_splits(["test.txt"]) == ["test"]
    assert splits.own_splits(["a.train.txt", "The Test of Donald Norton.md"]) == ["train", "test"]
    assert splits.own_splits(["Emma.md", "The Test of Donald Norton.md"]) is None
    assert splits.own_splits(["train/1.txt", "train/2.txt"]) is None


@given(NAMES)
def test_every_document_has_a_split_and_none_is_empty(names: list[str]) -> None:
    found = splits.hashed_splits(names)
    counts = [list(found.values()).count(split) for split in ("train", "validation", "test")]
    held_out = max(1, round(len(names) * 0.05))
    assert counts == [len(names) - 2 * held_out, held_out, held_out]
    assert found.keys() == set(names)
    assert splits.hashed_splits(names[::-1]) == found


def test_the_split_of_a_name_never_changes() -> None:
    found = splits.hashed_splits([f"{number}.txt" for number in range(20)])
    assert [name for name, split in found.items() if split != "train"] == ["1.txt", "14.txt"]
    assert [splits.hashed_split(f"train/{number}") for number in (0, 15, 18)] == [
        "train",
        "train",
        "validation",
    ]


def test_single_documents_are_split_in_expectation() -> None:
    found = [splits.hashed_split(f"train/{number}") for number in range(20_000)]
    assert found.count("validation") == pytest.approx(1000, abs=100)
    assert found.count("test") == pytest.approx(1000, abs=100)


@given(st.text(st.sampled_from("ab\n"), min_size=splits.MIN_CHARACTERS, max_size=400))
def test_a_text_is_cut_into_parts_that_hold_something_and_are_it(text: str) -> None:
    parts = splits.cut(text)
    assert list(parts) == ["train", "validation", "test"]
    assert "".join(parts.values()) == text
    assert all(parts.values())


def test_a_text_is_cut_at_line_ends() -> None:
    text = "".join(f"line {number:03}\n" for number in range(200))
    parts = splits.cut(text)
    assert all(part.startswith("line ") and part.endswith("\n") for part in parts.values())
    assert len(parts["train"]) == pytest.approx(0.9 * len(text), abs=9)
    assert len(parts["test"]) == pytest.approx(0.05 * len(text), abs=9)
