"""Findings: the sentences say what the numbers say, and no more."""

import re
from typing import Any

import pytest

from report.synthetic_records import CPU, SMALL_TRAINER, Maker
from retbench.records.record import Metric, Record
from retbench.report.findings.costs import KeyFinding, find_costs
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
    deepest, crossing, level, prompt, memory = findings(cpu_records)
    assert crossing.lead == "faster from about 2,430 tokens on"
    assert (
        "about 2,430 tokens on, interpolated between the measured lengths, batch 1 (95 % CI [2,310, 2,550])"
        in (crossing.text)
    )
    assert deepest.lead == "1.22× slower at 1K, 4.49× faster at 32K"
    assert "At 32K" in deepest.text
    assert "9.32 ms for RetNet and 41.8 ms for the Transformer" in deepest.text
    assert level.lead == "1.00× from 1K to 32K"
    assert "90 % CI [0.998, 1.029]" in level.text
    assert "inside [0.95, 1.05], so it is constant in context length" in level.text
    assert "the time to first token is" in prompt.text
    assert memory.lead == "7.94× less memory at 32K"
    assert "110 MiB for RetNet and 874 MiB for the Transformer, batch 1" in memory.text


def test_where_the_transformer_fails_the_deepest_common_length_is_compared(gpu_records: list[Record]) -> None:
    found = findings(gpu_records)
    deepest = next(finding for finding in found if "the time per output token is" in finding.text)
    assert deepest.text.startswith("At 8K ")
    assert "At 16K the Transformer has no value: out of memory." in deepest.text
    memory = found[-1]
    assert memory.text.startswith("At 8K the memory")
    assert "out of memory." in memory.text


@pytest.mark.parametrize(
    ("retnet", "words"),
    [
        (0.5, "RetNet is ahead in every round at every measured length"),
        (2.0, "RetNet is ahead in no round up to 2K"),
    ],
)
def test_without_a_crossover_it_says_none_and_why(retnet: float, words: str) -> None:
    crossing = findings(decode(retnet, 1.0))[1]
    assert f"RetNet is {crossing.lead}" == words
    assert "1K to 2K, batch 1" in crossing.text
    assert crossing.text.endswith(f": {words}.")


def test_of_rounds_that_disagree_it_says_how_many() -> None:
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
    ends, crossing, _ = findings(records)
    assert ends.lead == "no significant difference at 1K and 2K"
    assert crossing.lead == "ahead in some rounds only"
    assert "first model" not in crossing.text
    assert "in 1 RetNet is ahead at every length" in crossing.text


def test_a_crossover_that_leaves_rounds_out_says_how_many_count() -> None:
    """In the rounds without the last length RetNet is behind at the first one."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        behind = arguments["round"] > 2 and arguments["point"].context_len == 1024
        seconds = {"retnet": 2.0 if behind else 0.5, "transformer": 1.0}[arguments["model"].name]
        return arguments | {"metrics": {"tpot_s": Metric(unit="s", value=seconds)}}

    maker = Maker(CPU, change=change)
    records = [
        maker.record("latency", name, "decode", 1, length, number)
        for number in range(5)
        for name in CPU.models
        for length in (1024, 2048, 4096)
        if number < 3 or length < 4096
    ]
    crossing = findings(records)[1]
    assert crossing.lead == "ahead in every round at every measured length"
    assert crossing.text.endswith("from 1K to 4K count, 3 of 5.")


@pytest.mark.parametrize(
    ("at_the_first", "at_the_second", "start"),
    [(1.3, 0.56, "1,280"), (1.3, 0.6, "1,300"), (1.3, 0.999999, "2,048")],  # at 1,271, 1,296 and 2,047.99
)
def test_a_model_is_ahead_in_every_round_from_a_length_that_is_rounded_up(
    at_the_first: float, at_the_second: float, start: str
) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        behind = at_the_first if arguments["point"].context_len == 1024 else at_the_second
        crosses = arguments["model"].name == "retnet" and arguments["round"] == 0
        seconds = behind if crosses else {"retnet": 0.5, "transformer": 1.0}[arguments["model"].name]
        return arguments | {"metrics": {"tpot_s": Metric(unit="s", value=seconds)}}

    maker = Maker(CPU, change=change)
    records = [
        maker.record("latency", name, "decode", 1, length, number)
        for number in range(3)
        for name in CPU.models
        for length in (1024, 2048)
    ]
    assert findings(records)[1].lead == f"ahead in every round from {start} tokens on"


def test_an_interval_too_wide_is_not_called_level() -> None:
    level = findings(decode(0.5, 1.0))[2]
    assert "so it is constant" in level.text
    records = [
        r.model_copy(update={"metrics": {"tpot_s": Metric(unit="s", value=0.5 + 0.2 * (r.round == 0))}})
        if r.point.context_len == 2048
        else r
        for r in decode(0.5, 1.0)
    ]
    level = findings(records)[2]
    assert "not shown to be constant" in level.text


def test_one_round_gives_a_value_and_no_verdict() -> None:
    found = findings(decode(0.5, 1.0, noise=(1.0,)))
    assert "one round, so there is no interval" in found[2].text
    assert "CI" not in found[0].text


def test_equal_bytes_are_called_equal() -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"metrics": {"peak_bytes": Metric(unit="bytes", value=2**30)}}

    (finding,) = findings(Maker(CPU, change=change).memory((1024, 2048)))
    assert finding.lead == "no difference at 1K and 2K"
    assert "RetNet and the Transformer are equal" in finding.text


def test_one_model_alone_has_no_headline(cpu_records: list[Record]) -> None:
    assert findings([r for r in cpu_records if r.model.name == "retnet"]) == []


def test_throughput_is_compared_at_the_batch_that_suits_each_model_best(swept_records: list[Record]) -> None:
    largest, peak = findings(swept_records)
    assert largest.lead == "17.5× more sequences at 4K"
    assert "in 954 MiB is 140 for RetNet and 8 for the Transformer" in largest.text
    assert peak.lead.startswith("7.5")
    assert "batch sizes 1, 2, 4, 8, 16, 32 and 64" in peak.text
    assert "RetNet is 1.42 k tokens/s (batch 64)" in peak.text
    assert "Transformer 188 tokens/s (batch 8)" in peak.text
    assert "95 % CI" in peak.text
    alone = [record for record in swept_records if record.round == 0 and record.workload == "decode"]
    assert "CI" not in findings(alone)[0].text


def test_both_peaks_are_of_the_rounds_that_their_ratio_compares(swept_records: list[Record]) -> None:
    """Each round is twice as fast as the one before, and one lacks the batch that suits RetNet best."""
    kept = []
    for record in swept_records:
        if record.workload != "decode" or record.status != "ok":
            continue
        if (record.model.name, record.point.batch_size, record.round) == ("retnet", 64, 2):
            continue
        metrics = {
            name: metric.model_copy(update={"value": metric.value * 2**record.round})
            for name, metric in record.metrics.items()
        }
        kept.append(record.model_copy(update={"metrics": metrics}))
    (peak,) = findings(kept)
    mine, theirs = re.findall(r"([\d.]+) (k?) ?tokens/s \(batch", peak.text)
    values = [float(number) * (1000 if unit else 1) for number, unit in (mine, theirs)]
    factor = float(peak.lead.partition("×")[0])
    assert values[0] / values[1] == pytest.approx(factor, rel=0.01)
    assert "in 4 common rounds" in peak.text


def test_a_low_throughput_keeps_its_digits(swept_records: list[Record]) -> None:
    rates = {"retnet": 2.374, "transformer": 0.4561}
    slow = [
        r.model_copy(update={"metrics": {"tokens_per_s": Metric(unit="tokens/s", value=rates[r.model.name])}})
        for r in swept_records
        if r.workload == "decode" and r.status == "ok"
    ]
    (peak,) = findings(slow)
    assert "RetNet is 2.37 tokens/s" in peak.text
    assert "Transformer 0.46 tokens/s" in peak.text


@pytest.mark.parametrize("deep", [0.1, 10.0])
def test_throughput_is_better_if_higher_and_has_no_crossover(deep: float) -> None:
    """At 1K RetNet is ahead where it is behind at 2K, and the other way round."""

    def at(record: Record) -> Record:
        rate = (
            1.0
            if record.model.name == "transformer"
            else deep
            if record.point.context_len == 2048
            else 1 / deep
        )
        metrics = {"tokens_per_s": Metric(unit="tokens/s", value=100 * rate * (1 + 0.01 * record.round))}
        return record.model_copy(update={"workload": "throughput", "metrics": metrics})

    found = [each.lead for each in findings([at(record) for record in decode(0.5, 1.0)])]
    shallow, deeper = ("less", "more") if deep > 1 else ("more", "less")
    assert found[0] == f"10.0× {shallow} throughput at 1K, 10.0× {deeper} throughput at 2K"
    assert not any("from about" in lead or "ahead" in lead for lead in found)


def test_a_depth_that_one_model_never_reached_is_not_compared(swept_records: list[Record]) -> None:
    reached = [
        record
        for record in swept_records
        if (record.model.name, record.point.context_len) != ("transformer", 4096)
    ]
    assert [finding.text[:5] for finding in findings(reached)] == ["At 1K", "At 1K"]


def test_training_is_compared_at_both_ends_and_its_memory_fitted(training_records: list[Record]) -> None:
    speed, growth, *others = findings(training_records)
    assert speed.lead == "chunkwise RetNet: 4.91× faster at 8K"
    assert "At 8K the time per training step is" in speed.text
    assert "chunkwise RetNet is 4.91× faster (95 % CI [4.8" in speed.text
    assert "At 2K chunkwise RetNet is 1.89× faster (95 % CI [1.79, 1.98])." in speed.text
    assert growth.lead == "chunkwise RetNet: 68.5 KiB per token"
    assert "linear in context length: 68.5 KiB per token and 16.0 MiB" in growth.text
    assert "no point by more than 0.01 %, R² 1.0000" in growth.text
    assert "At 8K it is 564 MiB, and that of the fused Transformer 460 MiB." in growth.text
    leads = [finding.lead for finding in others]
    assert leads == [
        "parallel RetNet: 4.28× slower at 8K",
        "parallel RetNet: not linear",
        "plain Transformer: 1.98× slower at 8K",
        "plain Transformer: not linear",
    ]
    assert "parallel RetNet" in others[0].text
    assert "misses a point by 78 %, R² 0.9766" in others[1].text


def test_training_that_runs_out_of_memory_is_compared_as_far_as_it_goes() -> None:
    found = {finding.text for finding in findings(Maker(SMALL_TRAINER).training())}
    (text,) = (t for t in found if t.startswith("At 4K the time") and "for the plain Transformer" in t)
    assert "At 6K the plain Transformer has no value: out of memory." in text
    assert "At 2K" in text


def test_one_round_of_training_at_two_lengths_has_neither_interval_nor_line(
    training_records: list[Record],
) -> None:
    few = [r for r in training_records if r.round == 0 and r.point.context_len <= 3072]
    found = findings(few)
    assert len(found) == 3  # a ratio of each model with the fused Transformer
    assert all("[" not in finding.text and "CI" not in finding.text for finding in found)
