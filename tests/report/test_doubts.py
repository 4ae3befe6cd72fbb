"""Doubts: what is missing, noisy, disturbed or failed is told, and a clean run is not accused."""

from typing import Any

import pytest

from report.synthetic_records import CPU, Maker
from retbench.records.record import Record
from retbench.report.doubts import (
    absent_sentences,
    disturbance_sentences,
    failure_table,
    missing_sentences,
    noisy_sentences,
)
from retbench.report.scenes import make_scenes
from retbench.report.selection import Selection, select


def missing_of(selection: Selection) -> list[str]:
    """What is missing of the experiments that were run."""
    sentences = missing_sentences(selection, make_scenes(selection))
    return [sentence for sentence in sentences if sentence.partition(":")[0] in selection.experiments]


def test_a_clean_run_is_not_accused(cpu_records: list[Record]) -> None:
    selection = select(cpu_records)
    scenes = make_scenes(selection)
    assert missing_of(selection) == []
    assert noisy_sentences(scenes) == []
    assert disturbance_sentences(selection) == []
    assert failure_table(selection).empty


def test_an_experiment_that_was_not_run_is_named_with_its_command(cpu_records: list[Record]) -> None:
    selection = select(cpu_records, "latency")
    (sentence,) = [s for s in missing_sentences(selection, make_scenes(selection)) if s.startswith("memory:")]
    assert "Run `retbench run memory`." in sentence


def test_missing_rounds_and_points_are_named(cpu_records: list[Record]) -> None:
    def kept(record: Record) -> bool:
        place = (record.model.name, record.workload, record.point.context_len)
        lost_point = place == ("transformer", "decode", 4096)
        return not (lost_point or (place == ("retnet", "decode", 1024) and record.round > 0))

    selection = select([record for record in cpu_records if kept(record)])
    point, rounds = sorted(missing_of(selection), key=lambda s: "RetNet" in s)
    assert point.startswith("latency: Transformer, decode at 4K, batch 1: none of 5 rounds are there.")
    assert rounds.startswith("latency: RetNet, decode at 1K, batch 1: 1 of 5 rounds is there.")
    assert "Run `retbench run latency --profile cpu` again" in rounds


def test_a_wide_interval_is_called_noisy(cpu_records: list[Record]) -> None:
    def shaken(record: Record) -> Record:
        if (record.workload, record.point.context_len, record.model.name) != ("decode", 2048, "retnet"):
            return record
        metric = record.metrics["tpot_s"]
        slower = metric.model_copy(update={"value": metric.value * (1 + 0.2 * (record.round % 2))})
        return record.model_copy(update={"metrics": record.metrics | {"tpot_s": slower}})

    (sentence,) = noisy_sentences(make_scenes(select([shaken(record) for record in cpu_records])))
    assert sentence.startswith(
        "latency: decode, batch 1: the interval reaches more than 10 % to either side of RetNet at 2K."
    )


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"load_average": [7.5, 3.0, 1.0], "physical_cores": 2}, "load average up to 7.5"),
        ({"gpu_state": {"before": {"num_foreign_processes": 1}, "after": {}}}, "other processes on the GPU"),
        ({"gpu_state": {"violation_s": {"power": 0.0, "thermal": 0.2}}}, "held its clocks down"),
    ],
)
def test_what_disturbed_a_measurement_is_told(facts: dict[str, Any], words: str) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"environment": arguments["environment"] | facts}

    (sentence,) = disturbance_sentences(select(Maker(CPU, change=change).memory()))
    assert "12" in sentence
    assert words in sentence


@pytest.mark.parametrize("load", [None, [], "idle", [2.0]])
def test_an_idle_or_unknown_load_is_no_disturbance(load: object) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        facts = {"load_average": load, "physical_cores": 2}
        return arguments | {"environment": arguments["environment"] | facts}

    assert disturbance_sentences(select(Maker(CPU, change=change).memory())) == []


def test_failures_of_a_cell_for_one_reason_are_one_row(gpu_records: list[Record]) -> None:
    table = failure_table(select(gpu_records, "latency"))
    assert table[["model", "context", "rounds", "what"]].to_numpy().tolist() == [
        ["transformer", "16K", "0, 1, 2, 3, 4", "out of memory"],
        ["transformer", "32K", "0, 1, 2, 3, 4", "out of memory"],
    ]


def test_what_cannot_be_measured_here_is_told_once(cpu_records: list[Record]) -> None:
    assert absent_sentences(select(cpu_records)) == [
        "latency: energy_per_token_j: no energy counter on this machine.",
        "memory: energy_per_token_j: no energy counter on this machine.",
    ]
