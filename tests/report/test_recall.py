"""Recall in the report: the figure against the bytes of the state, the table, and the findings."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from typer.testing import CliRunner

from report.synthetic_scores import ScoreMaker, evaluations_of
from report.words import check_words
from retbench.cli import app, layout
from retbench.records.record import Metric
from retbench.report.evaluations import Evaluations
from retbench.report.figures.catalogue import draw_scores
from retbench.report.figures.drawing import Drawing
from retbench.report.figures.recall import frontier, seed_means
from retbench.report.findings.quality import find_quality
from retbench.report.tables.experiments import quality_table
from retbench.report.tables.readable import readable_tables
from retbench.stats.intervals import mean_interval


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Evaluations:
    maker = ScoreMaker(tmp_path_factory.mktemp("recall"))
    maker.recalls()
    return evaluations_of(maker)


@pytest.fixture(scope="module")
def drawings(evaluations: Evaluations) -> list[Drawing]:
    return list(draw_scores(evaluations))


def test_the_figure_has_a_panel_per_number_of_pairs_and_a_point_per_size(drawings: list[Drawing]) -> None:
    drawing, _ = drawings
    assert drawing.name == "mqar_mqar_frontier"
    assert [axes.get_title(loc="left") for axes in drawing.figure.axes] == [
        "4 pairs in 64 tokens",
        "16 pairs in 64 tokens",
    ]
    words = {text.get_text() for text in drawing.figure.findobj(Text)}  # type: ignore[attr-defined]
    assert {"state, bytes per sequence (log scale)", "accuracy of multi-query associative recall, %"} <= words
    mine = drawing.data[(drawing.data["num_pairs"] == 16) & (drawing.data["model"] == "retnet")]
    found = set(zip(mine["state_bytes"], mine["value"], strict=True))
    assert found == {(4096, 0.25), (8192, 0.5), (16384, 0.75)}
    assert dict(zip(mine["size"], mine["num_seeds"], strict=True)) == {"1m": 3, "6m": 1, "25m": 1}


def test_the_figure_has_the_frontier_the_accuracy_of_guessing_and_the_ceiling(
    drawings: list[Drawing],
) -> None:
    for axes, num_pairs in zip(drawings[0].figure.axes, (4, 16), strict=True):
        lines = [[tuple(point) for point in line.get_xydata()] for line in axes.lines]
        levels = [{y for _, y in line} for line in lines]
        assert {100 / num_pairs} in levels
        assert {100.0} in levels
    staircase = [(4096.0, 25.0), (8192.0, 50.0), (16384.0, 75.0), (65536.0, 100.0)]
    assert any(line[:4] == staircase and line[4][1] == 100.0 for line in lines)


def test_another_figure_has_the_accuracy_against_the_number_of_pairs_by_size(drawings: list[Drawing]) -> None:
    _, drawing = drawings
    assert drawing.name == "mqar_mqar_64_pairs"
    titles = [axes.get_title(loc="left") for axes in drawing.figure.axes]
    assert titles == ["1M", "6M", "25M"]
    words = {text.get_text() for text in drawing.figure.findobj(Text)}  # type: ignore[attr-defined]
    assert "pairs of a key and a value (log scale)" in words
    for axes in drawing.figure.axes:
        lines = [[tuple(point) for point in line.get_xydata()] for line in axes.lines]
        assert [(4.0, 25.0), (16.0, 6.25)] in lines, "the accuracy of guessing"


def test_labels_of_many_models_cover_neither_ceiling_nor_guess(tmp_path: Path) -> None:
    """They are higher than the last panel, and reach up beside the first one."""
    names = ["transformer", "retnet", *(f"retnet_{number}" for number in range(10))]
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)}, bits={name: {"1m": 1.7} for name in names})
    maker.recalls()
    frontiers, _ = draw_scores(evaluations_of(maker))
    assert len(frontiers.data) == 2 * len(names)
    assert {"guess", "ceiling"} <= {text.get_text() for text in frontiers.figure.axes[0].texts}
    check_words(frontiers)


def test_a_point_is_the_mean_of_the_seeds_with_its_interval_inside_the_possible(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path)
    records = [record for record in maker.recalls() if record.model.size == "1m"]
    mine = [record for record in records if record.model.name == "retnet" and record.point.num_pairs == 16]
    changed = [
        record.model_copy(update={"metrics": {**record.metrics, "acc": Metric(unit="ratio", value=value)}})
        for record, value in zip(mine, (0.2, 0.6, 1.0), strict=True)
    ]
    (row,) = seed_means(changed).to_dict("records")
    assert row["value"] == pytest.approx(0.6)
    assert (row["low"], row["high"], row["num_seeds"]) == (0.0, 1.0, 3)
    (row,) = seed_means(changed[:1]).to_dict("records")
    assert row["value"] == 0.2
    assert math.isnan(row["low"])
    assert math.isnan(row["high"])


points = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10).map(lambda share: share / 10)), min_size=1)


@given(points)
def test_the_frontier_is_the_best_accuracy_within_so_many_bytes(found: list[tuple[float, float]]) -> None:
    corners = frontier(found)
    assert corners == sorted(set(corners))
    assert all(corner in found for corner in corners)
    for size, _ in found:
        best = max(value for other, value in found if other <= size)
        assert [value for corner, value in corners if corner <= size][-1] == best


def test_every_block_of_a_narrow_terminal_repeats_the_columns_that_say_what_a_row_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = ScoreMaker(tmp_path)
    maker.recalls()
    monkeypatch.setattr(layout, "terminal_width", lambda: 44)
    stdout = (
        CliRunner().invoke(app, ["table", "mqar", "--results", str(maker.write()), "--format", "text"]).stdout
    )
    headings = [line.split() for line in stdout.splitlines() if "metric" in line]
    assert len(headings) > 1
    assert all(words[:4] == ["pairs", "size", "seed", "metric"] for words in headings)


def test_the_table_has_a_row_per_point_with_accuracy_and_state(evaluations: Evaluations) -> None:
    table = readable_tables(quality_table(evaluations, "mqar"))["mqar"].frame
    assert list(table.columns) == [
        "task",
        "pairs",
        "context",
        "size",
        "seed",
        "metric",
        "retnet",
        "transformer",
    ]
    row = table[(table["pairs"] == "16") & (table["size"] == "6M") & (table["metric"] == "acc")].iloc[0]
    assert (row["retnet"], row["transformer"]) == ("50.0 ± 1.0 %", "100.0 ± 1.0 %")
    states = table[
        (table["pairs"] == "16") & (table["size"] == "6M") & (table["metric"] == "state_bytes")
    ].iloc[0]
    assert (states["retnet"], states["transformer"]) == ("8.00 KiB", "128 KiB")


def test_a_finding_states_accuracies_and_bytes_at_the_largest_size(evaluations: Evaluations) -> None:
    (finding,) = find_quality(evaluations)
    for part in ("75.0 %", "100.0 %", "16.0 KiB", "256 KiB", "25M", "16 pairs in 64 tokens"):
        assert part in finding.text
    assert evaluations.comparisons == ()
    assert evaluations.refusals == []


def test_without_a_transformer_that_solves_the_task_there_is_no_verdict(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path)
    maker.recalls(solved=0.98)
    (finding,) = find_quality(evaluations_of(maker))
    assert "No verdict" in finding.text
    assert "98.0 %" in finding.text


# ---- accuracy against distance ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured_by_distance(tmp_path_factory: pytest.TempPathFactory) -> Evaluations:
    maker = ScoreMaker(tmp_path_factory.mktemp("distance"))
    maker.recalls(by_distance=True)
    return evaluations_of(maker)


def test_a_figure_has_the_accuracy_against_distance_with_the_most_pairs(
    measured_by_distance: Evaluations,
) -> None:
    (drawing,) = [d for d in draw_scores(measured_by_distance) if d.name.endswith("_distance")]
    assert drawing.name == "mqar_mqar_mqar_64_16_distance"
    assert [axes.get_title(loc="left") for axes in drawing.figure.axes] == ["RetNet", "Transformer"]
    assert set(drawing.data["num_pairs"]) == {16}
    three = drawing.data[(drawing.data["model"] == "retnet") & (drawing.data["size"] == "1m")]
    shares = [0.8, 0.72, 0.648]
    assert list(three["value"]) == pytest.approx([sum(shares) / 3 / 2**place for place in range(3)])
    assert set(three["num_seeds"]) == {3}
    ends = mean_interval(shares)
    assert (three.iloc[0]["low"], three.iloc[0]["high"]) == pytest.approx((ends.low, ends.high))
    one = drawing.data[(drawing.data["model"] == "retnet") & (drawing.data["size"] == "6m")]
    assert list(one["low"]) == pytest.approx([0.72, 0.36, 0.18]), "the interval over examples"
    for axes in drawing.figure.axes:
        lines = [list(line.get_xdata()) for line in axes.lines if line.get_marker() not in ("None", "_")]
        assert lines == [[4, 8, 16]] * 3, "one for each size"
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["4", "8", "16"]
    check_words(drawing)


def test_records_without_distances_have_no_such_figure(drawings: list[Drawing]) -> None:
    assert [drawing.name for drawing in drawings if "distance" in drawing.name] == []


def test_the_table_has_the_accuracy_of_far_questions(measured_by_distance: Evaluations) -> None:
    table = readable_tables(quality_table(measured_by_distance, "mqar"))["mqar"].frame
    row = table[(table["pairs"] == "16") & (table["size"] == "6M") & (table["metric"] == "acc_far")].iloc[0]
    assert (row["retnet"], row["transformer"]) == ("20.0 %", "100.0 %")
