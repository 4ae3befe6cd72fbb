"""Figures of quality: drawn from the data beside them, a seed a line of its own, and no word cut or covered."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from report.synthetic_scores import KIN, SEEDS, TASKS, TRAINED_LEN, ScoreMaker, evaluations_of
from report.words import check_words
from retbench.report.evaluations import Evaluations, make_evaluations
from retbench.report.figures import looks
from retbench.report.figures.catalogue import draw_scores
from retbench.report.figures.drawing import Drawing, save_drawing
from retbench.report.figures.style import marks_of
from retbench.report.figures.svg import inline_svgs
from retbench.report.points import is_final
from retbench.report.results import load_results
from retbench.report.selection import select
from retbench.stats.paired import proportion_interval


@pytest.fixture(scope="module")
def drawings(scores: Evaluations) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in draw_scores(scores)}


def drawn(maker: ScoreMaker) -> list[Drawing]:
    return draw_scores(evaluations_of(maker))


def test_each_corpus_and_protocol_is_drawn_at_its_longest_context(drawings: dict[str, Drawing]) -> None:
    assert set(drawings) == {
        *(
            f"quality_perplexity_{corpus}_whole_8192_by_position"
            for corpus in ("litbank-original", "wikitext-103")
        ),
        "quality_perplexity_whole_by_size",
        "quality_zeroshot_0shot",
        "quality_zeroshot_4shot",
        "quality_training_run_classic_books_2048_learning",
        "quality_training_run_classic_books_2048_figure5",
        "quality_training_run_classic_books_2048_rates",
    }


def test_names_in_any_letters_are_drawn_without_warnings_and_as_text_on_the_page(tmp_path: Path) -> None:
    """Warnings fail a test; matplotlib's own font has no Chinese letters, and others may be installed or not."""
    maker = ScoreMaker(tmp_path, seeds={"1m": [0]})
    for corpus in ("红楼梦", "三国演义"):
        maker.perplexities(corpus, "whole", 2048)
    drawings = drawn(maker)
    for corpus in ("红楼梦", "三国演义"):
        (drawing,) = [each for each in drawings if corpus in each.name]
        assert [path.suffix for path in save_drawing(drawing, tmp_path / "out")] == [".svg", ".png", ".csv"]
        check_words(drawing)
        assert corpus in str(inline_svgs(drawing, "f0-"))


def test_the_loss_along_documents_has_a_panel_a_size_and_a_line_a_seed(drawings: dict[str, Drawing]) -> None:
    drawing = drawings["quality_perplexity_wikitext-103_whole_8192_by_position"]
    panels = drawing.figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["1M", "6M", "25M"]
    for axes, seeds in zip(panels, SEEDS.values(), strict=True):
        marks = [line for line in axes.lines if list(line.get_xdata()) == [TRAINED_LEN, TRAINED_LEN]]
        assert len(marks) == 1
        curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert len(curves) == 2 * len(seeds)
    mine = drawing.data[(drawing.data["size"] == "6m") & (drawing.data["model"] == "retnet")]
    ys = [list(line.get_ydata()) for line in panels[1].lines]
    assert list(mine["value"]) in ys
    assert (mine["count"] == mine["position"] * 9).all()


def test_learning_curves_leave_the_grid_out(drawings: dict[str, Drawing]) -> None:
    drawing = drawings["quality_training_run_classic_books_2048_learning"]
    assert len(drawing.data) == 20 * 2 * sum(map(len, SEEDS.values()))
    assert set(drawing.data["metric"]) == {"validation_loss_nats"}


def test_the_label_of_a_learning_curve_counts_seeds_that_ended_early(tmp_path: Path) -> None:
    def ends_early(arguments: dict[str, Any]) -> dict[str, Any]:
        """Let RetNet's first seed end after half of the training, at a loss of 9 nats."""
        if (
            arguments["workload"] == "training_run"
            and arguments["model"].name == "retnet"
            and arguments["backend"]["seed"] == 0
        ):
            series = arguments["series"]["validation_loss_nats"]
            cut = series.model_copy(update={"x": series.x[:10], "y": (*series.y[:9], 9.0)})
            arguments["series"] = {**arguments["series"], "validation_loss_nats": cut}
        return arguments

    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1, 2)}, change=ends_early)
    maker.trainings()
    (drawing,) = (one for one in drawn(maker) if one.name.endswith("_learning"))
    ends = drawing.data[drawing.data["model"] == "retnet"].groupby("seed")["value"].last()
    assert ends.max() == 9.0
    assert f"RetNet\n{ends.min():.3f}–9.000" in [text.get_text() for text in drawing.figure.axes[0].texts]


def learning_curves(folder: Path, lengths: Mapping[str, int]) -> Drawing:
    """Draw the learning curves of models, whose loss was evaluated as often as the mapping says."""

    def shorten(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["workload"] == "training_run":
            series, length = arguments["series"]["validation_loss_nats"], lengths[arguments["model"].name]
            cut = series.model_copy(update={"x": series.x[:length], "y": series.y[:length]})
            arguments["series"] = {**arguments["series"], "validation_loss_nats": cut}
        return arguments

    bits = {model: {"1m": 1.7 + number / 100} for number, model in enumerate(lengths)}
    maker = ScoreMaker(folder, seeds={"1m": (0,)}, bits=bits, change=shorten)
    maker.trainings()
    (drawing,) = (one for one in drawn(maker) if one.name.endswith("_learning"))
    return drawing


def test_every_model_of_runs_of_one_evaluation_is_in_the_panel_at_the_only_tick(tmp_path: Path) -> None:
    drawing = learning_curves(tmp_path, {**dict.fromkeys(KIN, 1), "retnet_deep": 1, "retnet_long": 1})
    (axes,) = drawing.figure.axes
    lines = [line for line in axes.lines if line.get_marker() in looks.HOLLOW]
    assert len(lines) == 6
    for line in lines:
        ((x, _),) = line.get_transform().transform(np.asarray(line.get_xydata()))
        assert axes.bbox.x0 < x < axes.bbox.x1
    assert list(axes.get_xticks()) == sorted(set(drawing.data["tokens"]))


def markers(axes: Axes) -> set[tuple[bool, str]]:
    """Return whether the curves of a panel have markers, and at which of their points."""
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
    return {(line.get_marker() in looks.HOLLOW, str(line.get_markevery())) for line in curves}


def test_a_short_curve_has_no_more_markers_than_the_long_ones_of_its_panel(tmp_path: Path) -> None:
    short, long = {"retnet": 9, "transformer": 5}, {"retnet": 20, "transformer": 5}
    many = {**long, **{f"retnet_{number}": 6 for number in range(7)}}
    found = [
        markers(learning_curves(tmp_path / str(number), lengths).figure.axes[0])
        for number, lengths in enumerate((short, long, many))
    ]
    assert found == [{(True, "None")}, {(False, "[-1]")}, {(True, "[-1]")}]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quality_training_run_classic_books_2048_learning", r"\w+ seed \d, [\d.]+ [KM] tokens: [\d.]+ nats"),
        (
            "quality_perplexity_litbank-original_whole_8192_by_position",
            r"\w+ seed \d, position \w+: [\d.]+ nats",
        ),
        ("quality_perplexity_whole_by_size", r"\w+ seed \d, [\d.]+[KM]: [\d.]+ bits"),
    ],
)
def test_a_point_says_its_seed_its_place_and_its_unit(
    drawings: dict[str, Drawing], name: str, words: str
) -> None:
    marks = marks_of(drawings[name].figure)
    assert marks
    assert [mark.text for mark in marks if not re.fullmatch(words, mark.text)] == []


def test_answers_have_wilsons_interval_and_the_mark_of_guessing(drawings: dict[str, Drawing]) -> None:
    drawing = drawings["quality_zeroshot_0shot"]
    assert list(dict.fromkeys(drawing.data["task"])) == sorted(TASKS)
    for row in drawing.data.to_dict(orient="records"):
        count = TASKS[row["task"]][0]
        assert row["num_documents"] == count
        assert (row["low"], row["high"]) == proportion_interval(round(row["value"] * count), count)
    chances = dict(zip(drawing.data["task"], drawing.data["chance"], strict=True))
    assert (chances["copa"], chances["hellaswag"]) == (0.5, 0.25)
    assert chances["lambada_openai"] != chances["lambada_openai"]  # nobody guesses a word
    (axes,) = drawing.figure.axes
    ticks = sorted(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2)
    assert ticks == [25.0, 50.0, 50.0]


def test_a_task_in_several_contexts_has_rows_that_name_them(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)})
    for context_len in (512, 1024):
        maker.zeroshots(0, ["copa"], context_len)
    (drawing,) = (each for each in drawn(maker) if "zeroshot" in each.name)
    check_words(drawing)
    assert list(dict.fromkeys(drawing.data["context_len"])) == [512, 1024]
    (axes,) = drawing.figure.axes
    shown = {text.get_text() for text in axes.texts} | {label.get_text() for label in axes.get_yticklabels()}
    assert {"copa, 512", "copa, 1K"} <= shown


SIZES = ("1m", "3m", "6m", "25m", "125m")


def many_sizes(folder: Path) -> ScoreMaker:
    """More sizes than one figure has room for."""
    bits = {model: dict.fromkeys(SIZES, 1.6) for model in ("retnet", "transformer")}
    maker = ScoreMaker(folder, seeds=dict.fromkeys(SIZES, (0,)), bits=bits)
    maker.trainings()
    maker.perplexities("litbank/original", "whole", 8192)
    return maker


def with_one_of_each(maker: ScoreMaker) -> ScoreMaker:
    """With records for one figure of each kind."""
    maker.trainings()
    maker.perplexities("litbank/original", "whole", 8192)
    maker.zeroshots(0)
    return maker


def one_size(folder: Path) -> ScoreMaker:
    """Return scores of one size and of public weights."""
    return with_one_of_each(ScoreMaker(folder, seeds={"1m": (None,)}))


def several_models(folder: Path) -> ScoreMaker:
    """Two RetNets beside the Transformer."""
    bits = {"retnet": {"1m": 1.6}, "retnet_gated": {"1m": 1.7}, "transformer": {"1m": 1.65}}
    maker = ScoreMaker(folder, seeds={"1m": (0, 1)}, bits=bits)
    maker.perplexities("litbank/original", "whole", 8192)
    maker.zeroshots(0)
    return maker


def failed(folder: Path) -> ScoreMaker:
    """One model failed everywhere."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].name == "retnet":
            return arguments | {"status": "failed", "error": "why", "metrics": {}, "series": {}}
        return arguments

    return with_one_of_each(ScoreMaker(folder, seeds={"1m": (0,), "6m": (0,)}, change=change))


def test_more_sizes_than_fit_take_a_second_figure(tmp_path: Path) -> None:
    names = [drawing.name for drawing in drawn(many_sizes(tmp_path))]
    assert [name for name in names if "by_position" in name] == [
        "quality_perplexity_litbank-original_whole_8192_by_position",
        "quality_perplexity_litbank-original_whole_8192_by_position_2",
    ]
    assert [name for name in names if "learning" in name][-1].endswith("_learning_2")


def test_what_failed_is_not_drawn_and_the_rest_is(tmp_path: Path) -> None:
    drawings = drawn(failed(tmp_path))
    assert drawings
    for drawing in drawings:
        assert set(drawing.data.dropna(subset="value")["model"]) == {"transformer"}
    assert not [drawing for drawing in drawings if "zeroshot" in drawing.name]  # nothing to compare


@pytest.mark.parametrize("make", [many_sizes, one_size, several_models, failed])
def test_no_word_leaves_its_figure_or_covers_another(
    tmp_path: Path, make: Callable[[Path], ScoreMaker]
) -> None:
    for drawing in drawn(make(tmp_path)):
        check_words(drawing)


def test_no_word_of_the_usual_figures_covers_another(drawings: dict[str, Drawing]) -> None:
    for drawing in drawings.values():
        check_words(drawing)


# ---- quality by size -------------------------------------------------------------------------------------------------

FIGURE5 = "quality_training_run_classic_books_2048_figure5"


def points_of(axes: Axes) -> list[tuple[float, float]]:
    """Every point that is drawn, in order."""
    points = [line.get_xydata() for line in axes.lines if line.get_marker() != "None"]
    return sorted((float(x), float(y)) for pair in points for x, y in np.asarray(pair))


def test_points_over_sizes_are_the_readings_and_the_line_is_of_one_seed(
    drawings: dict[str, Drawing], scores: Evaluations
) -> None:
    drawing = drawings["quality_perplexity_whole_by_size"]
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
        if row["text"] == question.title
    }
    assert found == expected
    titles = [axes.get_title(loc="left") for axes in drawing.figure.axes]
    assert titles == [
        "litbank/original\n(whole, 8K)",
        "wikitext-103\n(whole, 8K)",
    ]  # `last` has no whole bytes
    axes = drawing.figure.axes[0]
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert sorted(len(line.get_xydata()) for line in lines) == [3, 3]  # seed 0 at three sizes
    others = [line.get_markersize() for line in axes.lines if len(line.get_xydata()) == 1]
    assert others
    assert max(others) < min(line.get_markersize() for line in lines)
    assert points_of(axes) == sorted((float(count), value) for count, value in expected.values())
    assert "the line: seed 0" in " ".join(text.get_text() for text in drawing.figure.texts)


def test_each_protocol_has_its_own_figure_of_sizes(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,), "6m": (0,)})
    for corpus in ("litbank/original", "wikitext-103"):
        maker.perplexities(corpus, "strided", 2048)
        maker.perplexities(corpus, "whole", 8192)
    found = {
        drawing.name: {axes.get_title(loc="left") for axes in drawing.figure.axes} for drawing in drawn(maker)
    }
    panels = {"strided": "2K", "whole": "8K"}
    assert {name: titles for name, titles in found.items() if "by_size" in name} == {
        f"quality_perplexity_{protocol}_by_size": {
            f"{corpus}\n({protocol}, {length})" for corpus in ("litbank/original", "wikitext-103")
        }
        for protocol, length in panels.items()
    }


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
    said = "Learning rates: at 1M each model's best of the grid there; at 6M, 25M its best at 1M."
    for name in (FIGURE5, "quality_training_run_classic_books_2048_learning"):
        assert said in drawings[name].caption
        assert "own best learning rate" not in drawings[name].caption


@pytest.mark.parametrize("is_extended", [False, True], ids=["one grid", "a higher rate was added"])
def test_a_best_rate_at_the_end_of_its_grid_is_named(tmp_path: Path, *, is_extended: bool) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        backend = arguments["backend"]
        if backend["role"] == "final" and arguments["model"].name == "retnet":
            backend |= {"best_rate_is": "the highest of the grid"}
        if arguments["model"].size == "6m":
            del backend["tuned_at"], backend["best_rate_is"]
        return arguments

    maker = ScoreMaker(tmp_path, seeds={"1m": (0,), "6m": (0,)}, change=change)
    maker.trainings()
    if not is_extended:
        maker.records[:] = [record for record in maker.records if record.backend["learning_rate"] <= 2e-3]
    loaded = load_results(maker.write())
    scores = make_evaluations(select(loaded.records, folders=loaded.folders))
    assert scores is not None
    (drawing,) = [drawing for drawing in draw_scores(scores) if drawing.name == FIGURE5]
    assert "at 1M each model's best of the grid there; at 6M the only one of the grid." in drawing.caption
    said = "at 6M the only one of the grid. That of RetNet at 1M is the highest of the grid."
    assert (said in drawing.caption) != is_extended
    assert ("the highest" in drawing.caption) != is_extended


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


def test_of_ten_models_each_has_its_own_look_and_its_note_beside_its_own_dot(tmp_path: Path) -> None:
    names = ["retnet", "transformer", *(f"retnet_{number}" for number in range(8))]
    bits = {name: {"1m": 1.7 + place / 100, "6m": 1.6} for place, name in enumerate(names)}
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,), "6m": (0,)}, num_documents=12, bits=bits)
    maker.trainings()
    maker.perplexities("wikitext-103", "whole", 8192)
    maker.zeroshots(0, ["copa"])
    drawings = draw_scores(evaluations_of(maker))
    for drawing in drawings:
        check_words(drawing)
        for axes in drawing.figure.axes:
            for line in (line for line in axes.lines if line.get_marker() in looks.HOLLOW):
                xs = line.get_transform().transform(np.asarray(line.get_xydata()))[:, 0]
                assert axes.bbox.x0 <= xs.min() <= xs.max() <= axes.bbox.x1, drawing.name
    (axes,) = next(drawing for drawing in drawings if "zeroshot" in drawing.name).figure.axes
    notes = {text.xy[1] for text in axes.texts if ", p " in text.get_text()}  # type: ignore[attr-defined]
    assert notes == {float(place) for place in range(9)}  # the tenth model is the reference


def test_many_models_are_drawn_against_their_states(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1)}, bits=KIN)
    maker.perplexities("litbank/original", "whole", 2048)
    maker.perplexities("litbank/original", "whole", 8192)
    found = {drawing.name: drawing for drawing in draw_scores(evaluations_of(maker))}
    drawing = found["quality_perplexity_litbank-original_whole_8192_by_state"]
    data = drawing.data
    assert not [name for name in found if "2048_by_state" in name], "the longest context only"
    assert len(data) == len(KIN) * 2
    states = data.groupby("model")["state_bytes"].unique()
    assert list(states["transformer"]) == [2 * 4 * 128 * 8192 * 4]
    (axes,) = drawing.figure.axes
    assert axes.get_xscale() == "log"
    drawn = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
    assert drawn == {*zip(data["state_bytes"], data["value"], strict=True)}


def test_one_model_far_above_the_others_leaves_the_figure_of_states(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1)}, bits=KIN | {"retnet": {"1m": 9.0}})
    maker.perplexities("litbank/original", "whole", 2048)
    found = {drawing.name: drawing for drawing in draw_scores(evaluations_of(maker))}
    drawing = found["quality_perplexity_litbank-original_whole_2048_by_state"]
    (axes,) = drawing.figure.axes
    values = drawing.data.set_index("model")["value"]
    others = values.drop("retnet")
    low, top = axes.get_ylim()
    assert low < others.min() < others.max() < top < values["retnet"].min()
    (label,) = (text.get_text() for text in axes.texts if text.get_text().startswith("RetNet"))
    assert label.endswith(", above")
    assert "leave the plot" in drawing.caption
    check_words(drawing)
    height = axes.bbox.y1 / drawing.figure.dpi * 72
    spots = [mark.place(drawing.figure) for mark in marks_of(drawing.figure) if mark.model == "retnet"]
    assert [y for _, y in spots] == [pytest.approx(height)] * len(spots)


def test_a_pair_is_not_drawn_against_its_states(drawings: dict[str, Drawing]) -> None:
    assert not [name for name in drawings if name.endswith("_by_state")]
