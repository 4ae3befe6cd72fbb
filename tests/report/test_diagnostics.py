"""Diagnostics: missing, noisy, disturbed and failed measurements are reported, and a clean run is not accused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report.synthetic_records import CPU, Maker
from report.synthetic_scores import ScoreMaker, evaluations_of
from retbench.records.record import FAULTY_CEILING, Metric, Record
from retbench.report.diagnostics import (
    absent_sentences,
    disturbance_sentences,
    failure_table,
    missing_evaluations,
    missing_sentences,
    noisy_sentences,
    overlap_sentences,
    truncation_sentences,
)
from retbench.report.frames import observations
from retbench.report.report import write_report
from retbench.report.selection import Selection, select
from retbench.report.sweeps import make_sweeps


def missing_of(selection: Selection) -> list[str]:
    """Return the sentences on what is missing of the experiments that were run."""
    sentences = missing_sentences(selection.records, make_sweeps(selection))
    experiments = {record.experiment for record in selection.records}
    return [sentence for sentence in sentences if sentence.partition(":")[0] in experiments]


def test_a_clean_run_is_not_accused(cpu_records: list[Record]) -> None:
    selection = select(cpu_records)
    sweeps = make_sweeps(selection)
    assert missing_of(selection) == []
    assert noisy_sentences(sweeps) == []
    assert disturbance_sentences(selection.records) == []
    assert failure_table(selection.records).empty


def test_an_experiment_that_was_not_run_is_named_with_its_command(cpu_records: list[Record]) -> None:
    selection = select(cpu_records, "latency")
    (sentence,) = [
        s for s in missing_sentences(selection.records, make_sweeps(selection)) if s.startswith("memory:")
    ]
    assert "Run `retbench run memory`." in sentence


def test_an_experiment_of_trained_models_is_named_with_their_training(cpu_records: list[Record]) -> None:
    sentences = missing_sentences(cpu_records, [])
    for name, commands in {
        "mqar": "Run `retbench train mqar`, then `retbench run mqar`.",
        "zeroshot": "Run `retbench train quality`, then `retbench run zeroshot`.",
        "needle": "Run `retbench train needle`, then `retbench run needle`.",
        "checkpoints": "Run `retbench run checkpoints`, which downloads checkpoints from the hub.",
    }.items():
        (sentence,) = [one for one in sentences if one.startswith(f"{name}: ")]
        assert sentence.endswith(commands)


def test_missing_rounds_and_points_are_named(cpu_records: list[Record]) -> None:
    def kept(record: Record) -> bool:
        place = (record.model.name, record.workload, record.point.context_len)
        lost_point = place == ("transformer", "decode", 4096)
        return not (lost_point or (place == ("retnet", "decode", 1024) and record.round > 0))

    selection = select([record for record in cpu_records if kept(record)])
    point, rounds = sorted(missing_of(selection), key=lambda s: "RetNet" in s)
    assert point.startswith("latency: Transformer, decode at 4K, batch 1: none of 5 rounds are measured.")
    assert rounds.startswith("latency: RetNet, decode at 1K, batch 1: 1 of 5 rounds is measured.")
    assert "Run `retbench run latency --profile cpu` again" in rounds


def test_a_run_that_stopped_between_two_rounds_lacks_those_that_it_was_to_measure(
    cpu_records: list[Record],
) -> None:
    stopped = [
        record.model_copy(update={"num_rounds": 5})
        for record in cpu_records
        if record.round < 2 and record.workload == "decode"
    ]
    selection = select(stopped)
    assert {sweep.num_rounds for sweep in make_sweeps(selection)} == {5}
    lengths = "1K, 2K, 4K, 8K, 16K, 32K"
    assert [sentence.split(" Run ")[0] for sentence in missing_of(selection)] == [
        f"latency: {label}, decode at {lengths}, batch 1: 2 of 5 rounds are measured."
        for label in ("RetNet", "Transformer")
    ]


@pytest.mark.parametrize("num_rounds", [4, 5])
def test_a_wide_interval_is_called_noisy(cpu_records: list[Record], num_rounds: int) -> None:
    def shaken(record: Record) -> Record:
        if (record.workload, record.point.context_len, record.model.name) != ("decode", 2048, "retnet"):
            return record
        metric = record.metrics["tpot_s"]
        slower = metric.model_copy(update={"value": metric.value * (1 + 0.2 * (record.round % 2))})
        return record.model_copy(update={"metrics": record.metrics | {"tpot_s": slower}})

    records = [shaken(record) for record in cpu_records if record.round < num_rounds]
    (sentence,) = noisy_sentences(make_sweeps(select(records)))
    assert sentence.startswith("latency: decode, batch 1: ")
    assert "10 %" in sentence
    assert "RetNet at 2K" in sentence
    assert f"`--set rounds={2 * num_rounds}`" in sentence


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"load_average": [7.5, 3.0, 1.0], "physical_cores": 2}, "load average up to 7.5"),
        (
            {"gpu_state": {"before": {"num_foreign_processes": 1}, "after": {}}},
            "while other processes used the GPU",
        ),
        ({"gpu_state": {"violation_s": {"power": 0.0, "thermal": 0.2}}}, "reduced its clocks"),
        (
            {"gpu_state": {"during": {"clocks_event_reasons": ["gpu_idle", "sw_power_cap"]}}},
            "reduced its clocks",
        ),
    ],
)
def test_what_disturbed_a_measurement_is_reported(facts: dict[str, Any], words: str) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"environment": arguments["environment"] | facts}

    (sentence,) = disturbance_sentences(Maker(CPU, change=change).memory())
    assert "12" in sentence
    assert words in sentence


@pytest.mark.parametrize("load", [None, [], "idle", [2.0]])
def test_an_idle_or_unknown_load_is_no_disturbance(load: object) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        facts = {"load_average": load, "physical_cores": 2}
        return arguments | {"environment": arguments["environment"] | facts}

    assert disturbance_sentences(Maker(CPU, change=change).memory()) == []


def test_failures_of_a_cell_for_one_reason_are_one_row(gpu_records: list[Record]) -> None:
    table = failure_table(select(gpu_records, "latency").records)
    assert table[["model", "context", "rounds", "status"]].to_numpy().tolist() == [
        ["transformer", "16K", "0, 1, 2, 3, 4", "out of memory"],
        ["transformer", "32K", "0, 1, 2, 3, 4", "out of memory"],
    ]


def test_what_cannot_be_measured_here_is_reported_once(cpu_records: list[Record]) -> None:
    assert absent_sentences(cpu_records) == [
        "latency: energy_per_token_j: no energy counter on this machine.",
        "memory: energy_per_token_j: no energy counter on this machine.",
    ]


def test_a_task_whose_prompts_were_cut_is_named_with_their_share(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)})
    maker.zeroshots(0, ["copa", "piqa"])
    counted = {"copa": 0, "piqa": 50}

    def with_cut(record: Record) -> Record:
        counts = {"num_truncated": counted[record.point.task or ""], "num_requests": 200}
        made = {name: Metric(unit="count", value=count) for name, count in counts.items()}
        return record.model_copy(update={"metrics": record.metrics | made})

    whole = evaluations_of(maker)
    assert truncation_sentences(whole) == []
    (sentence,) = truncation_sentences(replace(whole, records=tuple(map(with_cut, whole.records))))
    assert sentence.startswith("quality: piqa, 0-shot: 25.0 % of the continuations")
    assert "2K tokens" in sentence


def test_what_was_not_asked_of_a_model_is_named_with_its_command(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1)})
    maker.perplexities("litbank/original", "whole", 2048)
    maker.perplexities("wikitext-103", "whole", 2048)
    assert missing_evaluations(evaluations_of(maker)) == []
    (sentence,) = missing_evaluations(
        replace(
            evaluations_of(maker),
            records=tuple(
                record
                for record in maker.records
                if (record.model.name, record.point.task, record.model.weights and record.model.weights.seed)
                != ("retnet", "wikitext-103", 1)
            ),
        )
    )
    assert sentence.startswith("quality: wikitext-103 (whole, 2K) ")
    assert "RetNet 1M seed 1" in sentence
    assert "Run `retbench run quality --profile cpu` again" in sentence


def test_a_share_above_one_is_no_share_in_any_round(cpu_records: list[Record]) -> None:
    cell_id = next(record.cell_id for record in cpu_records if record.workload == "decode")
    changed = [
        record.model_copy(
            update={"metrics": {**record.metrics, "roofline_ratio": Metric(unit="ratio", value=1.5)}}
        )
        if record.cell_id == cell_id and record.round == 0
        else record
        for record in cpu_records
    ]
    assert [sentence for sentence in absent_sentences(changed) if "roofline_ratio" in sentence] == [
        f"latency: roofline_ratio: {FAULTY_CEILING}."
    ]
    shares = [
        (frame["metric"] == "roofline_ratio").sum() for frame in map(observations, (cpu_records, changed))
    ]
    rounds = len({record.round for record in cpu_records})
    assert shares[0] - shares[1] == rounds > 1


NOW = "cla456789012"
"""Fingerprint of classic_books where it is scored."""


def maker_of(folder: Path, *, split: str, then: str | None, corpus: str = "classic_books") -> ScoreMaker:
    """A pair scored on a split of a corpus; the one that it was trained on had the fingerprint `then`."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        changed = (
            {"corpus_fingerprint": then} if arguments["workload"] == "training_run" else {"split": split}
        )
        return arguments | {"settings": arguments["settings"] | changed}

    maker = ScoreMaker(folder, seeds={"1m": (0,)}, change=change)
    maker.trainings()
    maker.perplexities(corpus, "whole", 2048)
    return maker


@pytest.mark.parametrize("split", ["train", "all"])
@pytest.mark.parametrize("then", [NOW, None])
def test_an_evaluation_on_training_text_is_reported(tmp_path: Path, split: str, then: str | None) -> None:
    (sentence,) = overlap_sentences(evaluations_of(maker_of(tmp_path, split=split, then=then)))
    for part in (
        "quality: classic_books (whole, 2K)",
        "RetNet 1M seed 0, Transformer 1M seed 0",
        f"split '{split}'",
        "training text",
    ):
        assert part in sentence


@pytest.mark.parametrize("split", ["test", "validation"])
def test_held_out_text_is_not_reported(tmp_path: Path, split: str) -> None:
    assert overlap_sentences(evaluations_of(maker_of(tmp_path, split=split, then=NOW))) == []


def test_another_corpus_is_not_reported(tmp_path: Path) -> None:
    assert (
        overlap_sentences(evaluations_of(maker_of(tmp_path, split="all", then=NOW, corpus="litbank"))) == []
    )


def test_the_same_files_under_another_name_are_the_text_of_the_training(tmp_path: Path) -> None:
    (sentence,) = overlap_sentences(
        evaluations_of(maker_of(tmp_path, split="all", then=NOW, corpus="classics"))
    )
    assert "classics (whole, 2K)" in sentence


def test_recall_in_training_text_is_reported(tmp_path: Path) -> None:
    maker = maker_of(tmp_path, split="all", then=NOW, corpus="litbank")
    maker.slices("classic_books", 2048)
    (sentence,) = overlap_sentences(evaluations_of(maker))
    assert "classic_books (first 2K bytes)" in sentence


@pytest.mark.usefixtures("_without_pictures")
def test_a_changed_corpus_is_in_the_report(tmp_path: Path) -> None:
    maker = maker_of(tmp_path / "results", split="test", then="0" * 12)
    words = f"'classic_books' has changed since the training (fingerprint {'0' * 12} then, {NOW} now)"
    (sentence,) = overlap_sentences(evaluations_of(maker))
    assert words in sentence
    write_report(tmp_path / "results", tmp_path / "out")
    for name in ("evidence.html", "report.md"):
        written = (tmp_path / "out" / name).read_text("utf-8")
        assert "Evaluated on training text" in written
        assert NOW in written
