"""The figure of tuning: a panel per model, a line per size, the best rate marked, and no word on another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.synthetic_scores import KIN, ScoreMaker, evaluations_of
from report.words import check_words
from retbench.records.record import Metric
from retbench.report.figures.catalogue import draw_scores
from retbench.report.figures.drawing import Drawing
from retbench.report.figures.rates import RING_PT
from retbench.report.figures.style import marks_of

NAME = "quality_training_run_classic_books_2048_rates"
Arguments = dict[str, Any]


def drawings_of(maker: ScoreMaker) -> list[Drawing]:
    """The figures of tuning of made-up trainings."""
    maker.trainings()
    return [drawing for drawing in draw_scores(evaluations_of(maker)) if drawing.name.endswith("_rates")]


def drawing_of(
    folder: Path, change: Callable[[Arguments], Arguments] = lambda arguments: arguments
) -> Drawing:
    (drawing,) = drawings_of(ScoreMaker(folder, change=change))
    return drawing


def line_of(axes: Axes) -> list[tuple[float, float]]:
    """Points of the only line with more than one."""
    (line,) = [line for line in axes.lines if len(line.get_xydata()) > 1]
    return [(float(x), float(y)) for x, y in line.get_xydata()]


def rings_of(axes: Axes) -> list[float]:
    """Rates of the points with a ring."""
    return [
        line.get_xdata()[0]
        for line in axes.lines
        if line.get_markersize() == RING_PT and len(line.get_xdata())
    ]


def texts_of(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


def test_the_loss_of_every_run_of_the_grid_stands_in_the_panel_of_its_model(tmp_path: Path) -> None:
    drawing = drawing_of(tmp_path)
    assert drawing.name == NAME
    panels = drawing.figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["RetNet", "Transformer"]
    assert set(drawing.data["metric"]) == {"validation_loss_nats"}
    for axes, model in zip(panels, ("retnet", "transformer"), strict=True):
        mine = drawing.data[drawing.data["model"] == model]
        assert list(mine["learning_rate"]) == [1e-3, 2e-3, 4e-3], "the grid, without the final runs"
        assert line_of(axes) == list(zip(mine["learning_rate"], mine["value"], strict=True))
        assert rings_of(axes) == [2e-3]
        assert list(mine.loc[mine["is_best"], "learning_rate"]) == [2e-3]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4"]
    assert "validation loss, nats per token; classic_books" in texts_of(drawing.figure)
    assert "RetNet 1M, 0.002: " in " ".join(mark.text for mark in marks_of(drawing.figure))


def test_of_a_task_the_accuracy_is_drawn_and_the_lowest_loss_decides(tmp_path: Path) -> None:
    """Here the accuracy is highest at the highest rate, and the loss lowest in the middle."""

    def change(arguments: Arguments) -> Arguments:
        share = Metric(unit="ratio", value=100 * arguments["backend"]["learning_rate"])
        return arguments | {"metrics": {**arguments["metrics"], "validation_acc": share}}

    drawing = drawing_of(tmp_path, change)
    axes = drawing.figure.axes[0]
    assert [y for _, y in line_of(axes)] == pytest.approx([10.0, 20.0, 40.0])
    assert rings_of(axes) == [2e-3]
    assert "validation accuracy, %" in texts_of(drawing.figure)


def test_beyond_the_grid_it_is_grey(tmp_path: Path) -> None:
    (axes, _) = drawing_of(tmp_path).figure.axes
    low, high = axes.get_xlim()
    edges = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]  # type: ignore[attr-defined]
    assert [x for edge in edges for x in edge] == pytest.approx([low, 1e-3, 4e-3, high])


def test_a_run_that_diverged_is_a_cross_and_never_the_best(tmp_path: Path) -> None:
    def change(arguments: Arguments) -> Arguments:
        diverges = arguments["model"].name == "retnet" and arguments["backend"]["learning_rate"] == 2e-3
        return arguments | ({"status": "failed", "error": "loss is nan"} if diverges else {})

    drawing = drawing_of(tmp_path, change)
    axes = drawing.figure.axes[0]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "x"] == [[2e-3]]
    assert [x for x, _ in line_of(axes)] == [1e-3, 4e-3]
    assert rings_of(axes) == [1e-3]
    assert "crosses: failed" in texts_of(drawing.figure)
    check_words(drawing)


def test_each_size_that_was_tuned_has_a_line_and_a_name(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path)
    small = maker.trainings()
    for record in [record for record in small if record.backend["role"] == "tuning"]:
        model = record.model.model_copy(update={"size": "6m"})
        maker.records.append(record.model_copy(update={"model": model, "cell_id": f"{record.cell_id[:-1]}x"}))
    (drawing,) = [d for d in draw_scores(evaluations_of(maker)) if d.name == NAME]
    for axes in drawing.figure.axes:
        dashes = [line.get_linestyle() for line in axes.lines if len(line.get_xdata()) > 1]
        assert dashes == ["--", "-"]
    (legend,) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["1M", "6M"]
    check_words(drawing)


def test_a_single_rate_is_no_grid(tmp_path: Path) -> None:
    def change(arguments: Arguments) -> Arguments:
        backend = arguments["backend"] | {"learning_rate": 2e-3}
        weights = arguments["model"].weights.model_copy(update={"learning_rate": 2e-3})
        return arguments | {
            "backend": backend,
            "model": arguments["model"].model_copy(update={"weights": weights}),
        }

    assert drawings_of(ScoreMaker(tmp_path, change=change)) == []


def test_many_models_stand_in_rows_of_three_and_can_be_read(tmp_path: Path) -> None:
    (drawing,) = drawings_of(ScoreMaker(tmp_path, seeds={"1m": (0,)}, bits=KIN))
    places = [axes.get_position() for axes in drawing.figure.axes]
    assert len({round(place.x0, 3) for place in places}) == 2
    assert len({round(place.y0, 3) for place in places}) == 2
    check_words(drawing)
