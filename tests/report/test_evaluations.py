"""Which readings stand side by side: the newest of each, under one set of conditions, seed with seed."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from report.synthetic_scores import NUM_TOKENS, SEEDS, TRAINED_LEN, ScoreMaker, evaluations_of
from retbench.cli.table import table
from retbench.errors import ConfigError
from retbench.records.record import Record
from retbench.report.evaluations import Evaluations, make_evaluations
from retbench.report.points import ModelInstance
from retbench.report.results import Results, load_results
from retbench.report.selection import select
from retbench.report.trainings import weights_table
from retbench.units import format_count


def test_records_of_cost_hold_no_scores(cpu_records: list[Record]) -> None:
    assert make_evaluations(select(cpu_records)) is None


def test_every_reading_is_compared_with_that_of_the_same_size_and_seed(scores: Evaluations) -> None:
    (question, *_) = scores.longest_texts()
    made = scores.compared(question)
    assert [c.instance for c in made] == [
        ModelInstance(size, seed) for size, seeds in SEEDS.items() for seed in seeds
    ]
    assert {(c.model, c.reference) for c in made} == {("retnet", "transformer")}
    assert scores.refusals == []


def test_documents_are_found_beside_their_records_at_any_depth(scored: Results) -> None:
    assert {path.parts[-2:] for path in scored.folders.values()} == {("epyc-9b14-2c", "quality")}
    assert len(scored.folders) == sum(record.documents is not None for record in scored.records)


def test_models_of_all_sizes_are_kept(scored: Results, scores: Evaluations) -> None:
    assert len({record.model.size for record in scores.records}) == 3
    assert len(scores.records) == len(scored.records)
    assert select(scored.records).left_out == ()


def test_the_training_length_is_that_of_the_weights(scores: Evaluations, scored: Results) -> None:
    evaluated = [record for record in scores.records if record.workload == "perplexity"]
    assert scores.trained_length(evaluated) == TRAINED_LEN
    untold = make_evaluations(select([r for r in scored.records if r.workload == "perplexity"]))
    assert untold is not None
    assert untold.trained_length(evaluated) is None


def test_a_newer_reading_replaces_an_older_one_and_other_code_is_left_out(tmp_path: Path) -> None:
    seeds = {"1m": (0,)}
    older = ScoreMaker(tmp_path, seeds=seeds)
    newer = ScoreMaker(tmp_path, seeds=seeds, started=older.started + timedelta(days=1))
    other = ScoreMaker(tmp_path, seeds=seeds, code_revision="old", started=older.started - timedelta(days=1))
    for maker in (older, newer, other):
        maker.perplexities("litbank/original", "whole", 2048)
    selection = select([*newer.records, *older.records, *other.records])
    assert list(map(id, selection.quality)) == list(map(id, newer.records))
    apart, replaced = sorted(selection.left_out, key=len, reverse=True)
    assert "quality: 2 records of 2026-01-02 of quality replaced by newer ones" in apart + replaced
    assert "code revision old, here 0.1.0+src.0123456789ab" in apart + replaced


def test_trainings_of_older_code_stand_beside_newer_evaluations(tmp_path: Path) -> None:
    training = ScoreMaker(tmp_path, seeds={"1m": (0,)}, code_revision="older")
    evaluation = ScoreMaker(tmp_path, seeds={"1m": (0,)})
    training.trainings()
    evaluation.perplexities("litbank/original", "whole", 8192)
    selection = select([*training.records, *evaluation.records])
    found = make_evaluations(selection)
    assert found is not None
    assert selection.left_out == ()
    assert len(found.conditions) == 2
    assert found.trained_length(evaluation.records) == TRAINED_LEN


def test_the_command_prints_the_tables_and_what_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)})
    maker.perplexities("litbank/original", "whole", 2048)
    maker.write()
    table("quality", form="md", results=tmp_path)
    printed = capsys.readouterr()
    assert printed.out.startswith("### perplexity\n\n| corpus | protocol | context | size | seed |")
    assert printed.err == ""
    for path in tmp_path.rglob("*.gz"):
        path.unlink()
    table("quality", form="md", results=tmp_path)
    printed = capsys.readouterr()
    assert printed.out.endswith("| not compared |\n")
    assert (
        "not compared: RetNet and the Transformer at litbank/original (whole, 2K) 1M seed 0: " in printed.err
    )
    with pytest.raises(ConfigError, match="Did you mean 'quality'"):
        table("qualty", form="md", results=tmp_path)


def test_loading_tells_of_damaged_lines_and_keeps_the_folders(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)})
    maker.zeroshots(0)
    path = next(maker.write().rglob("*.jsonl"))
    with path.open("ab") as file:
        file.write(b"{torn\n")
    loaded = load_results(path)
    assert len(loaded.problems) == 1
    assert set(loaded.folders.values()) == {path.parent}


def test_each_model_stands_once_with_where_its_weights_are_from(scores: Evaluations) -> None:
    table = weights_table(scores)
    assert len(table) == 2 * sum(map(len, SEEDS.values()))
    assert list(dict.fromkeys(table["size"])) == [size.upper() for size in SEEDS]
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
    table = weights_table(evaluations_of(maker)).set_index(["model", "size"])
    drawn, public = table.loc[("RetNet", "1M")], table.loc[("RetNet", "6M")]
    assert (drawn["weights"], drawn["tokens"]) == ("drawn from a seed, untrained", "–")
    assert (public["weights"], public["trained on"]) == ("hub:someone/model at abc", "not recorded")
