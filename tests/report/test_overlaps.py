"""Evaluations on training text are reported, and no others."""

from pathlib import Path
from typing import Any

import pytest

from report.synthetic_scores import ScoreMaker
from retbench.report.evaluations import Evaluations, make_evaluations
from retbench.report.frames import load_results
from retbench.report.overlaps import overlap_sentences
from retbench.report.report import write_report
from retbench.report.selection import select

NOW = "cla456789012"
"""Fingerprint of classic_books where it is scored."""


def maker_of(folder: Path, *, split: str, then: str | None, corpus: str = "classic_books") -> ScoreMaker:
    """A pair scored on a split of a corpus; the one that it was trained on had the fingerprint `then`."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        told = {"corpus_fingerprint": then} if arguments["workload"] == "training_run" else {"split": split}
        return arguments | {"settings": arguments["settings"] | told}

    maker = ScoreMaker(folder, seeds={"1m": (0,)}, change=change)
    maker.trainings()
    maker.perplexities(corpus, "whole", 2048)
    return maker


def scores_of(maker: ScoreMaker) -> Evaluations:
    loaded = load_results(maker.write())
    found = make_evaluations(select(loaded.records, folders=loaded.folders))
    assert found is not None
    return found


@pytest.mark.parametrize("split", ["train", "all"])
@pytest.mark.parametrize("then", [NOW, None])
def test_an_evaluation_on_training_text_is_reported(tmp_path: Path, split: str, then: str | None) -> None:
    (sentence,) = overlap_sentences(scores_of(maker_of(tmp_path, split=split, then=then)))
    for part in (
        "quality: classic_books (whole, 2K)",
        "RetNet 1M seed 0, Transformer 1M seed 0",
        f"split '{split}'",
        "training text",
    ):
        assert part in sentence


@pytest.mark.parametrize("split", ["test", "validation"])
def test_held_out_text_is_not_reported(tmp_path: Path, split: str) -> None:
    assert overlap_sentences(scores_of(maker_of(tmp_path, split=split, then=NOW))) == []


def test_another_corpus_is_not_reported(tmp_path: Path) -> None:
    assert overlap_sentences(scores_of(maker_of(tmp_path, split="all", then=NOW, corpus="litbank"))) == []


def test_the_same_files_under_another_name_are_the_text_of_the_training(tmp_path: Path) -> None:
    (sentence,) = overlap_sentences(scores_of(maker_of(tmp_path, split="all", then=NOW, corpus="classics")))
    assert "classics (whole, 2K)" in sentence


@pytest.mark.usefixtures("_without_pictures")
def test_a_changed_corpus_is_in_the_report(tmp_path: Path) -> None:
    maker = maker_of(tmp_path / "results", split="test", then="0" * 12)
    words = f"'classic_books' has changed since the training (fingerprint {'0' * 12} then, {NOW} now)"
    (sentence,) = overlap_sentences(scores_of(maker))
    assert words in sentence
    write_report(tmp_path / "results", tmp_path / "out")
    for name in ("evidence.html", "report.md"):
        written = (tmp_path / "out" / name).read_text("utf-8")
        assert "Evaluated on training text" in written
        assert NOW in written
