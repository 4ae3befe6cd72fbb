"""Needles in the report: the maps, the table with McNemar's test, and the findings."""

from pathlib import Path

import pytest
from matplotlib.text import Text

from report.synthetic_scores import ScoreMaker, evaluations_of
from retbench.report.evaluations import Evaluations
from retbench.report.figures.catalogue import draw_scores
from retbench.report.findings.quality import find_quality
from retbench.report.tables.experiments import quality_table
from retbench.report.tables.readable import readable_tables

SEEDS = {"1m": (0,)}


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Evaluations:
    maker = ScoreMaker(tmp_path_factory.mktemp("needles"), seeds=SEEDS)
    maker.needles("noise", {"retnet": 0.25, "transformer": 0.75})
    return evaluations_of(maker)


def test_the_figure_has_a_map_per_model_with_the_share_in_each_cell(evaluations: Evaluations) -> None:
    (drawing,) = draw_scores(evaluations)
    assert drawing.name == "needle_needle_noise_1m_map"
    assert [axes.get_title(loc="left") for axes in drawing.figure.axes] == [
        "RetNet, seed 0",
        "Transformer, seed 0",
    ]
    for axes, share in zip(drawing.figure.axes, ("25", "75"), strict=True):
        assert [text.get_text() for text in axes.texts] == [share] * 3 + ["0"] * 3
        assert [label.get_text() for label in axes.get_xticklabels()] == ["512", "1K"]
    depths = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    assert depths == ["0", "50", "100"]
    assert len(drawing.data) == 2 * 2 * 3
    words = {text.get_text() for text in drawing.figure.findobj(Text)}  # type: ignore[attr-defined]
    assert "context length, tokens" in words


def test_the_map_marks_the_trained_length_where_it_is_known(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds=SEEDS)
    maker.trainings()
    maker.needles("noise", {"retnet": 0.25, "transformer": 0.75})
    found = evaluations_of(maker)
    (drawing,) = (each for each in draw_scores(found) if each.name.startswith("needle"))
    assert [len(axes.lines) for axes in drawing.figure.axes] == [0, 0]  # trained at 2K, beyond both contexts
    assert "dashed" not in drawing.caption


def test_a_caption_explains_the_dashed_line_where_there_is_one(
    evaluations: Evaluations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluations, "trained_length", lambda self, records: 512)
    (drawing,) = draw_scores(evaluations)
    assert [axes.lines[0].get_xdata()[0] for axes in drawing.figure.axes] == [0.5, 0.5]
    assert "dashed" in drawing.caption


def test_the_table_has_every_share_with_its_difference(evaluations: Evaluations) -> None:
    table = readable_tables(quality_table(evaluations, "needle"))["needle"].frame
    row = table[(table["context"] == "512") & (table["metric"] == "acc")].iloc[0]
    assert (row["retnet"], row["transformer"]) == ("25.0 ± 5.0 %", "75.0 ± 5.0 %")
    assert row["difference, points"].startswith("-50.0 [")
    assert set(table["metric"]) == {"acc", "contains", "choice", "prompt_state_bytes"}


def test_a_finding_states_the_shares_by_length_and_the_test(evaluations: Evaluations) -> None:
    (finding,) = find_quality(evaluations)
    assert finding.lead == "0.0 % vs 0.0 % of the needles in 1K"
    assert "25.0 % and 75.0 % at 512 (p <" in finding.text
    assert "1M seed 0" in finding.text


def test_prompts_of_other_tokenizers_are_not_compared(tmp_path: Path) -> None:
    def change(arguments: dict[str, object]) -> dict[str, object]:
        if arguments["model"].name == "retnet":  # type: ignore[attr-defined]
            arguments["backend"]["prompts_fingerprint"] = "other"  # type: ignore[index]
        return arguments

    maker = ScoreMaker(tmp_path, seeds=SEEDS, change=change)
    maker.needles("noise", {"retnet": 0.25, "transformer": 0.75})
    found = evaluations_of(maker)
    assert all(found.compared(point) == [] for point in found.task_points())
    assert any("prompts other and noise512" in text for text in found.refusals)
