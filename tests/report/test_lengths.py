"""Recall beyond the trained length in the report: the figure, the table, and the findings."""

from pathlib import Path

import pytest
from matplotlib.text import Text

from report.synthetic_scores import ScoreMaker, evaluations_of
from retbench.report.evaluations import Evaluations
from retbench.report.figures.catalogue import draw_scores
from retbench.report.figures.curves import draw_row
from retbench.report.figures.drawing import Drawing
from retbench.report.figures.panels import Panel, PlotPoint
from retbench.report.figures.style import model_of
from retbench.report.findings.quality import find_quality
from retbench.report.lineup import Lineup
from retbench.report.tables.experiments import quality_table
from retbench.report.tables.readable import readable_tables


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Evaluations:
    maker = ScoreMaker(tmp_path_factory.mktemp("lengths"))
    maker.lengths()
    return evaluations_of(maker)


@pytest.fixture(scope="module")
def drawings(evaluations: Evaluations) -> list[Drawing]:
    return list(draw_scores(evaluations))


def test_there_is_a_figure_per_size_with_a_panel_per_task(drawings: list[Drawing]) -> None:
    assert [drawing.name for drawing in drawings] == [
        f"length_recall_length_recall_{size}" for size in ("1m", "6m", "25m")
    ]
    assert [axes.get_title(loc="left") for axes in drawings[0].figure.axes] == ["copy", "induction"]
    words = {text.get_text() for text in drawings[0].figure.findobj(Text)}  # type: ignore[attr-defined]
    assert {"length over trained length (log scale)", "guess", "ceiling"} <= words
    assert "accuracy, %, models of 1M trained on 32 tokens" in words


def test_the_data_has_the_mean_of_the_seeds_by_task_and_ratio_of_the_lengths(drawings: list[Drawing]) -> None:
    data = drawings[0].data
    mine = data[(data["task"] == "copy") & (data["model"] == "retnet")]
    assert list(mine["length_ratio"]) == [1, 4, 16]
    assert list(mine["context_len"]) == [32, 128, 512]
    assert list(mine["value"]) == pytest.approx([1.0, 0.9, 0.8])
    assert set(mine["num_seeds"]) == {3}
    assert "state_bytes" not in data


def test_points_of_one_length_stand_side_by_side_with_their_intervals(drawings: list[Drawing]) -> None:
    axes = drawings[0].figure.axes[0]
    places: dict[str, set[float]] = {}
    for artist in [*axes.lines, *axes.collections]:
        model = model_of(str(artist.get_gid()))
        if model is not None:
            place, _ = artist.get_transform().transform((1.0, 50.0))
            places.setdefault(model, set()).add(round(float(place), 3))
    assert all(len(found) == 1 for found in places.values())
    assert sorted(places, key=lambda model: max(places[model])) == list(places)
    assert len(set.union(*places.values())) == len(places) > 1


@pytest.mark.parametrize(("num_panels", "num_rows"), [(1, 1), (2, 1), (3, 3), (4, 2)])
def test_the_rows_of_panels_are_full_and_the_names_beside_the_last(num_panels: int, num_rows: int) -> None:
    lineup = Lineup(("a",), None, {"a": "A model with a longer name"}, {"a": "retnet"})
    panels = [Panel((PlotPoint("a", 1.0, 2.0),), lineup, f"panel {number}") for number in range(num_panels)]
    figure = draw_row(panels, ("title", "subtitle", "conditions"), lambda point: f"{point.value:g}")
    boxes = [axes.get_position() for axes in figure.axes]
    assert len({box.y0 for box in boxes}) == num_rows
    assert boxes[-1].x1 == pytest.approx(max(box.x1 for box in boxes))


def test_the_levels_of_guessing_and_of_every_answer_right_are_drawn(drawings: list[Drawing]) -> None:
    for axes in drawings[0].figure.axes:
        levels = [{float(y) for _, y in line.get_xydata()} for line in axes.lines]
        assert {100 / 26} in levels
        assert {100.0} in levels


def test_the_table_has_a_row_per_task_and_length_with_all_scores(evaluations: Evaluations) -> None:
    table = readable_tables(quality_table(evaluations, "length_recall"))["length_recall"].frame
    rows = table[(table["task"] == "copy") & (table["context"] == "512") & (table["size"] == "6M")]
    found = {row["metric"]: (row["retnet"], row["transformer"]) for _, row in rows.iterrows()}
    assert found == {
        "acc": ("80.0 ± 1.0 %", "10.0 ± 1.0 %"),
        "exact": ("40.0 %", "5.0 %"),
        "guess": ("3.8 %", "3.8 %"),
    }


def test_a_finding_states_the_accuracies_of_each_task_at_the_largest_size(evaluations: Evaluations) -> None:
    copying, induction = find_quality(evaluations)
    assert copying.text == (
        "RetNet of 25M answers in copy 100.0 % (the Transformer: 100.0 %) at the trained length, 90.0 % (the "
        "Transformer: 10.0 %) at 4 times it and 80.0 % (the Transformer: 10.0 %) at 16 times it."
    )
    assert "in induction 100.0 %" in induction.text
    assert evaluations.comparisons == ()
    assert evaluations.refusals == []


@pytest.mark.parametrize(
    ("learnt", "lead"),
    [
        (1.0, "80.0 % vs 10.0 % in copy at 16 times the trained length"),
        (0.5, "50.0 % vs 100.0 % in copy at the trained length"),
    ],
)
def test_the_lead_of_a_model_that_has_not_learnt_the_task_is_at_the_trained_length(
    learnt: float, lead: str, tmp_path: Path
) -> None:
    maker = ScoreMaker(tmp_path)
    maker.lengths(learnt=learnt)
    assert find_quality(evaluations_of(maker))[0].lead == lead


def test_a_task_that_the_transformer_has_not_learnt_gets_no_verdict(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path)
    maker.lengths(solved=0.98)
    findings = find_quality(evaluations_of(maker))
    assert len(findings) == 2
    for finding in findings:
        assert "No verdict on RetNet at 25M in " in finding.text
        assert "the Transformer reaches 98.0 % at the trained length, less than 99.0 %" in finding.text
