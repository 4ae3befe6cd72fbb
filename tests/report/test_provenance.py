"""The ledger: both sides side by side, and a flag on what should be the same and is not."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from report.synthetic_records import CPU, Maker, with_mixer
from retbench.records.record import Gate, GateCheck, Record
from retbench.report.lineup import lineup
from retbench.report.provenance import (
    describe_conditions,
    describe_steps,
    environment_table,
    equivalence_table,
    executed_table,
    match_table,
    mismatch_sentence,
)
from retbench.report.results import load_results


def as_dict(table: pd.DataFrame) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for row in table.itertuples(index=False)}


def test_parameters_of_both_are_shown_with_their_mismatch(cpu_records: list[Record]) -> None:
    models = lineup(cpu_records)
    table = match_table(cpu_records, models)
    assert list(table.columns) == ["fact", "RetNet", "Transformer"]
    rows = as_dict(table)
    assert rows["ffn_dim"] == ["680", "1368"]
    assert rows["value_dim"] == ["1024", "–"]
    assert rows["parameters without embedding and head"] == ["18,859,520", "18,905,600"]
    sentence = mismatch_sentence(cpu_records, models)
    assert "differ by 46,080 (0.2 % of the larger)" in sentence
    assert "d_model, num_layers, vocab_size, norm, norm_eps" in sentence


def test_a_concatenated_cache_is_named_wherever_its_model_is(cpu_records: list[Record]) -> None:
    def of(cache: str, name: str, record: Record) -> Record:
        config = with_mixer(record.model.config, cache=cache)
        model = record.model.model_copy(update={"name": name, "config": config})
        return record.model_copy(update={"model": model})

    others = [record for record in cpu_records if record.model.name == "retnet"]
    mine = [record for record in cpu_records if record.model.name == "transformer"]
    alone = lineup([*others, *(of("concat", "transformer", record) for record in mine)])
    assert alone.labels == {"retnet": "RetNet", "transformer": "Transformer (concat cache)"}
    records = [*others, *mine, *(of("concat", "a_baseline", record) for record in mine)]
    models = lineup(records)
    assert models.reference == "transformer"
    assert models.labels["a_baseline"] == "Transformer (a_baseline) (concat cache)"
    assert as_dict(match_table(records, models))["cache"] == ["–", "–", "concat"]


def test_models_without_parameters_do_not_differ(cpu_records: list[Record]) -> None:
    empty = [
        record.model_copy(update={"model": record.model.model_copy(update={"num_params_nonembedding": 0})})
        for record in cpu_records
    ]
    assert "differ by 0 (0.0 % of the larger)" in mismatch_sentence(empty, lineup(empty))


def test_one_model_has_no_mismatch(cpu_records: list[Record]) -> None:
    alone = [record for record in cpu_records if record.model.name == "retnet"]
    assert mismatch_sentence(alone, lineup(alone)) == "Only one model was measured: RetNet."


def test_a_fair_run_has_no_flag_but_the_architectures_own(cpu_records: list[Record]) -> None:
    decode = [record for record in cpu_records if record.workload == "decode"]
    rows = as_dict(executed_table(decode, lineup(cpu_records)))
    assert rows["dtype"] == ["float32", "float32", ""]
    assert rows["rounds"] == ["5", "5", ""]
    assert rows["samples per round"] == ["21", "21", ""]
    assert rows["executed: decode"] == ["recurrent", "sdpa:math", "by architecture"]
    assert rows["executed: kv_capacity"] == ["–", "1,025 to 32,769", "by architecture"]
    assert "differs" not in {row[-1] for row in rows.values()}


def test_a_state_of_real_text_against_a_filled_cache_is_a_difference_of_the_harness() -> None:
    folder = Path(__file__).parents[2] / "results" / "published"
    decode = [r for r in load_results(folder).records if (r.experiment, r.workload) == ("latency", "decode")]
    rows = as_dict(executed_table(decode, lineup(decode)))
    assert rows["executed: state_source"] == ["streamed prefill of real text", "filled", "by the harness"]
    assert rows["executed: kv_fill"][-1] == "by the harness"
    assert rows["executed: kv_capacity"][-1] == "by architecture"


def test_what_published_pairs_differ_in_is_what_their_architectures_bring() -> None:
    records = load_results(Path(__file__).parents[2] / "results" / "published").records
    by_experiment: dict[object, list[Record]] = {}
    for record in records:  # several commands may have trained the models of an experiment on a machine
        trained = record.workload == "training_run"
        run = (record.experiment, record.environment["machine"]) if trained else record.run_id
        by_experiment.setdefault((run, record.workload), []).append(record)
    for mine in by_experiment.values():
        table = executed_table(mine, lineup(mine))
        assert list(table[table["difference"] == "differs"]["fact"]) == []


def test_what_should_be_the_same_and_is_not_is_flagged(cpu_records: list[Record]) -> None:
    records = [
        r.model_copy(update={"backend": r.backend | {"cuda_graph": True}}) if r.model.name == "retnet" else r
        for r in cpu_records
        if r.workload == "decode" and not (r.model.name == "transformer" and r.round == 4)
    ]
    rows = as_dict(executed_table(records, lineup(records)))
    assert rows["executed: cuda_graph"] == ["True", "False", "differs"]
    assert rows["rounds"] == ["5", "4", "differs"]


def test_the_gate_shows_the_worst_error_of_all_records(cpu_records: list[Record]) -> None:
    def worse(error: float) -> Record:
        gate = Gate(
            passed=error <= 1e-4,
            dtype="float32",
            checks=(GateCheck(name="streamed = whole", length=2047, error=error, limit=1e-4),),
        )
        return cpu_records[0].model_copy(update={"gate": gate})

    models = lineup(cpu_records)
    table = equivalence_table([*cpu_records, worse(9e-5)], models)
    rows = {(row.model, row.check): row for row in table.itertuples()}
    assert len(rows) == 5
    streamed = rows["RetNet", "streamed = whole"]
    assert (streamed.error, streamed.limit, streamed.verdict) == ("9.0e-05", "0.0001", "equal")
    for error in (math.inf, math.nan):
        table = equivalence_table([*cpu_records, worse(error)], models)
        bad = table[table["verdict"] == "NOT EQUAL"]
        assert list(bad["error"]) == ["inf"]


def test_no_gate_is_an_empty_table(cpu_records: list[Record]) -> None:
    bare = [record.model_copy(update={"gate": None}) for record in cpu_records]
    assert equivalence_table(bare, lineup(bare)).empty


def test_facts_that_change_are_shown_as_ranges() -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        number = arguments["round"]
        facts = {"load_average": 1 + number, "governor": f"g{number}", "cpus": [0, 1], "memory_bytes": 2**34}
        return arguments | {"environment": arguments["environment"] | facts}

    rows = as_dict(environment_table(Maker(CPU, change=change).latency(lengths=(1024,))))
    assert rows["load_average"] == ["1 to 5"]
    assert rows["governor"] == ["g4 (the latest of 5 values)"]
    assert rows["cpus"] == ["[0, 1]"]
    assert rows["memory_bytes"] == ["16.0 GiB"]
    assert rows["versions.torch"] == ["2.13.0"]
    assert rows["measured read bandwidth"] == ["30.0 GB/s"]


def test_compiled_steps_are_a_condition_of_what_they_gave(cpu_records: list[Record]) -> None:
    models = lineup(cpu_records)
    decoded = [record for record in cpu_records if record.workload == "decode"]
    compiled = [
        record.model_copy(update={"backend": {**record.backend, "compile": True}}) for record in decoded
    ]
    assert " · compiled · " in describe_conditions(compiled, models)
    eager = [
        record.model_copy(update={"backend": {**record.backend, "compile": False}}) for record in decoded
    ]
    assert " · eager · " in describe_conditions(eager, models)
    prefilled = [record for record in cpu_records if record.workload == "prefill"]
    eager = [
        record.model_copy(update={"backend": {**record.backend, "compile": False}}) for record in prefilled
    ]
    assert " · compiled: decode · eager: prefill · " in describe_conditions([*compiled, *eager], models)


def test_steps_that_a_graph_replays_are_not_called_eager(gpu_records: list[Record]) -> None:
    records = [record for record in gpu_records if record.workload in ("decode", "prefill")]
    graphs = [record for record in records if record.backend["cuda_graph"]]
    assert {record.workload for record in graphs} == {"decode"}
    assert describe_steps(graphs) == ["CUDA graphs"]
    assert describe_steps(records) == ["CUDA graphs: decode", "eager: prefill"]


def test_threads_are_a_condition_where_they_are_recorded(cpu_records: list[Record]) -> None:
    for threads, words in ((1, ["1 thread"]), (2, ["2 threads"]), (None, [])):
        records = [
            one.model_copy(update={"settings": one.settings | {"threads": threads}}) for one in cpu_records
        ]
        found = describe_conditions(records, lineup(records)).replace("\N{NO-BREAK SPACE}", " ")
        assert [part for part in found.split(" · ") if "thread" in part] == words


def test_a_memory_limit_is_a_condition(cpu_records: list[Record]) -> None:
    assert "memory limit" not in describe_conditions(cpu_records, lineup(cpu_records))
    limited = [
        record.model_copy(update={"settings": {**record.settings, "memory_limit_bytes": 10**9}})
        for record in cpu_records
    ]
    assert "memory limit 954\xa0MiB" in describe_conditions(limited, lineup(cpu_records))
