"""The answer: one line per topic, with the ratio at the deepest context, both values and the conditions."""

import re
from pathlib import Path
from typing import Any

import pytest

from report.synthetic_records import CPU, GPU, Maker
from report.synthetic_scores import ScoreMaker
from retbench.records.record import Metric, Record
from retbench.report.contents import contents_of
from retbench.report.findings.answer import Answer, AnswerLine, find_answer
from retbench.report.results import Results, load_results
from retbench.report.selection import select
from retbench.workloads.workload import measures_cost

NOT_MEASURED = "not measured in this run"
NOT_COMPARED = "measured, but of no two models that are compared"
TRAINED_ONLY = "validation loss of the trainings only: see its figure"


def answer(records: list[Record]) -> Answer:
    return find_answer(contents_of(select(records)))


def line(found: Answer, topic: str) -> AnswerLine:
    (one,) = (each for each in found.lines if each.topic == topic)
    return one


def with_copies(records: list[Record], factors: dict[str, float]) -> list[Record]:
    """Records of further models: RetNet's, with every value so many times as large."""
    copies = [
        record.model_copy(
            update={
                "model": record.model.model_copy(update={"name": name}),
                "cell_id": f"{record.cell_id}{name}",
                "metrics": {
                    key: Metric(unit=metric.unit, value=metric.value * factor)
                    for key, metric in record.metrics.items()
                },
            }
        )
        for name, factor in factors.items()
        for record in records
        if record.model.name == "retnet"
    ]
    return [*records, *copies]


def test_most_records_of_a_busy_machine_are_reported(cpu_records: list[Record]) -> None:
    busy = {"load_average": [9.0, 1.0, 1.0], "physical_cores": 2}
    for share, is_stated in ((3, True), (1, False)):
        records = [
            record.model_copy(
                update={"environment": record.environment | (busy if number % 4 < share else {})}
            )
            for number, record in enumerate(cpu_records)
        ]
        assert answer(records).caveat.startswith("Other processes kept the machine busy") is is_stated


def test_a_busy_machine_disturbs_no_quality(scored: Results) -> None:
    busy = {"load_average": [9.0, 1.0, 1.0], "physical_cores": 2}
    records = [
        record.model_copy(update={"environment": record.environment | busy}) for record in scored.records
    ]
    assert not any(measures_cost(record) for record in records)
    assert "busy" not in answer(records).caveat


def test_a_whole_run_is_answered_in_four_lines(cpu_records: list[Record]) -> None:
    found = answer(cpu_records)
    assert found.models == "RetNet compared with the Transformer"
    assert found.setting == "AMD EPYC 9B14, float32, 18.9M non-embedding parameters per model, batch 1"
    assert [each.topic for each in found.lines] == ["Decode", "Memory", "Prefill", "Quality"]
    decode, memory, prefill, quality = found.lines
    assert decode.lead == "1.22× slower at 1K, 4.49× faster at 32K"
    assert "9.32 vs 41.8" in decode.text
    assert "95 % CI [4." in decode.text
    assert "crossover at about 2,430 tokens (interpolated)" in decode.text
    assert prefill.text.count("95 % CI [") == 2, "at the shortest length too"
    assert memory.lead == "7.94× less memory at 32K"
    assert "110 vs 874" in memory.text
    assert " at 2K" in prefill.lead
    assert (quality.lead, quality.text) == (NOT_MEASURED, "")
    assert "A100" in found.caveat


@pytest.mark.parametrize("workload", ["decode", "prefill", "memory"])
def test_what_was_not_measured_says_so(cpu_records: list[Record], workload: str) -> None:
    found = answer([record for record in cpu_records if record.workload != workload])
    assert {each.topic for each in found.lines if each.lead == NOT_MEASURED} == {
        workload.capitalize(),
        "Quality",
    }


def test_one_model_alone_is_compared_with_nothing(cpu_records: list[Record]) -> None:
    found = answer([record for record in cpu_records if record.model.name == "retnet"])
    leads = {each.topic: each.lead for each in found.lines}
    assert leads.pop("Quality") == NOT_MEASURED
    assert set(leads.values()) == {NOT_COMPARED}
    assert found.models == "RetNet"


def failing(records: list[Record], workload: str, models: set[str]) -> list[Record]:
    """The records, those of some models and a workload out of memory."""
    lost = {"status": "oom", "error": "out of memory", "metrics": {}}
    return [
        record.model_copy(update=lost)
        if record.workload == workload and record.model.name in models
        else record
        for record in records
    ]


def test_a_workload_without_any_value_says_why(cpu_records: list[Record]) -> None:
    found = answer(failing(cpu_records, "prefill", {"retnet", "transformer"}))
    assert line(found, "Prefill") == AnswerLine("Prefill", "no value: out of memory", "")
    assert " at 32K" in line(found, "Decode").lead


def test_of_a_workload_without_a_ratio_the_models_that_failed_are_named(cpu_records: list[Record]) -> None:
    found = answer(failing(cpu_records, "prefill", {"transformer"}))
    assert line(found, "Prefill") == AnswerLine(
        "Prefill", NOT_COMPARED, "Transformer: no value: out of memory"
    )


def test_quality_of_one_model_alone_was_measured(scored: Results) -> None:
    records = [record for record in scored.records if record.model.name == "retnet"]
    assert line(answer(records), "Quality").lead == NOT_COMPARED


def test_trainings_alone_are_no_evaluation(tmp_path: Path) -> None:
    records = ScoreMaker(tmp_path).trainings()
    assert line(answer(records), "Quality").lead == TRAINED_ONLY
    lost = {"status": "failed", "error": "no space left on device", "metrics": {}}
    assert (
        line(answer([one.model_copy(update=lost) for one in records]), "Quality").lead == "no value: failed"
    )


def test_of_several_models_the_best_is_named_with_its_ratio_to_the_reference(
    cpu_records: list[Record],
) -> None:
    factors = {f"model{number}": 0.5 + 0.4 * number for number in range(8)}
    found = answer(with_copies(cpu_records, factors))
    assert found.models == "9 models compared with the Transformer"
    assert line(found, "Decode").lead == "fastest: RetNet (model0), 8.98× faster than the Transformer at 32K"
    assert line(found, "Memory").lead.startswith("least memory: RetNet (model0), 15.")
    assert "the other 8 models 4.99× faster to 1.36× faster" in line(found, "Decode").text


def test_models_that_do_not_differ_significantly_from_the_best_are_named_with_it(
    cpu_records: list[Record],
) -> None:
    def shaken(record: Record) -> Record:
        factor = (1.02 if record.round % 2 else 0.99) if record.model.name == "same" else 1.0
        metrics = {key: Metric(unit=m.unit, value=m.value * factor) for key, m in record.metrics.items()}
        return record.model_copy(update={"metrics": metrics})

    records = [shaken(record) for record in with_copies(cpu_records, {"same": 1.0, "slow": 2.0})]
    found = line(answer(records), "Decode")
    assert found.lead.startswith("fastest: RetNet (1 other not significantly different), 4.49× faster")
    assert "; not significantly different from RetNet: RetNet (same); " in found.text


def test_an_advantage_of_one_round_says_that_it_has_no_interval(cpu_records: list[Record]) -> None:
    rounds = {record.round for record in cpu_records if record.model.name == "transformer"}
    deepest = max(record.point.context_len for record in cpu_records if record.workload == "decode")
    assert len(rounds) > 1
    left = [
        record
        for record in cpu_records
        if record.model.name == "retnet" or record.point.context_len < deepest or record.round == 0
    ]
    assert "9.52 vs 41.9 ms, one round, no interval" in line(answer(left), "Decode").text
    assert "no interval" not in line(answer(cpu_records), "Decode").text
    assert "no interval" not in line(answer(left), "Memory").text, "bytes do not vary"


def test_values_are_of_the_rounds_that_the_ratio_compares(cpu_records: list[Record]) -> None:
    """The Transformer alone has the last rounds of an interrupted run, and these were slow."""

    def changed(record: Record) -> Record:
        slow = 9.0 if record.round > 2 else 1.0
        metrics = {key: Metric(unit=m.unit, value=m.value * slow) for key, m in record.metrics.items()}
        return record.model_copy(update={"metrics": metrics})

    whole = [record for record in cpu_records if record.round <= 2]
    later = [changed(r) for r in cpu_records if r.round > 2 and r.model.name == "transformer"]
    assert later
    complete, interrupted = (line(answer(records), "Decode") for records in (whole, [*whole, *later]))
    assert interrupted.lead == complete.lead
    assert interrupted.text.replace(" in 3 common rounds", "") == complete.text


def test_a_model_without_a_value_is_named_beside_the_others(cpu_records: list[Record]) -> None:
    def failed(record: Record) -> Record:
        broken = {"status": "failed", "error": "why", "metrics": {}}
        return record.model_copy(update=broken if record.model.name == "broken" else {})

    records = with_copies(cpu_records, {"broken": 1.0, "slow": 2.0})
    found = answer([failed(record) for record in records])
    assert found.models.startswith("RetNet, RetNet (broken) and RetNet (slow) compared")
    assert line(found, "Decode").text.endswith("no value at 32K: RetNet (broken)")
    assert "no value" not in line(answer(records), "Decode").text


def test_a_workload_of_records_that_may_not_be_pooled_was_measured(cpu_records: list[Record]) -> None:
    older = [
        record.model_copy(
            update={
                "environment": record.environment | {"code_revision": "0.0.1"},
                "started_at": "2020-01-02T03:04:05Z",
            }
        )
        for record in cpu_records
        if record.workload == "memory"
    ]
    found = line(answer([*older, *Maker(CPU).latency()]), "Memory")
    assert found.lead not in (NOT_MEASURED, NOT_COMPARED)
    assert "Limitations" in found.lead


def test_a_heading_counts_models_that_it_has_no_room_to_name(cpu_records: list[Record]) -> None:
    copies = with_copies(cpu_records, {f"model{number}": 1.0 for number in range(19)})
    assert answer([r for r in copies if r.model.name != "transformer"]).models == "20 models"


def test_a_reference_that_no_model_beats_is_named_the_best(cpu_records: list[Record]) -> None:
    slow = {"retnet": 10.0, "third": 20.0}

    def change(record: Record) -> Record:
        factor = slow.get(record.model.name, 1.0)
        metrics = {key: Metric(unit=m.unit, value=m.value * factor) for key, m in record.metrics.items()}
        return record.model_copy(update={"metrics": metrics})

    found = answer([change(record) for record in with_copies(cpu_records, {"third": 1.0})])
    assert line(found, "Decode").lead == "fastest: the Transformer; next RetNet, 2.23× slower at 32K"


def test_a_model_that_ran_out_of_memory_is_why_the_comparison_ends(gpu_records: list[Record]) -> None:
    found = answer(gpu_records)
    assert found.setting.startswith("NVIDIA A100-SXM4-80GB, bfloat16, ")
    assert found.setting.endswith(", batch 8")
    assert " at 8K" in line(found, "Decode").lead
    assert "at 16K the Transformer has no value: out of memory" in line(found, "Decode").text


def test_a_sweep_at_another_batch_or_size_says_which() -> None:
    records = Maker(CPU).latency() + Maker(CPU).memory(batch_sizes=(8,))
    found = answer(records)
    assert found.setting.endswith(", batch 1")
    assert line(found, "Memory").text.endswith("; batch 8")


def test_without_decode_prefill_and_memory_other_workloads_are_answered(
    training_records: list[Record],
) -> None:
    found = answer(training_records)
    assert [each.topic for each in found.lines] == ["Training", "Quality"]
    assert (
        line(found, "Training").lead
        == "fastest: chunkwise RetNet, 4.91× faster than the fused Transformer at 8K"
    )


def test_quality_is_answered_by_the_largest_models(scored: Results) -> None:
    found = find_answer(contents_of(select(scored.records, folders=scored.folders)))
    quality = line(found, "Quality")
    assert "bits per" in quality.lead
    assert "litbank/original" in quality.text
    assert "non-embedding parameters" in quality.text
    assert " of the Transformer's (95 % CI over " in quality.text
    assert quality.text.endswith(" documents), trained on 20.0 M tokens, 1.1 per parameter")


def test_quality_of_three_seeds_is_answered_by_the_interval_over_them(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1, 2)})
    maker.perplexities("litbank/original", "last", 2048)
    loaded = load_results(maker.write())
    quality = line(find_answer(contents_of(select(loaded.records, folders=loaded.folders))), "Quality")
    assert re.search(
        r", 3 seeds: \d\.\d{3} \[[\d.]+, [\d.]+\] of the Transformer's \(95 % CI over seeds\), trained",
        quality.text,
    )


def test_processors_of_one_name_are_distinguished_by_their_generation(cpu_records: list[Record]) -> None:
    hidden = {"cpu_model": "AMD EPYC", "cpu_generation": "family 25, model 17, stepping 1"}
    records = [
        record.model_copy(update={"environment": record.environment | hidden}) for record in cpu_records
    ]
    assert answer(records).setting.startswith("AMD EPYC family 25 model 17 stepping 1, float32")


def test_quality_of_another_machine_than_the_answers_names_it(scored: Results) -> None:
    quality = [
        record.model_copy(update={"environment": record.environment | {"cpu_model": "Another Processor"}})
        for record in scored.records
    ]
    contents = contents_of(select([*Maker(CPU).latency(), *quality], folders=scored.folders))
    assert line(find_answer(contents), "Quality").text.endswith(" per parameter, on Another Processor")


def test_quality_of_tasks_alone_is_answered_by_their_finding(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path)
    maker.zeroshots(0)
    results = load_results(maker.write())
    found = find_answer(contents_of(select(results.records, folders=results.folders)))
    assert "task" in line(found, "Quality").lead


def test_a_difference_that_is_not_significant_is_no_advantage() -> None:
    noise = (0.8, 1.2, 1.0, 0.9, 1.1)

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        sign = 1 if arguments["model"].name == "retnet" else -1
        value = noise[arguments["round"]] ** sign
        return arguments | {"metrics": {"tpot_s": Metric(unit="s", value=value)}}

    records = [
        record for record in Maker(GPU, change=change).latency((1024, 2048)) if record.workload == "decode"
    ]
    assert line(answer(records), "Decode").lead == "no significant difference at 1K and 2K"
