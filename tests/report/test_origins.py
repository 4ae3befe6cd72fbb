"""Own and published records: kept apart, and the published ones by machine and models."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from report.synthetic_records import CPU, Maker, write_results
from report.synthetic_scores import ScoreMaker
from retbench.records.record import Record
from retbench.report.origins import select_by_origin
from retbench.report.results import Results, load_results

LATER = replace(CPU, started=CPU.started + timedelta(days=1))


def folder_of(tmp_path: Path, own: list[Record], published: list[Record]) -> Results:
    """A results folder with runs of its own and the published ones, as a clone has them."""
    root = tmp_path / "results"
    for folder, records in ((root, own), (root / "published", published)):
        if records:
            write_results(folder, records)
    return load_results(root)


def test_own_and_published_records_of_one_machine_are_kept_apart(tmp_path: Path) -> None:
    own, published = Maker(LATER).latency(), [*Maker(CPU).latency(), *Maker(CPU).memory()]
    mine, others = select_by_origin(folder_of(tmp_path, own, published))
    assert (mine.title, others.title) == ("Measured on this machine", "Published results")
    assert {record.run_id for record in mine.records} == {own[0].run_id}
    assert {record.workload for record in others.records} == {"memory"}
    assert any("80 records" in note and "published" in note for note in mine.left_out)
    assert mine.everything == others.everything


@pytest.mark.parametrize("is_published", [True, False])
def test_records_of_one_origin_are_one_selection(tmp_path: Path, is_published: bool) -> None:
    records = Maker(CPU).memory()
    both = ([], records) if is_published else (records, [])
    (found,) = select_by_origin(folder_of(tmp_path, *both))
    assert found.is_published == is_published
    assert len(found.records) == len(records)


def test_a_folder_that_is_the_published_one_is_published(tmp_path: Path) -> None:
    folder_of(tmp_path, [], Maker(CPU).memory())
    published = tmp_path / "results" / "published"
    for root in (published.parent, published, published / CPU.name):
        (found,) = select_by_origin(load_results(root))
        assert found.is_published


def test_what_failed_here_does_not_hide_the_published_records(tmp_path: Path) -> None:
    failed = [
        record.model_copy(update={"status": "failed", "metrics": {}, "error": "stopped"})
        for record in Maker(LATER).memory()
    ]
    mine, others = select_by_origin(folder_of(tmp_path, failed, Maker(CPU).memory()))
    assert {record.status for record in mine.records} == {"failed"}
    assert {record.workload for record in others.records} == {"memory"}


def test_published_experiments_of_one_set_are_apart_where_they_have_other_models(tmp_path: Path) -> None:
    pair = Maker(CPU).memory()
    kin = [record.model_copy(update={"experiment": "kin"}) for record in pair]
    third = [
        record.model_copy(
            update={
                "model": record.model.model_copy(update={"name": "third"}),
                "cell_id": f"3{record.cell_id}",
            }
        )
        for record in kin
        if record.model.name == "retnet"
    ]
    found = select_by_origin(folder_of(tmp_path, [], [*kin, *third, *pair, *Maker(CPU).latency()]))
    assert [{record.experiment for record in one.records} for one in found] == [
        {"memory", "latency"},
        {"kin"},
    ]
    assert [len(one.records) for one in found] == [
        len(pair) + len(Maker(CPU).latency()),
        len(kin) + len(third),
    ]


@pytest.mark.parametrize("lacks_one", [True, False])
def test_a_published_machine_is_hidden_by_a_newer_one_that_has_all_its_models(
    tmp_path: Path, lacks_one: bool
) -> None:
    newer = [
        record.model_copy(update={"environment": {**record.environment, "machine": "another"}})
        for record in Maker(LATER).memory()
        if record.model.name != "retnet" or not lacks_one
    ]
    found = select_by_origin(folder_of(tmp_path, [], [*Maker(CPU).memory(), *newer]))
    machines = [{record.environment["machine"] for record in one.records} for one in found]
    assert machines == ([{CPU.name}, {"another"}] if lacks_one else [{"another"}])
    assert any(CPU.name in note for one in found for note in one.left_out) is not lacks_one


def test_published_results_of_one_experiment_on_several_machines_have_titles_of_their_own(
    tmp_path: Path,
) -> None:
    both = Maker(CPU).memory()
    alone = [
        record.model_copy(update={"environment": {**record.environment, "machine": f"only-{name}"}})
        for name in ("retnet", "transformer")
        for record in Maker(LATER).memory()
        if record.model.name == name
    ]
    found = select_by_origin(folder_of(tmp_path, [], [*both, *alone]))
    assert len(found) == len({one.title for one in found}) == len({one.anchor for one in found}) == 3
    assert len(found[0].records) == len(both), "the one of most models is first"


def test_of_several_published_evaluations_the_one_of_most_records_stands_with_the_costs(
    tmp_path: Path,
) -> None:
    small, large = (
        ScoreMaker(tmp_path / name, seeds={"1m": (0,)}, num_documents=8, code_revision=name)
        for name in ("0.1", "0.2")
    )
    small.perplexities("wikitext-103", "whole", 2048)
    large.zeroshots(0, ("piqa",))
    large.zeroshots(4, ("piqa",))
    few = [record.model_copy(update={"experiment": "a_few"}) for record in small.records]
    assert len(few) < len(large.records)
    for evaluations in ([*few, *large.records], [*large.records, *few]):
        first, second = select_by_origin(folder_of(tmp_path, [], [*Maker(CPU).memory(), *evaluations]))
        assert {record.workload for record in first.records} == {"memory", "zeroshot"}
        assert {record.workload for record in second.records} == {"perplexity"}


def test_published_evaluations_of_newer_code_than_their_training_hide_no_others_of_that_code(
    tmp_path: Path,
) -> None:
    old, new = (
        ScoreMaker(tmp_path / name, seeds={"1m": (0,)}, num_documents=8, code_revision=name)
        for name in ("0.1", "0.2")
    )
    old.trainings()
    old.zeroshots(0, ("piqa",))
    new.perplexities("wikitext-103", "whole", 2048)
    trainings = [record for record in old.records if record.workload == "training_run"]
    newer = [*trainings, *new.records]  # evaluated first, so that the training is the newest
    records = [record.model_copy(update={"experiment": "a_newer"}) for record in newer]
    found = select_by_origin(folder_of(tmp_path, [], [*old.records, *records]))
    shown = [{record.workload for record in one.records} for one in found]
    assert {"training_run", "perplexity"} in shown
    assert {"training_run", "zeroshot"} in shown
