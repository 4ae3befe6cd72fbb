"""Findings: the sentences say what the numbers say, and no more."""

from typing import Any

import pytest

from report.synthetic_records import CPU, SMALL_TRAINER, Maker
from retbench.records.record import Metric, Record
from retbench.report.findings import KeyFinding, find_costs
from retbench.report.selection import select
from retbench.report.sweeps import make_sweeps


def findings(records: list[Record]) -> list[KeyFinding]:
    return find_costs(make_sweeps(select(records)))


def decode(retnet: float, transformer: float, noise: tuple[float, ...] = (1.0, 1.01, 0.99)) -> list[Record]:
    """Decode at two lengths where each model takes the same time at both, in as many rounds as there is noise."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        seconds = retnet if arguments["model"].name == "retnet" else transformer
        factor = noise[arguments["round"]]
        return arguments | {"metrics": {"tpot_s": Metric(unit="s", value=seconds * factor)}}

    maker = Maker(CPU, change=change)
    return [
        maker.record("latency", name, "decode", 1, length, number)
        for number in range(len(noise))
        for name in CPU.models
        for length in (1024, 2048)
    ]


def test_the_headline_of_a_whole_run(cpu_records: list[Record]) -> None:
    crossing, deepest, level, prompt, memory = findings(cpu_records)
    assert crossing.lead == "2,430 tokens"
    assert crossing.text == (
        "RetNet decodes faster than the Transformer from a context of 2,430 tokens on, batch 1 "
        "(95 % interval 2,310 to 2,550)."
    )
    assert deepest.lead == "0.223×"
    assert "At 32K a token takes RetNet 9.32 ms and the Transformer 41.8 ms" in deepest.text
    assert level.lead == "1.01×"
    assert "90 % interval 0.998 to 1.029" in level.text
    assert "inside [0.95, 1.05], so it does not depend on the context length" in level.text
    assert "a prompt takes RetNet" in prompt.text
    assert memory.text == (
        "At 32K weights, state and workspace take RetNet 110 MiB and the Transformer 874 MiB, batch 1: "
        "a ratio of 0.126."
    )


def test_where_the_transformer_fails_the_deepest_common_length_is_compared(gpu_records: list[Record]) -> None:
    found = findings(gpu_records)
    deepest = next(finding for finding in found if "a token takes" in finding.text)
    assert deepest.text.startswith("At 8K ")
    assert deepest.text.endswith("At 16K the Transformer has no value: out of memory.")
    memory = found[-1]
    assert memory.text.startswith("At 8K weights")
    assert memory.text.endswith("out of memory.")


@pytest.mark.parametrize(
    ("retnet", "words"),
    [(0.5, "RetNet ahead at every length"), (2.0, "RetNet not ahead up to 2K")],
)
def test_without_a_crossover_it_says_none_and_why(retnet: float, words: str) -> None:
    first = findings(decode(retnet, 1.0))[0]
    assert first.lead == "none in range"
    assert first.text == f"Crossover of the time per token, 1K to 2K, batch 1: {words}."


def test_rounds_that_disagree_are_called_unclear() -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        ahead = arguments["round"] == 0
        seconds = {"retnet": 0.5 if ahead else 2.0, "transformer": 1.0}[arguments["model"].name]
        return arguments | {"metrics": {"tpot_s": Metric(unit="s", value=seconds)}}

    maker = Maker(CPU, change=change)
    records = [
        maker.record("latency", name, "decode", 1, length, number)
        for number in range(3)
        for name in CPU.models
        for length in (1024, 2048)
    ]
    first = findings(records)[0]
    assert first.lead == "rounds disagree"
    assert "first model" not in first.text
    assert "in 1 RetNet is ahead at every length" in first.text


def test_an_interval_too_wide_is_not_called_level() -> None:
    level = findings(decode(0.5, 1.0))[2]
    assert "does not depend" in level.text
    records = [
        r.model_copy(update={"metrics": {"tpot_s": Metric(unit="s", value=0.5 + 0.2 * (r.round == 0))}})
        if r.point.context_len == 2048
        else r
        for r in decode(0.5, 1.0)
    ]
    level = findings(records)[2]
    assert "not shown to be level" in level.text


def test_one_round_gives_a_value_and_no_verdict() -> None:
    found = findings(decode(0.5, 1.0, noise=(1.0,)))
    assert "one round, so no interval" in found[2].text
    assert "interval" not in found[1].text


def test_one_model_alone_has_no_headline(cpu_records: list[Record]) -> None:
    assert findings([r for r in cpu_records if r.model.name == "retnet"]) == []


def test_throughput_is_compared_at_the_batch_that_suits_each_model_best(swept_records: list[Record]) -> None:
    largest, peak = findings(swept_records)
    assert largest.lead == "17.5×"
    assert largest.text == (
        "At 4K RetNet fits 140 sequences into 954 MiB and the Transformer 8: a ratio of 17.5."
    )
    assert peak.text.startswith(
        "At 4K, each at the best of the batch sizes 1, 2, 4, 8, 16, 32 and 64, RetNet decodes 1,420 tokens/s "
        "(batch 64) and the Transformer 188 tokens/s (batch 8): a ratio of 7.5"
    )
    assert "95 % interval" in peak.text
    alone = [record for record in swept_records if record.round == 0 and record.workload == "decode"]
    assert "interval" not in findings(alone)[0].text


def test_a_depth_that_one_model_never_reached_is_not_compared(swept_records: list[Record]) -> None:
    reached = [
        record
        for record in swept_records
        if (record.model.name, record.point.context_len) != ("transformer", 4096)
    ]
    assert [finding.text[:5] for finding in findings(reached)] == ["At 1K", "At 1K"]


def test_training_is_compared_at_every_length_and_its_memory_fitted(training_records: list[Record]) -> None:
    speed, growth, *others = findings(training_records)
    assert speed.lead == "0.204×"
    assert speed.text == (
        "A training step of the chunkwise RetNet takes 0.530 [0.505, 0.558] times as long as the fused Transformer's "
        "at 2K, 0.430 [0.420, 0.440] at 3K, 0.351 [0.341, 0.362] at 4K, 0.260 [0.253, 0.266] at 6K and "
        "0.204 [0.200, 0.208] at 8K, batch 1 (95 % intervals)."
    )
    assert growth.lead == "68.5 KiB a token"
    assert growth.text == (
        "From 2K to 8K the peak memory of a training step of the chunkwise RetNet, batch 1, is linear in the length: "
        "68.5 KiB a token and 16.0 MiB (a line misses no point by more than 0.01 %, R² 1.0000). At 8K it is 564 MiB, "
        "and the fused Transformer's 460 MiB."
    )
    assert [finding.lead for finding in others] == ["4.28×", "not linear", "1.98×", "not linear"]
    assert "parallel RetNet" in others[0].text
    assert "misses a point by 78 %, R² 0.9766" in others[1].text


def test_training_that_runs_out_of_memory_is_compared_as_far_as_it_goes() -> None:
    found = {finding.text for finding in findings(Maker(SMALL_TRAINER).training())}
    (text,) = (text for text in found if text.startswith("A training step of the plain Transformer"))
    assert " at 2K, " in text
    assert " at 4K, batch 1" in text
    assert text.endswith("At 6K the plain Transformer has no value: out of memory.")


def test_one_round_of_training_at_two_lengths_has_neither_interval_nor_line(
    training_records: list[Record],
) -> None:
    few = [r for r in training_records if r.round == 0 and r.point.context_len <= 3072]
    found = findings(few)
    assert len(found) == 3  # a ratio of each model with the fused Transformer
    assert all("[" not in finding.text and "intervals" not in finding.text for finding in found)
