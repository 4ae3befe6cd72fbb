"""Figures of quality by size: a point a reading, a line through one seed, and perplexities of one tokenizer only."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from report.synthetic_scores import SEEDS, ScoreMaker
from report.words import check_words
from retbench.report.evaluations import Evaluations, make_evaluations
from retbench.report.frames import load_results
from retbench.report.points import is_final
from retbench.report.score_figures import draw_scores
from retbench.report.selection import select
from retbench.report.style import Drawing

FIGURE5 = "quality_training_run_classic_books_2048_figure5"


@pytest.fixture(scope="module")
def drawings(scores: Evaluations) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in draw_scores(scores)}


def points_of(axes: Axes) -> list[tuple[float, float]]:
    """Every point that is drawn, in order."""
    points = [line.get_xydata() for line in axes.lines if line.get_marker() != "None"]
    return sorted((float(x), float(y)) for pair in points for x, y in np.asarray(pair))


def test_points_over_sizes_are_the_readings_and_the_line_is_of_one_seed(
    drawings: dict[str, Drawing], scores: Evaluations
) -> None:
    drawing = drawings["quality_perplexity_litbank-original_whole_8192_by_size"]
    question = next(
        q for q in scores.task_points("document") if (q.task, q.context_len) == ("litbank/original", 8192)
    )
    expected = {
        (r.model.name, r.model.size, str(r.model.weights and r.model.weights.seed)): (
            r.model.num_params_nonembedding,
            r.metrics["bits_per_byte"].value,
        )
        for r in scores.at(question)
    }
    found = {
        (row["model"], row["size"], row["seed"]): (row["num_params_nonembedding"], row["value"])
        for row in drawing.data.to_dict(orient="records")
    }
    assert found == expected
    (axes,) = drawing.figure.axes
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert sorted(len(line.get_xydata()) for line in lines) == [3, 3]  # seed 0 at three sizes
    assert points_of(axes) == sorted((float(count), value) for count, value in expected.values())
    assert "the line: seed 0" in " ".join(text.get_text() for text in drawing.figure.texts)


def test_figure_5_is_the_perplexity_of_every_final_training(
    drawings: dict[str, Drawing], scores: Evaluations
) -> None:
    drawing = drawings[FIGURE5]
    finals = [r for question in scores.task_points("seed") for r in scores.at(question) if is_final(r)]
    expected = sorted(
        (float(r.model.num_params_nonembedding), math.exp(r.metrics["validation_loss_nats"].value))
        for r in finals
    )
    assert len(expected) == 2 * sum(map(len, SEEDS.values()))
    data = drawing.data
    assert sorted(zip(data["num_params_nonembedding"], data["value"], strict=True)) == expected
    assert set(data["metric"]) == {"validation_perplexity"}
    (axes,) = drawing.figure.axes
    assert points_of(axes) == expected
    for fact in ("tokenizer: bytes", "20.0 M tokens", "classic_books"):
        assert fact in drawing.caption


def test_the_captions_say_where_the_learning_rates_are_from(drawings: dict[str, Drawing]) -> None:
    """The made-up grid was run at the smallest size alone."""
    said = "Learning rates: at 1m each model's best of the grid there; at 6m, 25m its best at 1m."
    for name in (FIGURE5, "quality_training_run_classic_books_2048_learning"):
        assert said in drawings[name].caption
        assert "own best learning rate" not in drawings[name].caption


def test_a_best_rate_at_the_end_of_its_grid_is_named(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        told = arguments["backend"]
        if told["role"] == "final" and arguments["model"].name == "retnet":
            told |= {"best_rate_is": "the highest of the grid"}
        if arguments["model"].size == "6m":
            del told["tuned_at"], told["best_rate_is"]
        return arguments

    maker = ScoreMaker(tmp_path, seeds={"1m": (0,), "6m": (0,)}, change=change)
    maker.trainings()
    loaded = load_results(maker.write())
    scores = make_evaluations(select(loaded.records, folders=loaded.folders))
    assert scores is not None
    (drawing,) = [drawing for drawing in draw_scores(scores) if drawing.name == FIGURE5]
    assert (
        "Learning rates: at 1m each model's best of the grid there; at 6m the only one of the grid. "
        "That of RetNet at 1m is the highest of the grid."
    ) in drawing.caption


def test_figure_5_needs_two_sizes_and_one_tokenizer(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        fingerprint = {"1m": "0123456789ab", "6m": "ba9876543210"}[arguments["model"].size]
        return arguments | {"settings": arguments["settings"] | {"tokenizer_fingerprint": fingerprint}}

    makers = (
        ScoreMaker(tmp_path / "one", seeds={"1m": (0,)}),
        ScoreMaker(tmp_path / "apart", seeds={"1m": (0,), "6m": (0,)}, change=change),
        ScoreMaker(tmp_path / "alike", seeds={"1m": (0,), "6m": (0,)}),
    )
    found = []
    for maker in makers:
        maker.trainings()
        loaded = load_results(maker.write())
        scores = make_evaluations(select(loaded.records, folders=loaded.folders))
        assert scores is not None
        found.append(FIGURE5 in {drawing.name for drawing in draw_scores(scores)})
    assert found == [False, False, True]


def test_the_words_of_figure_5_can_be_read(drawings: dict[str, Drawing]) -> None:
    check_words(drawings[FIGURE5])
