"""Recall in text in the report: the figure by distance, the table, the findings and the claim."""

from pathlib import Path
from typing import Any

import pytest

from report.synthetic_scores import ScoreMaker, evaluations_of
from retbench.papers.claims import load_claims
from retbench.report.claims.judge import judge
from retbench.report.evaluations import Evaluations, make_evaluations
from retbench.report.figures.catalogue import draw_scores
from retbench.report.findings.quality import find_quality
from retbench.report.results import load_results
from retbench.report.selection import select
from retbench.report.tables.compact import quality_tables
from retbench.report.tables.experiments import quality_table
from retbench.report.tables.readable import readable_tables

(CLAIM,) = (claim for claim in load_claims() if claim.name == "recall_hits")
SEEDS = {"1m": (0, 1), "6m": (0,)}
BITS = {"retnet": {"1m": 1.2, "6m": 1.1}, "transformer": {"1m": 1.0, "6m": 1.0}}


def made(folder: Path, **changes: Any) -> ScoreMaker:
    maker = ScoreMaker(folder, **({"seeds": SEEDS, "bits": BITS} | changes))
    maker.slices("litbank/original", 8192)
    return maker


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Evaluations:
    return evaluations_of(made(tmp_path_factory.mktemp("slices")))


def test_the_figure_has_a_panel_per_size_and_the_intervals_of_the_record(evaluations: Evaluations) -> None:
    (drawing,) = draw_scores(evaluations)
    assert drawing.name == "recall_slices_recall_slices_litbank-original_8192_gain"
    assert [axes.get_title(loc="left") for axes in drawing.figure.axes] == ["1M", "6M"]
    mine = drawing.data[(drawing.data["model"] == "retnet") & (drawing.data["size"] == "6m")]
    assert list(mine["distance_bytes"]) == [64, 128, 256]
    assert list(mine["value"]) == pytest.approx([1.9] * 3)
    assert list(mine["low"]) == pytest.approx([1.7] * 3)
    assert list(mine["high"]) == pytest.approx([2.1] * 3)


def test_too_few_documents_for_an_interval_are_drawn_without_one(tmp_path: Path) -> None:
    loaded = load_results(made(tmp_path).write())
    records = [
        record.model_copy(
            update={
                "series": {name: one for name, one in record.series.items() if name == "hit_gain_by_distance"}
            }
        )
        for record in loaded.records
    ]
    found = make_evaluations(select(records, folders=loaded.folders))
    assert found is not None
    (drawing,) = draw_scores(found)
    assert set(drawing.data["low"]) == {None}
    assert len(drawing.figure.axes) == 2


def test_the_table_has_a_row_per_slice_with_the_paired_difference(evaluations: Evaluations) -> None:
    table = readable_tables(quality_table(evaluations, "recall_slices"))["recall_slices"].frame
    rows = table[table["size"] == "6M"].set_index("metric")
    assert rows.loc["loss on repeated pairs, nats/word", "difference"].startswith("+0.100 [+0.100, +0.100]")
    assert rows.loc["loss on new pairs, nats/word", "difference"].startswith("+0.000 [")
    assert rows.loc["second copy, bits/byte", "transformer"] == "1.0000"
    assert set(table["bytes"]) == {"8K"}


def test_the_table_of_the_first_page_has_the_primary_metric_of_each_model(evaluations: Evaluations) -> None:
    (table,) = quality_tables(evaluations)
    assert list(table.frame.columns) == ["size", "seed", "RetNet", "Transformer", "difference"]
    assert len(table.frame) == 3
    assert "bytes 8K" in table.caption


def test_a_finding_states_both_differences_per_size_and_seed(evaluations: Evaluations) -> None:
    findings = find_quality(evaluations)
    assert len(findings) == 3
    assert "+0.200 [+0.200, +0.200]" in findings[0].text
    assert "1M seed 0" in findings[0].text
    assert "litbank/original (first 8K bytes)" in findings[0].text
    assert all("the Transformer recalls more" in finding.text for finding in findings)


def test_documents_longer_than_the_training_allow_no_verdict(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)}, bits=BITS)
    maker.trainings()
    maker.slices("litbank/original", 4 * 4096)
    found = [each.text for each in find_quality(evaluations_of(maker)) if "repeated pair" in each.text]
    assert len(found) == 1
    assert (
        "no verdict on recall, because the documents have more tokens than the 2K of the training" in found[0]
    )
    (row,) = judge(CLAIM, load_results(maker.root)).rows
    assert not row.records


@pytest.mark.parametrize(
    ("bits", "verdict"),
    [
        (
            {"retnet": 3.5, "transformer": 3.1},
            "because the Transformer is not shown to recall, its own gain is -",
        ),
        ({"retnet": 3.1, "transformer": 3.5}, "because RetNet is not shown to recall, its own gain is -"),
        ({"retnet": 2.5, "transformer": 3.5}, "RetNet recalls more"),
        ({"retnet": 3.5, "transformer": 2.5}, "the Transformer recalls more"),
    ],
)
def test_only_a_model_with_a_gain_above_0_recalls_more(
    tmp_path: Path, bits: dict[str, float], verdict: str
) -> None:
    """The gain of a repeated pair is 3 less the bits."""
    sides = {model: {"1m": value} for model, value in bits.items()}
    (finding,) = find_quality(evaluations_of(made(tmp_path, seeds={"1m": (0,)}, bits=sides)))
    assert verdict in finding.text
    assert ("recalls more" in finding.text) == ("recalls more" in verdict)


def test_other_words_are_not_compared(tmp_path: Path) -> None:
    def more(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"num_hits": row["num_hits"] + (model == "retnet")} for row in rows]

    found = evaluations_of(made(tmp_path, change_rows=more))
    assert found.compared(found.task_points()[0]) == []
    assert any("document 0 differs: its num_hits" in text for text in found.refusals)


def test_a_reference_that_does_not_recall_gives_no_verdict(tmp_path: Path) -> None:
    """The gain of a repeated pair is 3 less the bits: about 0 for the Transformer, and below 0 for RetNet."""
    sides = {"retnet": {"1m": 3.5}, "transformer": {"1m": 3.0}}
    maker = made(tmp_path, seeds={"1m": (0,)}, bits=sides)
    (row,) = (row for row in judge(CLAIM, load_results(maker.write())).rows if row.records)
    assert row.finding.verdict == "not_testable"
    assert "the reference is not shown to recall, its gain of a repeated pair is" in row.finding.measured


@pytest.mark.parametrize(
    ("bits", "num_documents", "verdict"),
    [(1.3, 60, "reproduced"), (0.8, 60, "not_reproduced"), (1.3, 5, "not_testable")],
)
def test_the_claim_is_judged_by_the_intervals(
    tmp_path: Path, bits: float, num_documents: int, verdict: str
) -> None:
    sides = {"retnet": {"1m": bits}, "transformer": {"1m": 1.0}}
    maker = made(tmp_path, seeds={"1m": (0,)}, bits=sides, num_documents=num_documents)
    judged = judge(CLAIM, load_results(maker.write()))
    assert judged.verdict == "not_testable"  # a million parameters are not the paper's 160M
    (row,) = (row for row in judged.rows if row.records)
    assert (row.scope, row.finding.verdict) == ("elsewhere", verdict)
