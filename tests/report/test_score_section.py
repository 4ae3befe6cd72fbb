"""The part of the report on quality: the models' origin, the tables, and what is missing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from report.synthetic_scores import NUM_TOKENS, SEEDS, ScoreMaker
from retbench.report.frames import load_results
from retbench.report.report import write_report
from retbench.report.score_section import make_section, missing_scores, subject_table
from retbench.report.scores import Scores, make_scores
from retbench.units import format_count


def scores_of(maker: ScoreMaker) -> Scores:
    loaded = load_results(maker.write())
    found = make_scores(loaded.records, loaded.folders)
    assert found is not None
    return found


def test_each_model_stands_once_with_where_its_weights_are_from(scores: Scores) -> None:
    table = subject_table(scores)
    assert len(table) == 2 * sum(map(len, SEEDS.values()))
    assert list(dict.fromkeys(table["size"])) == list(SEEDS)
    assert set(table["trained on"]) == {"classic_books"}
    assert set(table["tokens"]) == {format_count(NUM_TOKENS)}
    assert set(table["learning rate"]) == {"0.002"}  # of the grid's other rates nothing was evaluated
    assert table["fingerprint"].is_unique


def test_weights_that_nobody_trained_say_so(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        weights = arguments["model"].weights
        if weights is None:
            return arguments
        public = {"source": "hub:someone/model", "revision": "abc", "corpus": None, "num_tokens": None}
        weights = weights.model_copy(update=public | {"learning_rate": None, "seed": None})
        return arguments | {"model": arguments["model"].model_copy(update={"weights": weights})}

    maker = ScoreMaker(tmp_path, seeds={"1m": (None,), "6m": (0,)}, change=change)
    maker.perplexities("litbank/original", "whole", 2048)
    table = subject_table(scores_of(maker)).set_index(["model", "size"])
    drawn, public = table.loc[("RetNet", "1m")], table.loc[("RetNet", "6m")]
    assert (drawn["weights"], drawn["tokens"]) == ("drawn from a seed, untrained", "–")
    assert (public["weights"], public["trained on"]) == ("hub:someone/model at abc", "not recorded")


def test_what_was_not_asked_of_a_model_is_named_with_its_command(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1)})
    maker.perplexities("litbank/original", "whole", 2048)
    maker.perplexities("wikitext-103", "whole", 2048)
    assert missing_scores(scores_of(maker)) == []
    (sentence,) = missing_scores(
        replace(
            scores_of(maker),
            records=tuple(
                record
                for record in maker.records
                if (record.model.name, record.point.task, record.model.weights and record.model.weights.seed)
                != ("retnet", "wikitext-103", 1)
            ),
        )
    )
    assert sentence == (
        "quality: wikitext-103 (whole, 2K) was not asked of RetNet 1m seed 1. "
        "Run `retbench run quality --profile cpu` again; it goes on where it stopped."
    )


def test_the_section_has_a_table_a_workload_and_the_conditions(scores: Scores) -> None:
    section = make_section(scores)
    assert len(section.tables) == 3
    assert len({titled.title for titled in section.tables}) == 3
    assert len(section.conditions) == 1  # evaluated under those that it was trained under
    assert "AMD EPYC 9B14 · float32" in section.conditions[0]
    assert section.refusals == section.missing == []


def test_the_report_holds_quality_beside_its_data(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path / "results", seeds={"1m": (0,), "6m": (0,)})
    maker.everything()
    paths = write_report(maker.write(), tmp_path / "out")
    page = next(path for path in paths if path.suffix == ".md").read_text("utf-8")
    for words in (
        "RetNet's bits per byte on litbank/original (whole, 8K)",
        "Beyond the 2K tokens",
        "classic_books",
    ):
        assert words in page
    names = {path.name for path in paths}
    assert "quality_zeroshot_0shot.svg" in names
    assert "quality_zeroshot_0shot.csv" in names


def test_a_report_without_figures_is_written_too(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path / "results", seeds={"1m": (0,)})
    maker.perplexities("litbank/original", "last", 2048)
    paths = write_report(maker.write(), tmp_path / "out")
    assert {path.name for path in paths} == {"index.html", "report.md"}
    assert "ratio of bits/token" in (tmp_path / "out/report.md").read_text(encoding="utf-8")
